"""Brings a bundle in: what a link would have brought, by file, with the same proof.

Rules: the assignment is proven before a release is looked at, both before a blob is written, and only blobs that they
name are; so a file of strangers costs no disk. What is proven here is proven again by the agent that acts on it. The
file is read once, from a pipe too. Nothing is told as done that a power cut could undo.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vedette.agent.adapters.fleet.artifacts import RESERVE_BYTES
from vedette.agent.adapters.fleet.identity import Identity, IdentityStore
from vedette.agent.adapters.fleet.inbox import Draft, Inbox, Watch
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.adapters.storage.reserve import free_bytes
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.advice import EXIT_REFUSED, EXIT_USAGE, AdvisedError
from vedette.agent.domain.clock import EARLIEST
from vedette.agent.domain.errors import DiskFull, StateError
from vedette.agent.domain.reconcile import Accepted, Refused, Trust, verify
from vedette.agent.settings import Settings
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment
from vedette.models.bundle import Bundle, BundleError, Part, PartKind, Source
from vedette.models.documents import DocumentError, digest_of, time_text
from vedette.models.release import RELEASE_TYPE, Blob
from vedette.models.signing import SignatureError, unseal
from vedette.wire.values import DesiredState

PAGE = "/import"
"""Where the running agent says on its socket what an import must know: a :class:`Standing` as JSON."""
_TIMEOUT_S = 5.0
_ASK_EVERY_S = 0.2
_MAX_PAGE_BYTES = 64 * 1024


class BundleInvalid(AdvisedError):
    """The file is no whole bundle, or of a later version."""

    code = "bundle-invalid"
    exit_code = EXIT_USAGE


class BundleRefused(AdvisedError):
    """The bundle is whole and not for this appliance, or not any more. ``code`` says why, as for assignments."""

    exit_code = EXIT_REFUSED

    def __init__(self, code: str, what: str, why: str, remedy: str) -> None:
        super().__init__(what, why, remedy)
        self.code = code


@dataclass(frozen=True, slots=True)
class Brought:
    """What an import brought. ``place`` is where it waits; empty when all of it is applied already."""

    assignment: Assignment
    place: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What an import must know of the agent.

    Attributes:
        highest_sequence: Of any assignment accepted.
        highest_digest: Of that assignment.
        running_sequence: Of the assignment applied last.
        floor: The time that expiry is judged by.
        outcome: What became of the newest assignment tried since the start: its ``sequence``, ``outcome``, ``code`` and
            ``reason``; None before.
        taken: The place of the import that it took last.
        is_running: Whether a running agent says so.
    """

    highest_sequence: int
    highest_digest: str
    running_sequence: int
    floor: datetime
    outcome: dict[str, Any] | None = None
    taken: str = ""
    is_running: bool = False

    def to_json(self) -> bytes:
        """Return it as the page has it."""
        return json.dumps(asdict(self) | {"floor": time_text(self.floor)}).encode()


def standing_of(state: State, floor: datetime, watch: Watch | None = None) -> Standing:
    """Return how an agent stands, from its state and, when it runs, from its watch over imports."""
    known, sequences = state.desired, state.sequences
    return Standing(
        sequences.highest,
        known.digest if known else "",
        sequences.running,
        floor,
        watch.outcome if watch else None,
        watch.taken if watch else "",
    )


def current_standing(settings: Settings) -> Standing:
    """Return how the agent of these settings stands: asked of it when it runs, else read from its disk.

    Raises:
        StateError, DiskFull: It cannot say, or its state cannot be read.
    """
    for path in settings.status_sockets:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return _asked(path)
    if not (path := settings.state_dir / "state.db").exists():
        return Standing(0, "", 0, EARLIEST)
    state = State(path)
    try:
        return standing_of(state, max(state.time_floor or EARLIEST, EARLIEST))
    finally:
        state.close()


def awaited_outcome(settings: Settings, brought: Brought, limit_s: float) -> dict[str, Any] | None:
    """Return what the running agent made of an import; None when it has not ended within the limit.

    An agent that is restarted meanwhile goes on with it. What it will try again by itself is not waited for.

    Raises:
        StateError: The agent cannot say.
    """
    ends_s = time.monotonic() + limit_s
    while time.monotonic() < ends_s:
        with suppress(OSError):  # it restarts
            standing = current_standing(settings)
            if standing.taken == brought.place and _is_of(standing.outcome, brought.assignment.sequence):
                return standing.outcome
        time.sleep(_ASK_EVERY_S)
    return None


