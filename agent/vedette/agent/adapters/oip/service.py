"""What the calls of the Open Inference Protocol answer, without a wire: messages in, bytes out, the agent's errors.

Rules: a model is a slot, its version the one that serves there; a request that names another version is refused, also
when the switch came while it waited. Programs on the appliance go before flows. What a program cannot do here is change
what runs: the controller governs that. Bytes of requests in progress are bounded as a whole.

Sources: Open Inference Protocol v2; Triton Inference Server, protocol/extension_{statistics,model_configuration,
model_repository,parameters}.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from vedette.agent.adapters.inference.serving import ActiveModel, Serving
from vedette.agent.adapters.inference.worker import WorkerSettings
from vedette.agent.adapters.oip.counts import ANSWERED, RequestCounts
from vedette.agent.adapters.oip.errors import Governed, NotServed, code_of
from vedette.agent.adapters.oip.tensors import DATATYPES, Interface
from vedette.agent.domain.errors import AgentError, InvalidRequest, Overloaded
from vedette.agent.domain.model_stats import ModelStats
from vedette.agent.domain.priority import Priority
from vedette.models.release import Release, TensorSpec
from vedette.models.version import __version__
from vedette.wire.oip import inference_pb2 as pb
from vedette.wire.values import SlotState, SlotStatus

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository(index)",
    "parameters",
    "schedule_policy(timeout)",
    "statistics",
    "stream_infer",
)
_HELD_MESSAGES = 4
"""Of the largest size that may be in progress together; small ones in any number that fits these bytes."""

_BUSY_S = 0.1
_MAX_BATCH = WorkerSettings().max_rows  # longer requests are cut and joined again
_MOST_PARAMETERS = 64
_LOADING = (SlotState.DOWNLOADING, SlotState.VERIFIED, SlotState.STAGED, SlotState.TESTED)
_MessageT = TypeVar("_MessageT", bound=Message)


def parsed(kind: type[_MessageT], body: bytes) -> _MessageT:
    """Return a message.

    Raises:
        InvalidRequest: The bytes are none.
    """
    try:
        return kind.FromString(body)
    except DecodeError as exc:
        raise InvalidRequest(f"the request's {len(body)} bytes are no {kind.DESCRIPTOR.name}") from exc


class InferenceService:
    """Answers for the slots of this appliance. Everything runs on the event loop."""

    def __init__(self, serving: Serving, counts: RequestCounts, max_message_bytes: int) -> None:
        self._serving = serving
        self.counts = counts
        self._most_bytes = max_message_bytes
        self.held_bytes = 0  # of requests in progress
        self._interfaces: dict[str, Interface] = {}

    # Inference

    async def infer(self, body: bytes, left_s: float | None, method: str) -> bytes:
        """Return the serialised ModelInferResponse to a serialised ModelInferRequest.

        Raises:
            NotServed, NotOffered, InvalidRequest: The caller must ask for something else.
            AgentError: As :meth:`Serving.infer`.
        """
        begun = time.perf_counter()
        slot, code, size = "", "CANCELLED", len(body)
        if self.held_bytes + size > _HELD_MESSAGES * self._most_bytes:
            limit = _HELD_MESSAGES * self._most_bytes
            self.counts.add(method, slot, "RESOURCE_EXHAUSTED", 0.0)
            raise Overloaded(f"{self.held_bytes} bytes of requests are in progress, limit {limit}", _BUSY_S)
        self.held_bytes += size
        try:
            request = parsed(pb.ModelInferRequest, body)
            model = await self._model(request.model_name, request.model_version)
            slot = request.model_name
            answer = await self._answer(request, slot, model, left_s)
            code = ANSWERED
            return answer
        except AgentError as exc:
            code = code_of(exc).name
            raise
        finally:
            self.held_bytes -= size
            self.counts.add(method, slot, code, time.perf_counter() - begun)

    async def _answer(
        self, request: pb.ModelInferRequest, slot: str, model: ActiveModel, left_s: float | None
    ) -> bytes:
        interface = self._interface(slot, model.release)
        arrays = interface.read(request, self._most_bytes)
        wanted = interface.wanted(request)
        if request.parameters:
            left_s = _deadline(request.parameters, left_s)
        # None is all: asked for by name, the same outputs could not be joined with those of who did not name them.
        named = wanted if request.outputs else ()
        answer = await self._serving.infer(slot, arrays, outputs=named, priority=Priority.PROGRAM, deadline_s=left_s)
        if answer.release is not interface.release:  # switched while it waited: the newer one has answered, whole
            interface = self._interface(slot, answer.release)
            self._check_version(slot, answer.release, request.model_version)
            wanted = interface.wanted(request)
        return interface.answer(slot, request.id, answer.outputs, wanted)

    def _interface(self, slot: str, release: Release) -> Interface:
        known = self._interfaces.get(slot)
        if known is None or known.release is not release:
            known = self._interfaces[slot] = Interface(release)
        return known

    async def _model(self, slot: str, version: str) -> ActiveModel:
        """Return what answers in a slot, once it does.

        Raises:
            NotServed: No such slot, or another version.
            NoActiveModel: It serves nothing now.
        """
        model = self._serving.active(slot)
        if model is None:
            if not self.is_known(slot):
                raise NotServed(f"no model {slot[:80]!r} is here; there are {sorted(self._serving.actives)[:10]}")
            model = await self._serving.successor(slot)
        if version:
            self._check_version(slot, model.release, version)
        return model

    def _check_version(self, slot: str, release: Release, version: str) -> None:
        if version and version != str(release.version):
            raise NotServed(f"version {version[:20]!r} of {slot!r} is not served here; version {release.version} is")

    # Questions

    @property
    def is_ready(self) -> bool:
        """Whether every slot answers that has something to answer with; a switch in progress does not change it."""
        actives = self._serving.actives
        return all(status.slot in actives for status in self._serving.statuses() if status.active is not None)

    def is_known(self, slot: str) -> bool:
        """Whether there is a slot of that name, also when nothing serves in it yet."""
        return any(status.slot == slot for status in self._serving.statuses())

    def is_model_ready(self, slot: str, version: str) -> bool:
        """Whether a slot answers now, by that version if one is named. Of an unknown one it is no, as Triton says."""
        model = self._serving.active(slot)
        return model is not None and version in ("", str(model.release.version))

    def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Answer that the agent runs."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Answer whether it can be asked."""
        return pb.ServerReadyResponse(ready=self.is_ready)

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Answer whether a model can be asked."""
        if not request.name:
            raise InvalidRequest("the request names no model")
        return pb.ModelReadyResponse(ready=self.is_model_ready(request.name, request.version))

    def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Answer who this is and what it can do beyond the protocol."""
        return pb.ServerMetadataResponse(name="vedette-agent", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Answer what a model takes and gives."""
        release = (await self._model(request.name, request.version)).release
        kind = pb.ModelMetadataResponse.TensorMetadata
        inputs, outputs = (
            [kind(name=spec.name, datatype=DATATYPES[spec.dtype], shape=spec.shape) for spec in specs]
            for specs in (release.inputs, release.outputs)
        )
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(release.version)],
            platform="onnx_onnxv1",
            inputs=inputs,
            outputs=outputs,
        )

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Answer a model's configuration as Triton tells it: without the first axis where that is the row of all."""
        model = await self._model(request.name, request.version)
        release, digest = model.release, model.build_digest
        build = release.build(digest)
        told = {
            "build": digest,
            "build_kind": build.kind if build else "",
            "kind": release.kind,
            "release": release.digest,
        }
        tensors = (*release.inputs, *release.outputs)
        hidden = 1 if release.row_wise and all(spec.shape[:1] == (-1,) for spec in tensors) else 0
        config = pb.ModelConfig(
            name=request.name,
            platform="onnxruntime_onnx",
            backend="onnxruntime",
            max_batch_size=_MAX_BATCH * hidden,
            input=[pb.ModelInput(name=s.name, data_type=_data_type(s), dims=s.shape[hidden:]) for s in release.inputs],
            output=[
                pb.ModelOutput(name=s.name, data_type=_data_type(s), dims=s.shape[hidden:]) for s in release.outputs
            ],
            instance_group=[pb.ModelInstanceGroup(name=request.name, count=1, kind=pb.ModelInstanceGroup.KIND_CPU)],
            parameters={key: pb.ModelParameter(string_value=value) for key, value in told.items()},
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        )
        return pb.ModelConfigResponse(config=config)

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Answer what models did since they became active, flows and requests together."""
        if request.name:
            found = {request.name: await self._model(request.name, request.version)}
        elif request.version:
            raise InvalidRequest(f"version {request.version[:20]!r} of no model: name one")
        else:
            found = self._serving.actives
        return pb.ModelStatisticsResponse(
            model_stats=[_statistics(slot, model.release.version, model.stats) for slot, model in found.items()]
        )

    def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Answer what is here: what serves, what is on its way and what is kept for a rollback."""
        if request.repository_name:
            raise NotServed(
                f"no repository {request.repository_name[:80]!r} is here; this server has one, without name"
            )
        actives = self._serving.actives
        models = [entry for status in self._serving.statuses() for entry in _index(status, status.slot in actives)]
        return pb.RepositoryIndexResponse(models=[m for m in models if m.state == "READY" or not request.ready])

    def model_load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Refuse."""
        raise _governed("load", request.model_name)

    def model_unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Refuse."""
        raise _governed("unload", request.model_name)


def _governed(verb: str, model: str) -> Governed:
    return Governed(
        f"this server does not {verb} {model[:80]!r}: the controller governs the models of an appliance; "
        "there: vedette rollout start MODEL:VERSION --to SELECTOR"
    )


def _deadline(parameters: Mapping[str, Any], left_s: float | None) -> float | None:
    """Return the caller's deadline with the request's own ``timeout``, in microseconds, if it has one.

    Other parameters are for backends that read them; no model here does, so they change nothing.

    Raises:
        InvalidRequest: There are too many, or the timeout is no whole number above 0.
    """
    if len(parameters) > _MOST_PARAMETERS:
        raise InvalidRequest(f"the request has {len(parameters)} parameters, limit {_MOST_PARAMETERS}")
    if "timeout" not in parameters:
        return left_s
    given = parameters["timeout"]
    kind = given.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(f"parameter 'timeout' is {kind or 'empty'}, expected int64_param: microseconds")
    timeout_us = getattr(given, kind)
    if timeout_us < 0:
        raise InvalidRequest(f"parameter 'timeout' is {timeout_us} us, expected 0 or more")
    timeout_s = timeout_us / 1e6 if timeout_us else math.inf  # Triton: 0 is the server's own
    least = min(timeout_s, math.inf if left_s is None else left_s)
    return None if least == math.inf else least


def _data_type(spec: TensorSpec) -> Any:
    name = DATATYPES[spec.dtype]
    return pb.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}")


