"""The models of this appliance: which build answers in each slot, and how the next one takes its place.

Rules: a request is answered wholly by one build. A candidate is fetched, verified, loaded, tested and warmed beside the
active build; then the switch is stored, then one pointer moves, then the old worker answers what it was asked for and
ends. Nothing here waits for a controller; ``start`` brings up what ran last. A build that dies or hangs too often is
quarantined by its digest, in the same transaction that makes the previous one active. When the disk is full the
appliance still falls back in memory, and stores that as soon as it can: serving goes before book-keeping.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from vedette.agent.adapters.host.facts import runtime_versions
from vedette.agent.adapters.inference.ring import Array, Plan
from vedette.agent.adapters.inference.runner import Retired, Runner, Strike
from vedette.agent.adapters.inference.worker import RowPace, Worker, WorkerSettings
from vedette.agent.adapters.inference.worker_process import Child, Nursery
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.errors import (
    AgentError,
    BlobCorrupt,
    DeadlineExceeded,
    DiskFull,
    InferenceError,
    InstallCode,
    InstallFailed,
    InvalidRequest,
    ModelFailed,
    ModelRefused,
    NoActiveModel,
    OutOfMemory,
    SpawnFailed,
    StateError,
    WorkerCrashed,
    WorkerTimeout,
)
from vedette.agent.domain.fitness import misfit
from vedette.agent.domain.model_stats import ModelStats
from vedette.agent.domain.priority import Priority
from vedette.agent.domain.slots import (
    Event,
    Facts,
    SlotRecord,
    Step,
    advance,
    build_ref,
    is_bad,
    next_step,
    roll_back,
)
from vedette.models.assignment import MAX_SLOTS, SlotAssignment
from vedette.models.errors import ModelsError
from vedette.models.golden import Golden, mismatch
from vedette.models.profile import latency_percentile
from vedette.models.release import Blob, Release
from vedette.wire.systemd import fields
from vedette.wire.values import BuildRef, SlotStatus

logger = logging.getLogger(__name__)

Fetch = Callable[[Blob], Awaitable[Path]]
"""Brings a blob into the folder of :class:`Blobs`. Raises DiskFull, BlobCorrupt or another AgentError."""

_HOST_WAITS_S = (1.0, 5.0, 30.0)
_CODES: tuple[tuple[type[Exception], InstallCode], ...] = (
    (DiskFull, InstallCode.DISK_FULL),
    (StateError, InstallCode.STATE_FAILED),
    (BlobCorrupt, InstallCode.DIGEST_MISMATCH),
    (SpawnFailed, InstallCode.HOST_FAILED),
    (ModelRefused, InstallCode.MODEL_REFUSED),
    (InvalidRequest, InstallCode.MODEL_REFUSED),  # golden samples that do not fit the release's own tensors
    (ModelsError, InstallCode.MODEL_REFUSED),  # golden samples that are none
    (OutOfMemory, InstallCode.OUT_OF_MEMORY),
    (WorkerTimeout, InstallCode.WORKER_TIMEOUT),
    (WorkerCrashed, InstallCode.WORKER_CRASHED),
    (ModelFailed, InstallCode.SELF_TEST_FAILED),
)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How models are served."""

    worker: WorkerSettings = field(default_factory=WorkerSettings)
    strikes: int = 3  # deaths, hangs or breaches of the budget …
    strike_window_s: float = 300.0  # … within which a build is quarantined
    drain_s: float = 30.0  # for requests of a build that was replaced
    settle_s: float = 30.0  # a request waits so long for a fallen build's successor
    spare: bool = True  # a warm process that workers are forked from
    disk_bytes: int = 4 * 1024**3  # of all models; those in no slot are kept while they fit
    reserve_bytes: int = 16 * 1024 * 1024  # of disk left free by downloads, for the state


class EventKind(StrEnum):
    """What happened in a slot."""

    PROGRESS = "progress"
    INSTALLED = "installed"
    FAILED = "failed"
    RESTARTED = "restarted"  # a worker died and is being replaced
    FELL_BACK = "fell-back"


@dataclass(frozen=True, slots=True)
class ServingEvent:
    """Something a status should tell of."""

    kind: EventKind
    slot: str
    build: BuildRef | None
    code: str = ""
    text: str = ""


