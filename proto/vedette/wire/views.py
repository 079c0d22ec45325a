"""Plain values of what the controller shows its admins, named as their messages in ``admin.proto``.

Requests have no value of their own: their fields are the arguments of the verb. All times are aware UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from vedette.wire.values import Condition, Facts, Limit, Severity, SlotState


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The state of the whole fleet."""

    controller_id: str = ""
    version: str = ""
    agents: int = 0
    online: int = 0
    need_attention: int = 0
    models: tuple[ModelOverview, ...] = ()
    next_steps: tuple[str, ...] = ()  # commands
    started: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOverview:
    """One model over the fleet."""

    model: str = ""
    newest_version: int = 0
    active: Mapping[str, int] = field(default_factory=dict)  # version -> agents
    rows_per_hour: float = 0.0
    flagged_share: float = 0.0
    latency_p99_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An enrolment token; its text only when it was just created."""

    id: str = ""
    token: str = ""  # the whole text an appliance is given; only in the answer to CreateToken
    labels: Mapping[str, str] = field(default_factory=dict)
    uses: int = 0
    used: int = 0
    created: datetime | None = None
    expires: datetime | None = None
    revoked: bool = False


class AgentState(StrEnum):
    """What an operator needs to know of an agent in a word."""

    ENROLLED = "enrolled"  # never connected
    HEALTHY = "healthy"
    BEHIND = "behind"  # online, not yet what is desired
    DEGRADED = "degraded"  # online, a condition of severity error, or its newest assignment failed
    SILENT = "silent"  # no stream; serves on its own
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent as the controller knows it."""

    id: str = ""
    name: str = ""
    state: AgentState
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Facts | None = None
    slots: Mapping[str, AgentSlot] = field(default_factory=dict)
    enrolled: datetime | None = None
    seen: datetime | None = None
    desired_sequence: int = 0
    running_sequence: int = 0
    conditions: tuple[Condition, ...] = ()
    flows_per_s: float = 0.0  # over the newest telemetry window
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    rows: int = 0  # total over all telemetry
    flagged: int = 0
    address: str = ""  # where its stream comes from


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSlot:
    """One slot of an agent, in names."""

    active: str = ""  # MODEL:VERSION
    previous: str = ""
    candidate: str = ""
    desired: str = ""
    state: SlotState
    build: str = ""  # of the active one
    reason: str = ""
    candidate_bytes_done: int = 0
    candidate_bytes_total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataImport:
    """One imported file."""

    dataset: str = ""
    file_name: str = ""
    digest: str = ""  # of the file's bytes; a second import of the same bytes adds nothing
    rows: int = 0
    rejected: int = 0
    reject_reasons: Mapping[str, int] = field(default_factory=dict)
    already_there: bool = False
    first: datetime | None = None
    last: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelImport:
    """One imported file of label windows."""

    dataset: str = ""
    windows: int = 0
    windows_by_label: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something validation saw."""

    severity: Severity
    code: str = ""
    text: str = ""


class RunState(StrEnum):
    """Where a training run stands."""

    QUEUED = "queued"
    TRAINING = "training"
    CONVERTING = "converting"
    REGISTERING = "registering"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run."""

    run: str = ""
    recipe: str = ""
    snapshot: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    state: RunState
    progress: float = 0.0  # 0 to 1
    step: str = ""  # what it does now, for people
    version: str = ""  # MODEL:VERSION once registered
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    created: datetime | None = None
    ended: datetime | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable version of a model."""

    version: str = ""  # MODEL:N
    model: str = ""
    number: int = 0
    kind: str = ""  # flow | tensor
    digest: str = ""  # of the release document
    schema_digest: str = ""
    created: datetime | None = None
    builds: tuple[Build, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    threshold: float = 0.0
    signed_by: tuple[str, ...] = ()  # key ids
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    row_wise: bool = False  # each row is answered for itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output of a version."""

    name: str = ""
    dtype: str = ""  # as numpy names it; bytes: strings
    shape: tuple[int, ...] = ()  # -1: any length


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One runnable form of a version."""

    digest: str = ""
    kind: str = ""  # onnx-fp32 …
    bytes: int = 0
    requires: Mapping[str, str] = field(default_factory=dict)


class RolloutState(StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"  # by itself: a member failed
    ABORTED = "aborted"  # by a person


class MemberState(StrEnum):
    """Where one agent of a rollout stands."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    MOVED = "moved"
    FAILED = "failed"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A plan that moves agents to a version in waves."""

    rollout: str = ""
    version: str = ""
    selector: str = ""
    state: RolloutState
    waves: tuple[Wave, ...] = ()
    soak_s: int = 0
    started: datetime | None = None
    ended: datetime | None = None
    reason: str = ""
    started_by: str = ""
    events: tuple[RolloutEvent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """One wave of a rollout."""

    size: str = ""  # as asked for
    members: Annotated[tuple[Member, ...], Limit(100_000)] = ()
    state: str = ""  # waiting | moving | soaking | passed | stopped
    soak_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One agent in a wave."""

    agent: str = ""  # name
    state: MemberState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEvent:
    """Something that happened in a rollout."""

    at: datetime | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """How far live data is from what a model was trained on."""

    model: str = ""
    versions: tuple[VersionDrift, ...] = ()
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDrift:
    """Drift of one version."""

    version: str = ""
    rows: int = 0
    flagged_share: float = 0.0
    reference_flagged_share: float = 0.0
    features: tuple[FeatureDrift, ...] = ()  # largest first
    verdict: str = ""  # quiet | shifted | not enough rows
    rows_needed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDrift:
    """Drift of one feature, over all agents and at each."""

    feature: str = ""
    psi: float = 0.0  # population stability index, its bias under no drift subtracted
    js_bits: float = 0.0  # Jensen-Shannon divergence
    agents: tuple[AgentDrift, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDrift:
    """Drift at one agent."""

    agent: str = ""
    psi: float = 0.0
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A named line of data."""

    name: str = ""
    format: str = ""
    rows: int = 0
    imports: tuple[DataImport, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    label_windows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An immutable, content-addressed set of rows."""

    snapshot: str = ""  # DATASET@N
    digest: str = ""
    rows: int = 0
    bytes: int = 0
    schema_digest: str = ""
    created: datetime | None = None
    sources: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)  # rows by label
    findings: tuple[Finding, ...] = ()  # of validation


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTelemetry:
    """What one agent reported of one version over a window."""

    agent: str = ""
    version: str = ""
    rows: int = 0
    flagged: int = 0
    rows_per_s: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedAssignment:
    """One agent whose assignment is in a bundle."""

    agent: str = ""  # name
    sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelExport:
    """What a bundle holds."""

    version: str = ""
    bytes: int = 0
    agents: Annotated[tuple[ExportedAssignment, ...], Limit(16_384)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryImport:
    """What came of a file of telemetry."""

    agent: str = ""  # name
    exported: datetime | None = None  # as the agent's clock says
    batches: int = 0  # in the file
    counted: int = 0  # of these, not counted before
    rows: int = 0  # of the counted
    flagged: int = 0
    gaps: int = 0  # told by the counted
    rows_lost: int = 0  # in these gaps
    refused: int = 0  # batches with a number outside its limits