def _duration(count: int, ns: int) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=ns)


def _statistics(slot: str, version: int, stats: ModelStats) -> pb.ModelStatistics:
    batches = sorted(stats.batches.items())
    executions = sum(batch.count for _, batch in batches)
    none = _duration(0, 0)
    return pb.ModelStatistics(
        name=slot,
        version=str(version),
        last_inference=stats.last_ms,
        inference_count=stats.rows,
        execution_count=executions,
        inference_stats=pb.InferStatistics(
            success=_duration(stats.requests, stats.success_ns),
            fail=_duration(stats.errors, stats.fail_ns),
            queue=_duration(executions, stats.queue_ns),
            compute_input=_duration(executions, sum(batch.input_ns for _, batch in batches)),
            compute_infer=_duration(executions, stats.compute_ns),
            compute_output=_duration(executions, sum(batch.output_ns for _, batch in batches)),
            cache_hit=none,
            cache_miss=none,
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batch.count, batch.input_ns),
                compute_infer=_duration(batch.count, batch.compute_ns),
                compute_output=_duration(batch.count, batch.output_ns),
            )
            for size, batch in batches
        ],
    )


def _index(status: SlotStatus, is_answering: bool) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
    kind = pb.RepositoryIndexResponse.ModelIndex
    told: set[int] = set()
    if status.active is not None:
        told.add(status.active.version)
        state, reason = (
            ("READY", "") if is_answering else ("UNAVAILABLE", status.reason or "its worker is being started")
        )
        yield kind(name=status.slot, version=str(status.active.version), state=state, reason=reason)
    if status.candidate is not None and status.candidate.version not in told:
        told.add(status.candidate.version)
        state = "LOADING" if status.state in _LOADING else "UNAVAILABLE"
        reason = status.state.value if state == "LOADING" else status.reason
        yield kind(name=status.slot, version=str(status.candidate.version), state=state, reason=reason)
    if status.previous is not None and status.previous.version not in told:
        reason = "kept for a rollback"
        yield kind(name=status.slot, version=str(status.previous.version), state="UNAVAILABLE", reason=reason)