class ActiveModel:
    """A build that answers."""

    def __init__(self, build: SlotAssignment, release: Release, runner: Runner) -> None:
        self.build = build
        self.release = release
        self.runner = runner
        self.stats = ModelStats()
        self.tested_s: float | None = None  # monotonic, of the self-test that its worker passed
        runner.on_batch = self.stats.add_batch

    @property
    def build_digest(self) -> str:
        """The build's digest."""
        return self.build.build

    @property
    def ref(self) -> BuildRef:
        """How a status names it."""
        return BuildRef(model=self.build.model, version=self.build.version, build=self.build.build)

    @property
    def restarts(self) -> int:
        """How often its worker was replaced."""
        return self.runner.restarts


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs and the one build that gave them."""

    outputs: dict[str, Array]
    release: Release
    build_digest: str
    latency_ms: float


class _Slot:
    def __init__(self, record: SlotRecord) -> None:
        self.record = record
        self.model: ActiveModel | None = None
        self.loaded: ActiveModel | None = None  # the tested candidate
        self.lock = asyncio.Lock()  # of installations
        self.settling: asyncio.Task[None] | None = None  # a fallback, or a bring-up that the host did not allow yet
        self.strikes: list[float] = []
        self.begun_s = 0.0  # when the installation that goes on, or was the last, began
        self.told = ("", "")  # build and code of the failure that was logged last; repeated tries log it once


class Serving:
    """Every slot of this appliance. One event loop, one thread.

    Args:
        state: Where slots are stored.
        blobs_dir: The content-addressed files; see :class:`Blobs`.
        settings: How to serve.
        clock: Judges strikes and dates quarantines.
        on_event: Called on the loop when a status should be sent; must not raise. May be set later.

    Raises:
        StateError: The folders cannot be made or the state not read.
    """

    def __init__(
        self,
        state: State,
        blobs_dir: Path,
        settings: ServingSettings,
        clock: Clock,
        on_event: Callable[[ServingEvent], None] = lambda event: None,
    ) -> None:
        self._state = state
        self.blobs = Blobs(blobs_dir)
        self._settings = settings
        self._clock = clock
        self.on_event = on_event
        self._workdir = blobs_dir / "empty"
        self._slots = {name: _Slot(record) for name, record in state.slots.items()}
        self._quarantine = {build: found.reason for build, found in state.quarantine.items()}
        self._unstored: list[tuple[SlotRecord, str, str, datetime]] = []
        self._releases: dict[str, Release] = {}
        # Now, not when a build asks: an upgrade replaces the files that say so under the running agent.
        self.runtimes = runtime_versions()
        worker = settings.worker
        self._nursery = Nursery(self._workdir, worker.load_timeout_s, worker.admit) if settings.spare else None
        self._stopping = False
        self.models_damaged = 0  # active builds whose file was found to be another than it was

    async def start(self) -> None:
        """Bring up the last good build of every slot from this disk alone. Never raises for a bad model."""
        await asyncio.gather(*(self._start_slot(slot) for slot in self._slots.values()))
        self.collect_garbage()

    async def _start_slot(self, slot: _Slot) -> None:
        if not await self._bring_up(slot):
            slot.settling = asyncio.create_task(self._settle(slot))

    async def stop(self) -> None:
        """Answer what was asked for and end every worker. Cancel installations first; they go on after a restart."""
        self._stopping = True
        await asyncio.gather(*(self._stop_slot(slot) for slot in self._slots.values()))
        if self._nursery is not None:
            await self._nursery.close()

    async def _stop_slot(self, slot: _Slot) -> None:
        if slot.settling is not None:
            slot.settling.cancel()
            await asyncio.gather(slot.settling, return_exceptions=True)
        models = [model for model in (slot.model, slot.loaded) if model is not None]
        slot.model = slot.loaded = None
        await asyncio.gather(*(model.runner.retire(self._settings.drain_s) for model in models))

    def active(self, slot: str) -> ActiveModel | None:
        """Return the build that answers in a slot now."""
        found = self._slots.get(slot)
        return found.model if found else None

    @property
    def actives(self) -> dict[str, ActiveModel]:
        """Every slot that answers now, by name."""
        return {name: slot.model for name, slot in self._slots.items() if slot.model is not None}

    @property
    def unsettled(self) -> frozenset[str]:
        """Slots with a candidate that is on its way or failed."""
        return frozenset(name for name, slot in self._slots.items() if not slot.record.is_settled)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The worker processes."""
        models = [model for slot in self._slots.values() for model in (slot.model, slot.loaded) if model]
        return tuple(pid for model in models for pid in model.runner.pids)

    @property
    def process_pids(self) -> tuple[int, ...]:
        """Every process beside this one, for accounts of memory and CPU: the workers, and what they are forked from."""
        spare = self._nursery.pid if self._nursery is not None else None
        return self.worker_pids if spare is None else (*self.worker_pids, spare)

    @property
    def quarantine(self) -> Mapping[str, str]:
        """Builds that this appliance will not try again, with the reason."""
        return self._quarantine

    def reference(self, slot: str) -> bytes | None:
        """Return the reference profile of a slot's active release; None without one, or when its file is damaged."""
        model = self.active(slot)
        if model is None or model.release.reference is None:
            return None
        try:
            return self.blobs.read(model.release.reference)
        except (BlobCorrupt, SpawnFailed) as exc:
            logger.warning("no reference profile for slot %s: %s", slot, exc, extra=_known(model.build))
            return None

    # Answering

    async def infer(
        self,
        slot: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        is_counted: bool = True,
        priority: Priority = Priority.FLOW,
        deadline_s: float | None = None,
    ) -> Answer:
        """Answer a request by the slot's active build, wholly by one.

        Args:
            slot: Where.
            inputs: Arrays by input name; strings as object arrays of ``bytes``.
            outputs: Those asked for; none is all.
            is_counted: Whether its rows are work; what explains a verdict is not.
            priority: Who is answered first, and refused last, where not all can be.
            deadline_s: How long the caller waits; None is as long as the model's own pace allows a batch.

        Raises:
            NoActiveModel: The slot serves nothing.
            InvalidRequest: The inputs do not fit.
            Overloaded: Too many requests wait.
            DeadlineExceeded: ``deadline_s`` went by; nobody is to blame.
            ModelFailed, OutOfMemory, WorkerTimeout, WorkerCrashed: This request got no answer; others do.
        """
        if deadline_s is None:
            return await self._infer(slot, inputs, outputs, is_counted, priority)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._infer(slot, inputs, outputs, is_counted, priority)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"no answer in {deadline_s:g} s, the caller's deadline") from exc

    async def _infer(
        self, slot: str, inputs: Mapping[str, Array], outputs: Sequence[str], is_counted: bool, priority: Priority
    ) -> Answer:
        started = time.perf_counter()
        while True:
            model = self.active(slot) or await self.successor(slot)
            try:
                found = await model.runner.infer(inputs, outputs=outputs, priority=priority)
                if model.release.kind != "tensor":
                    _check_rows(found, _rows(inputs))
            except Retired as exc:
                if self.active(slot) is model:
                    raise NoActiveModel(f"slot {slot!r} is being stopped") from exc
                continue
            except InvalidRequest:
                raise
            except InferenceError:
                model.stats.fail((time.perf_counter() - started) * 1e3)
                raise
            latency_ms = (time.perf_counter() - started) * 1e3
            if is_counted:
                model.stats.add(_rows(inputs) if model.release.row_wise else 1, latency_ms)
            return Answer(found, model.release, model.build_digest, latency_ms)

    async def successor(self, slot: str) -> ActiveModel:
        """Wait for the build that takes a fallen one's place."""
        found = self._slots.get(slot)
        if found is not None and found.settling is not None and not self._stopping:
            await asyncio.wait({found.settling}, timeout=self._settings.settle_s)
        model = self.active(slot)
        if model is None:
            reason = found.record.reason if found else ""
            raise NoActiveModel(f"slot {slot!r} has no active model" + (f": {reason}" if reason else ""))
        return model

    # Installing

    async def install(self, target: SlotAssignment, release: Release, fetch: Fetch) -> None:
        """Make a build of a (verified) release the active one of a slot; return at once when it is already.

        May be called again after any failure, cancellation or restart: it goes on where it was.

        Raises:
            InstallFailed: It did not become active; what served before serves on.
        """
        slot = self._slots.setdefault(target.slot, _Slot(SlotRecord(target.slot)))
        async with slot.lock:
            try:
                slot.begun_s = self._clock.monotonic()
                while (step := self._next(slot, target)) is not Step.NOTHING:
                    await self._take(step, slot, target, release, fetch)
            except InstallFailed as exc:
                _log_not_installed(slot, target, exc)
                self._emit(EventKind.FAILED, slot, target, exc.code, exc.reason)
                raise
            finally:
                loaded, slot.loaded = slot.loaded, None
                if loaded is not None:
                    await loaded.runner.abandon()

    async def remove(self, slot: str) -> None:
        """Empty a slot that is wanted no more: what serves answers what it was asked for and ends.

        Raises:
            InstallFailed: It could not be stored; what served serves on.
        """
        found = self._slots.get(slot)
        if found is None:
            return
        async with found.lock:
            was = found.record.active
            self._forget(found)
            logger.info("slot %s is empty: nothing is wanted in it any more", slot, extra=_known(was, slot=slot))
            if found.settling is not None:
                found.settling.cancel()
            old, found.model = found.model, None
            self._emit(EventKind.PROGRESS, found, None)
            if old is not None:
                await asyncio.shield(old.runner.retire(self._settings.drain_s))
            self.collect_garbage()

    def _next(self, slot: _Slot, target: SlotAssignment) -> Step:
        facts = Facts(quarantined=target.build in self._quarantine, loaded=slot.loaded is not None)
        return next_step(slot.record, target, facts)

    async def _take(self, step: Step, slot: _Slot, target: SlotAssignment, release: Release, fetch: Fetch) -> None:
        match step:
            case Step.BEGIN:
                self._store(slot, advance(slot.record, Event.WANTED, target=target), release.to_bytes())
            case Step.DROP:
                self._store(slot, advance(slot.record, Event.DROPPED))
            case Step.FETCH:
                await self._fetch(slot, target, release, fetch)
            case Step.LOAD:
                await self._load_candidate(slot, target, release)
            case Step.SWITCH:
                await self._switch(slot)
            case Step.GIVE_UP:
                why = f"{slot.record.saves} tries did not end; the agent was killed or restarted during each"
                raise self._failed(slot, InstallFailed(InstallCode.GAVE_UP, why))
            case _:
                raise InstallFailed(InstallCode.QUARANTINED, self._quarantine[target.build])
        self._emit(EventKind.PROGRESS, slot, target)

    async def _fetch(self, slot: _Slot, target: SlotAssignment, release: Release, fetch: Fetch) -> None:
        reason = misfit(release, release.build(target.build), self.runtimes)
        if release.digest != target.release:
            reason = f"the release given is {release.digest}, the assignment names {target.release}"
        if reason is not None:
            raise self._failed(slot, InstallFailed(InstallCode.MODEL_REFUSED, reason, blames_build=False))
        self._make_room(slot, release, target)
        for blob in _needed(release, target):
            try:
                await self._fetch_blob(blob, fetch)
            except InstallFailed as exc:
                if exc.code is InstallCode.DIGEST_MISMATCH:
                    raise self._failed(slot, exc) from exc
                # The candidate stays, and with it the part of the file that is there: the next try goes on from it.
                slot.record = replace(slot.record, reason=str(exc))
                raise
        self._store(slot, advance(slot.record, Event.FETCHED))

    def _make_room(self, slot: _Slot, release: Release, target: SlotAssignment) -> None:
        """Let builds of the past go until a candidate fits the budget beside what is in use."""
        in_use = self._in_use()
        if in_use is None:
            return  # what is not known to be superfluous stays
        sizes = in_use | {blob.digest: blob.size for blob in _needed(release, target)}
        wanted, most = sum(sizes.values()), self._settings.disk_bytes
        if wanted > most:
            text = f"the builds in use and this one take {wanted} bytes, limit {most} (budget.disk)"
            slot.record = replace(slot.record, reason=f"{InstallCode.DISK_FULL}: {text}")
            raise InstallFailed(InstallCode.DISK_FULL, text)
        missing = sum(blob.size - self.blobs.bytes_done(blob) for blob in _needed(release, target))
        self.blobs.collect(sizes, most - missing)

    async def _fetch_blob(self, blob: Blob, fetch: Fetch) -> None:
        if await self._is_whole(blob):
            return
        self._check_room(blob)
        try:
            await fetch(blob)
        except (DiskFull, StateError, BlobCorrupt) as exc:
            raise InstallFailed(_code(exc), str(exc)) from exc
        except AgentError as exc:
            raise InstallFailed(InstallCode.DOWNLOAD_FAILED, str(exc)) from exc
        if not await self._is_whole(blob):
            raise InstallFailed(InstallCode.DIGEST_MISMATCH, f"what was downloaded has not the digest {blob.digest}")

    async def _is_whole(self, blob: Blob) -> bool:
        try:
            return await asyncio.to_thread(self.blobs.is_whole, blob)
        except SpawnFailed as exc:
            raise InstallFailed(InstallCode.HOST_FAILED, str(exc)) from exc

    def _check_room(self, blob: Blob) -> None:
        folder, reserve = self.blobs.path(blob.digest).parent, self._settings.reserve_bytes
        try:
            self.blobs.make_folders()
            disk = os.statvfs(folder)
        except (DiskFull, StateError) as exc:
            raise InstallFailed(_code(exc), str(exc)) from exc
        except OSError as exc:
            raise InstallFailed(InstallCode.STATE_FAILED, f"{folder}: {exc.strerror}") from exc
        free, wanted = disk.f_bavail * disk.f_frsize, blob.size - self.blobs.bytes_done(blob)
        if free < wanted + reserve:
            free += self._collect(0)  # what was kept in case it is wanted again stands in the way of what is
        if free < wanted + reserve:
            text = f"{folder} has {free} bytes free; {wanted} are to come and {reserve} stay reserved"
            raise InstallFailed(InstallCode.DISK_FULL, text)

    async def _load_candidate(self, slot: _Slot, target: SlotAssignment, release: Release) -> None:
        self._store(slot, advance(slot.record, Event.LOADING))
        try:
            model = await self._load(slot, target, release)
        except InstallFailed as exc:
            raise self._failed(slot, exc) from exc
        slot.loaded = model
        self._store(slot, advance(slot.record, Event.PASSED))

    async def _switch(self, slot: _Slot) -> None:
        self._store(slot, advance(slot.record, Event.SWITCHED))
        old, slot.model, slot.loaded = slot.model, slot.loaded, None
        slot.strikes.clear()
        slot.told = ("", "")
        _log_switched(slot.record, self._clock.monotonic() - slot.begun_s)
        self._emit(EventKind.INSTALLED, slot, slot.record.active)
        if old is not None:
            await asyncio.shield(old.runner.retire(self._settings.drain_s))
        self.collect_garbage()

    def _store(self, slot: _Slot, record: SlotRecord, release: bytes | None = None) -> None:
        try:
            self._store_leftovers()
            self._state.save_slot(record, release)
        except (DiskFull, StateError) as exc:
            raise InstallFailed(_code(exc), str(exc)) from exc
        slot.record = record

    def _forget(self, slot: _Slot) -> None:
        try:
            self._store_leftovers()
            self._state.remove_slot(slot.record.slot)
        except (DiskFull, StateError) as exc:
            raise InstallFailed(_code(exc), str(exc)) from exc
        slot.record = SlotRecord(slot.record.slot)

    def _failed(self, slot: _Slot, failed: InstallFailed) -> InstallFailed:
        """Store that the candidate failed, and that its build is bad when the failure says so."""
        candidate = slot.record.candidate
        record = advance(slot.record, Event.FAILED, reason=str(failed))
        self._store_anyway(slot, record, candidate if failed.blames_build else None, str(failed))
        self.collect_garbage()
        return failed

    def _store_anyway(self, slot: _Slot, record: SlotRecord, bad: SlotAssignment | None, reason: str) -> None:
        """Store a record whatever the disk says: what could not be stored holds in memory and is stored later."""
        slot.record = record
        since = self._clock.now()
        if bad is not None:
            self._quarantine[bad.build] = reason
        self._unstored.append((record, bad.build if bad else "", reason, since))
        try:
            self._store_leftovers()
        except (DiskFull, StateError) as exc:
            extra = fields(code=_code(exc), slot=record.slot)
            logger.warning("%s; slot %s goes on unstored", exc, record.slot, extra=extra)

    def _store_leftovers(self) -> None:
        while self._unstored:
            record, build, reason, since = self._unstored[0]
            if build:
                self._state.save_slot_and_quarantine(record, build, reason, since)
            else:
                self._state.save_slot(record)
            del self._unstored[0]

    # Loading

    async def _load(self, slot: _Slot, build: SlotAssignment, release: Release, *, golden: bool = True) -> ActiveModel:
        """Return a build loaded, tested and warmed.

        Raises:
            InstallFailed: It is no good, or the host cannot.
        """
        runner: Runner | None = None
        try:
            runner = await self._run(build, release)
            if golden:
                await self._self_test(runner, build, release)
        except BaseException as exc:
            if runner is not None:
                await runner.abandon()
            if isinstance(exc, AgentError | ModelsError) and not isinstance(exc, InstallFailed):
                raise InstallFailed(_code(exc), str(exc)) from exc
            raise
        model = ActiveModel(build, release, runner)
        model.tested_s = self._clock.monotonic() if golden else None
        runner.on_strike = lambda strike: self._struck(slot, model, strike)
        return model

    async def _run(self, build: SlotAssignment, release: Release) -> Runner:
        wanted = release.build(build.build)
        reason = misfit(release, wanted, self.runtimes)
        if wanted is None or reason is not None:
            raise InstallFailed(InstallCode.MODEL_REFUSED, str(reason), blames_build=False)
        settings = self._settings.worker
        plan = Plan.of(
            release.inputs,
            release.outputs,
            max_rows=settings.max_rows,
            variable_bytes=settings.variable_bytes,
            row_wise=release.row_wise,
        )

        pace = RowPace()

        async def spawn() -> Worker:
            model = await asyncio.to_thread(self.blobs.sealed, wanted.blob)
            try:
                return await Worker.start(model, plan, settings, self._spawn, pace)
            finally:
                os.close(model)

        for blob in _needed(release, build):
            self.blobs.used(blob)
        runner = Runner(plan, settings, spawn)
        try:
            await runner.start()
        except WorkerCrashed as exc:
            # One death may be the host's doing, of its OOM killer for one; two are the model's.
            logger.info("%s; trying once more", exc, extra=_known(build, _code(exc)))
            await runner.start()
        return runner

    async def _spawn(self) -> Child:
        if self._nursery is not None:
            return await self._nursery.child()
        settings = self._settings.worker
        return await Child.start(self._workdir, settings.load_timeout_s, settings.admit)

    async def _self_test(self, runner: Runner, build: SlotAssignment, release: Release) -> None:
        """Run the golden samples, which also warms the worker for one row and for many."""
        golden = Golden.from_bytes(await asyncio.to_thread(self.blobs.read, release.golden))
        wanted = release.build(build.build)
        limit_s = self._settings.worker.test_deadline_s
        for sample in golden.samples:
            got = await runner.infer(sample.inputs, limit_s=limit_s)
            found = mismatch(sample.outputs, got, wanted.tolerance) if wanted else "no such build"
            if found is not None:
                raise InstallFailed(InstallCode.SELF_TEST_FAILED, found)
        if release.row_wise and all(spec.shape[:1] == (-1,) for spec in release.inputs):
            await runner.infer({name: array[:1] for name, array in golden.inputs.items()}, limit_s=limit_s)

    async def _bring_up(self, slot: _Slot) -> bool:
        """Make the stored active build answer, or the one before it; return False when the host did not allow it."""
        while (build := slot.record.active) is not None:
            begun_s = self._clock.monotonic()
            try:
                release = self._release(build.release)
                golden = await self._is_whole(release.golden)
                if not golden:
                    text = "golden samples of %s are damaged: starting it without its self-test"
                    logger.warning(text, release.name, extra=_known(build))
                model = await self._load(slot, build, release, golden=golden)
            except InstallFailed as exc:
                if exc.code is InstallCode.HOST_FAILED:
                    logger.warning("slot %s cannot start: %s", build.slot, exc, extra=_known(build, exc.code))
                    return False
                if slot.record.active == build:
                    self._fall(slot, build, exc)
                continue
            if slot.record.active == build and slot.model is None and not self._stopping:
                slot.model = model
                text = "slot %s serves %s again, loaded and tested in %.1f s"
                took_s = self._clock.monotonic() - begun_s
                logger.info(text, build.slot, _name(build), took_s, extra=_known(build))
            else:  # a newer build was switched to meanwhile
                await model.runner.abandon()
            return True
        return True

    async def _settle(self, slot: _Slot) -> None:
        """Bring a slot up, as often as the host makes necessary."""
        try:
            attempt = 0
            while not await self._bring_up(slot):
                await self._clock.sleep(_HOST_WAITS_S[min(attempt, len(_HOST_WAITS_S) - 1)])
                attempt += 1
        finally:
            slot.settling = None
        self._emit(EventKind.PROGRESS, slot, slot.record.active)

    # Falling back

    def _struck(self, slot: _Slot, model: ActiveModel, strike: Strike) -> None:
        if slot.model is not model or self._stopping:
            return
        code = _code(strike.error)
        extra = _known(model.build, code)
        logger.warning("%s: %s", _name(model.build), strike.error, extra=extra)
        self._emit(EventKind.RESTARTED, slot, model.build, code, str(strike.error))
        now = self._clock.monotonic()
        slot.strikes = [at for at in slot.strikes if now - at <= self._settings.strike_window_s] + [now]
        bad = is_bad(slot.strikes, now, most=self._settings.strikes, window_s=self._settings.strike_window_s)
        if strike.conclusive or bad:
            text = f"{strike.error} ({len(slot.strikes)} failures in {self._settings.strike_window_s:g} s)"
            slot.model = None
            slot.strikes.clear()
            self._fall(slot, model.build, InstallFailed(code, text))
            slot.settling = asyncio.create_task(self._replace(slot, model))

    async def _replace(self, slot: _Slot, fallen: ActiveModel) -> None:
        await fallen.runner.abandon()
        await self._settle(slot)

    def _fall(self, slot: _Slot, build: SlotAssignment, failed: InstallFailed) -> None:
        """Store that the active build is not to run any more and that the previous one is active."""
        self.models_damaged += failed.code is InstallCode.DIGEST_MISMATCH
        record = roll_back(slot.record, str(failed))
        text = "slot %s: %s does not serve any more: %s; next is %s"
        then = _name(record.active) if record.active else "nothing, for there is none before it"
        logger.error(text, build.slot, _name(build), failed, then, extra=_known(build, failed.code))
        self._store_anyway(slot, record, build if failed.blames_build else None, str(failed))
        self._emit(EventKind.FELL_BACK, slot, build, failed.code, failed.reason)

    def _release(self, digest: str) -> Release:
        """Return a stored release.

        Raises:
            InstallFailed: It is not there or not readable.
        """
        found = self._releases.get(digest)
        if found is not None:
            return found
        try:
            body = self._state.release(digest)
            release = Release.from_bytes(body) if body is not None else None
        except (StateError, DiskFull, ModelsError) as exc:
            raise InstallFailed(InstallCode.STATE_FAILED, str(exc)) from exc
        if release is None or release.digest != digest:
            raise InstallFailed(InstallCode.STATE_FAILED, f"release {digest} is not in the state")
        self._releases = {**self._releases, digest: release}
        return release

    # Housekeeping

    def collect_garbage(self) -> int:
        """Remove files that no slot's active, previous or candidate build needs, over the budget; return bytes freed.

        After a loss of the state all are kept until an assignment is applied: the same builds come again, and are not
        fetched again.
        """
        return 0 if self._state.is_anew else self._collect(self._settings.disk_bytes)

    def _collect(self, most_bytes: int) -> int:
        in_use = self._in_use()
        if in_use is None:
            return 0
        builds = {build.release for slot in self._slots.values() for build in slot.record.named}
        self._releases = {digest: self._releases[digest] for digest in builds}
        return self.blobs.collect(in_use, most_bytes, drop=self._quarantine)

    def _in_use(self) -> dict[str, int] | None:
        """Return the sizes of the files that slots need, by digest; None when that cannot be known."""
        builds = [build for slot in self._slots.values() for build in slot.record.named]
        try:
            return {blob.digest: blob.size for build in builds for blob in _needed(self._release(build.release), build)}
        except InstallFailed as exc:
            logger.warning("files are kept: %s", exc, extra=fields(code=exc.code))
            return None

    def statuses(self) -> tuple[SlotStatus, ...]:
        """Return how every slot stands that has, or failed to get, a build; at most MAX_SLOTS, serving first."""
        known = [slot for slot in self._slots.values() if slot.record != SlotRecord(slot.record.slot)]
        known.sort(key=lambda slot: (not slot.record.named, slot.record.slot))
        return tuple(self._status(slot) for slot in known[:MAX_SLOTS])

    def _status(self, slot: _Slot) -> SlotStatus:
        record, model = slot.record, slot.model
        done, total = self._progress(record.candidate)
        counts = model.stats.latency_counts if model else ()
        return SlotStatus(
            slot=record.slot,
            state=record.stage,
            active=build_ref(record.active),
            previous=build_ref(record.previous),
            candidate=build_ref(record.candidate),
            candidate_bytes_done=done,
            candidate_bytes_total=total,
            reason=record.reason,
            quarantined=tuple(sorted(self._quarantine))[:256],
            worker_restarts=model.restarts if model else 0,
            rows=model.stats.rows if model else 0,
            latency_p50_ms=latency_percentile(counts, 0.5) if model else 0.0,
            latency_p99_ms=latency_percentile(counts, 0.99) if model else 0.0,
        )

    def _progress(self, candidate: SlotAssignment | None) -> tuple[int, int]:
        if candidate is None:
            return 0, 0
        try:
            blobs = list(_needed(self._release(candidate.release), candidate))
        except InstallFailed:
            return 0, 0
        return sum(self.blobs.bytes_done(blob) for blob in blobs), sum(blob.size for blob in blobs)

    def _emit(self, kind: EventKind, slot: _Slot, build: SlotAssignment | None, code: str = "", text: str = "") -> None:
        self.on_event(ServingEvent(kind, slot.record.slot, build_ref(build), code, text))