def _is_of(outcome: dict[str, Any] | None, sequence: int) -> bool:
    return outcome is not None and outcome["sequence"] in (sequence, 0)  # 0: refused before its sequence was proven


def _asked(path: Path) -> Standing:
    connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT_S)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(_TIMEOUT_S)
        made.connect(str(path))
        connection.sock = made
        connection.request("GET", PAGE)
        answer = connection.getresponse()
        body = answer.read(_MAX_PAGE_BYTES)
    if answer.status != HTTPStatus.OK:
        raise StateError(f"the running agent takes no imports ({answer.status}): restart it, and look at its log")
    said = json.loads(body)
    return Standing(**(said | {"floor": datetime.fromisoformat(said["floor"]), "is_running": True}))


@dataclass(slots=True)
class _Documents:
    """The documents of a bundle that are for this appliance, as far as they were read."""

    trust: Trust
    assignment: bytes = b""
    releases: dict[str, bytes] = field(default_factory=dict)
    _wanted: frozenset[str] = frozenset()

    def take(self, part: Part, envelope: bytes) -> None:
        """Keep a document that matters here; nothing of it is read before its signature was verified."""
        try:
            if part.kind == PartKind.ASSIGNMENT:
                self.assignment = envelope
                payload = unseal(envelope, ASSIGNMENT_TYPE, self.trust.assignment_keys)
                self._wanted = frozenset(slot.release for slot in Assignment.from_bytes(payload).slots)
            else:
                digest = digest_of(unseal(envelope, RELEASE_TYPE, self.trust.release_keys))
                if digest in self._wanted:
                    self.releases[digest] = envelope
        except SignatureError as exc:
            raise _refused("signature-invalid", str(exc)) from exc
        except DocumentError as exc:
            raise _refused("document-invalid", str(exc)) from exc

    @property
    def desired(self) -> DesiredState:
        return DesiredState(assignment=self.assignment, releases=tuple(self.releases.values()))


def bring_in(source: Source, settings: Settings, standing: Standing, progress: Callable[[int, int], object]) -> Brought:
    """Leave a bundle's assignment and what it needs where the agent finds it.

    Args:
        source: The bundle, at its start.
        settings: Of the agent.
        standing: How it stands.
        progress: Told how many bytes of how many are read.

    Raises:
        BundleInvalid: The file is no whole bundle.
        BundleRefused: It is not for this appliance, or not any more.
        ImportRunning: Another command imports.
        IdentityDamaged: The enrolment cannot be used.
        DiskFull, StateReadOnly, StateError: The disk does not take it.
    """
    identity = _enrolled(settings)
    with _whole():
        bundle = Bundle(source)
        _check_for(identity, bundle)
        reading = _Reading(bundle, identity, progress)
        accepted = reading.documents(standing)
        assignment = accepted.assignment
        if assignment.sequence == standing.running_sequence and assignment.digest == standing.highest_digest:
            return Brought(assignment, "")
        blobs = Blobs(settings.state_dir / "blobs")
        with Inbox(settings.state_dir / "import", blobs).begun() as draft:
            reading.blobs(accepted, blobs, draft, settings.state_dir)
            return Brought(assignment, draft.commit(accepted.envelopes, assignment.sequence))