def _log_switched(record: SlotRecord, took_s: float) -> None:
    build, before = record.active, record.previous
    if build is not None:
        text = "slot %s serves %s (build %s), fetched, tested and switched to in %.1f s; %s"
        place = f"{_name(before)} stays at hand" if before else "it is the first there"
        logger.info(text, build.slot, _name(build), build.build[:19], took_s, place, extra=_known(build))


def _log_not_installed(slot: _Slot, target: SlotAssignment, failed: InstallFailed) -> None:
    """Log why a build was not installed; when the next try ends alike, only for who debugs."""
    told = (target.build, str(failed.code))
    level = logging.DEBUG if told == slot.told else logging.WARNING
    slot.told = told
    text = "slot %s: %s was not installed: %s"
    logger.log(level, text, target.slot, _name(target), failed, extra=_known(target, failed.code))


def _name(build: SlotAssignment) -> str:
    return f"{build.model}:{build.version}"


def _known(build: SlotAssignment | None, code: str = "", slot: str = "") -> dict[str, Mapping[str, str]]:
    """Return what a log call on a build, or on a slot that had none, knows of it."""
    if build is None:
        return fields(code=code, slot=slot)
    return fields(code=code, slot=build.slot, model=_name(build), build=build.build)


def _code(exc: Exception) -> InstallCode:
    return next((code for kind, code in _CODES if isinstance(exc, kind)), InstallCode.HOST_FAILED)


def _needed(release: Release, build: SlotAssignment) -> Iterable[Blob]:
    """Return the files that serving a build needs."""
    found = release.build(build.build)
    return [blob for blob in (found.blob if found else None, release.golden, release.reference) if blob is not None]


def _check_rows(outputs: Mapping[str, Array], rows: int) -> None:
    """Make sure that an answer to rows has as many; only the release says so, and the model is whoever's.

    Raises:
        ModelFailed: It has not.
    """
    wrong = {name: list(array.shape) for name, array in outputs.items() if array.shape[:1] != (rows,)}
    if wrong:
        raise ModelFailed(f"outputs have shapes {wrong} for {rows} rows")


def _rows(inputs: Mapping[str, Array]) -> int:
    first = next(iter(inputs.values()))
    return len(first) if first.ndim else 1