class _Reading:
    """One way through a bundle: documents first, then blobs."""

    def __init__(self, bundle: Bundle, identity: Identity, progress: Callable[[int, int], object]) -> None:
        self._bundle = bundle
        self._agent_id = identity.agent_id
        self._trust = Trust(identity.agent_id, identity.release_keys, identity.assignment_keys)
        self._progress = progress
        self._parts = iter(bundle)
        self._next: tuple[Part, Iterator[bytes]] | None = None

    def documents(self, standing: Standing) -> Accepted:
        """Return the assignment for this appliance with its releases, all proven, once the first blob comes."""
        found = _Documents(self._trust)
        for part, pieces in self._parts:
            if part.kind == PartKind.BLOB:
                self._next = (part, pieces)
                break
            if part.kind == PartKind.RELEASE or (part.kind == PartKind.ASSIGNMENT and part.agent == self._agent_id):
                found.take(part, b"".join(pieces))
            self._progress(self._bundle.done, self._bundle.bytes)
        try:
            return verify(
                found.desired,
                self._trust,
                highest_sequence=standing.highest_sequence,
                highest_digest=standing.highest_digest,
                now=standing.floor,
            )
        except Refused as exc:
            raise _refused(exc.code, str(exc)) from exc

    def blobs(self, accepted: Accepted, blobs: Blobs, draft: Draft, disk: Path) -> None:
        """Put every blob that the assignment needs into a draft."""
        wanted = _needed(accepted)
        there = [blob for blob in wanted.values() if blobs.is_whole(blob)]
        for blob in there:
            draft.link(blob)
            del wanted[blob.digest]
        self._check_complete(wanted)
        _check_room(disk, sum(blob.size for blob in wanted.values()))
        for part, pieces in self._rest():
            found = wanted.pop(part.digest, None) if part.kind == PartKind.BLOB else None
            if found is not None:
                with draft.writing(found.digest.removeprefix("sha256:")) as write:
                    self._pass(pieces, write)
            else:
                self._pass(pieces, len)

    def _pass(self, pieces: Iterator[bytes], take: Callable[[bytes], object]) -> None:
        for piece in pieces:
            take(piece)
            self._progress(self._bundle.done, self._bundle.bytes)

    def _rest(self) -> Iterator[tuple[Part, Iterator[bytes]]]:
        if self._next is not None:
            yield self._next
        yield from self._parts

    def _check_complete(self, wanted: dict[str, Blob]) -> None:
        sizes = {part.digest: part.size for part in self._bundle.parts if part.kind == PartKind.BLOB}
        missing = [blob for blob in wanted.values() if sizes.get(blob.digest) != blob.size]
        if missing:
            names = ", ".join(blob.digest[:19] for blob in missing[:3])
            why = f"{len(missing)} files that its assignment needs are not in it: {names}"
            raise BundleRefused("bundle-incomplete", "the bundle does not hold all it needs", why, _EXPORT)


def _needed(accepted: Accepted) -> dict[str, Blob]:
    """Return by digest the files that serving an assignment's builds needs."""
    needed: dict[str, Blob] = {}
    for slot in accepted.assignment.slots:
        release = accepted.releases[slot.release]
        build = release.build(slot.build)
        blobs = (build.blob if build else None, release.golden, release.reference)
        needed |= {blob.digest: blob for blob in blobs if blob is not None}
    return needed


def _enrolled(settings: Settings) -> Identity:
    identity = IdentityStore(settings.enrolment_dir).load()
    if identity is None:
        why = "it knows no key that could have signed the bundle"
        remedy = "enrol it where it reaches a controller: vedette-agent enroll --token TOKEN"
        raise BundleRefused("not-enrolled", "this appliance belongs to no controller", why, remedy)
    return identity


def _check_for(identity: Identity, bundle: Bundle) -> None:
    agents = [part.agent for part in bundle.parts if part.kind == PartKind.ASSIGNMENT]
    if not agents:
        why = "it holds a model and says for no appliance to run it"
        raise BundleRefused("bundle-unassigned", "the bundle is not for appliances", why, _EXPORT)
    if identity.agent_id not in agents:
        why = f"it is for {len(agents)} others; this one is {identity.name} ({identity.agent_id})"
        raise BundleRefused("wrong-agent", "the bundle is not for this appliance", why, _EXPORT)


def _check_room(disk: Path, needed: int) -> None:
    free = free_bytes(disk)
    if free < needed + RESERVE_BYTES:
        raise DiskFull(f"{disk} has {free} bytes free, the bundle needs {needed} and {RESERVE_BYTES} stay reserved")


def _refused(code: str, why: str) -> BundleRefused:
    return BundleRefused(code, f"the bundle is refused: {code}", why, _REMEDIES.get(code, _EXPORT))


_EXPORT = "at the controller: vedette model export N:V FILE.bundle --for name=THIS"
_REMEDIES = {
    "old-sequence": "a newer assignment was accepted here: bring a bundle that was exported after it",
    "signature-invalid": "it is of another controller, or was changed; compare it with the file that was exported",
}


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except BundleError as exc:
        raise BundleInvalid(
            "the file cannot be imported", str(exc), "copy it once more from where it was exported"
        ) from exc
