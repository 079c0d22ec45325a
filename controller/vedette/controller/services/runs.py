"""Training runs as a service: asked for, carried out one at a time, watched, carried on after a restart.

Every step is stored before it acts (``domain.runs``). Work that a killed controller left half done is done again from
the start of its step; registering is idempotent by the run's name, so no version appears twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

from vedette.controller.domain import datasets, registry, runs
from vedette.controller.domain.disk import typed_os_errors
from vedette.controller.domain.errors import ControllerError, Refused
from vedette.controller.domain.jobs import ChildLimits, Log
from vedette.controller.domain.registry import Draft
from vedette.controller.domain.runs import NewRun, RunEvent, RunRecord, check_parameters
from vedette.controller.jobs import harness
from vedette.controller.services.datasets import DatasetService
from vedette.controller.services.registry import RegistryService, ports
from vedette.controller.services.workshop import Workshop
from vedette.models.recipes import RecipeSpec
from vedette.models.release import Build
from vedette.models.schema import FeatureSchema
from vedette.models.version import __version__
from vedette.wire.systemd import fields
from vedette.wire.views import Run, RunState

logger = logging.getLogger(__name__)

_JOB = "vedette.controller.training.child"
_LOG_FILE = "log.txt"
_SCHEMA_OF_KIND = {datasets.FLOWS: "flow", datasets.TABLE: "tensor"}
_STEPS = {
    RunState.QUEUED: "waiting for its turn",
    RunState.TRAINING: "training",
    RunState.CONVERTING: "converting",
    RunState.REGISTERING: "registering",
    RunState.SUCCEEDED: "done",
    RunState.FAILED: "failed",
}


@dataclass(slots=True)
class _Live:
    """What of an unfinished run is in memory only, and those who watch it."""

    fraction: float = 0.0
    doing: str = ""
    log: Log = field(default_factory=Log)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def tell(self, fraction: float, doing: str) -> None:
        self.fraction, self.doing = fraction, doing
        self.wake()

    def wake(self) -> None:
        """Wake everyone who waits now; those who come later wait for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()


class Runs(Protocol):
    """Keeps runs. Methods run in the database's thread; each is one transaction."""

    def add(self, new: NewRun, now: datetime) -> RunRecord:
        """Store a new run, queued, and return it with its name."""
        ...

    def save(self, record: RunRecord) -> None:
        """Store what may change of a run."""
        ...

    def get(self, run: str) -> RunRecord:
        """Return a run by name.

        Raises:
            NotFound: There is none of that name.
        """
        ...

    def all(self) -> tuple[RunRecord, ...]:
        """Return the newest runs, newest first."""
        ...

    def unfinished(self) -> tuple[RunRecord, ...]:
        """Return the runs that have not ended, oldest first."""
        ...


class Recipes(Protocol):
    """The recipes of this installation."""

    @property
    def folder(self) -> Path:
        """Where each has a folder of its name."""
        ...

    def spec(self, name: str) -> RecipeSpec:
        """Return a recipe's description.

        Raises:
            NotFound: There is none of that name; the message names the nearest.
            InvalidInput: Its description is broken.
        """
        ...


class RunService:
    """Everything the CLI does with runs. All methods belong to the controller's event loop.

    Args:
        workshop: Where the work is done.
        data: Gives snapshots.
        versions: Registers what was trained.
        shelf: Of recipes.
        store: Keeps runs.
        limits: Of the training child.
    """

    def __init__(
        self,
        workshop: Workshop,
        data: DatasetService,
        versions: RegistryService,
        shelf: Recipes,
        store: Runs,
        *,
        limits: ChildLimits | None = None,
    ) -> None:
        self._shop = workshop
        self._data = data
        self._versions = versions
        self._shelf = shelf
        self._limits = limits or ChildLimits()
        self._store = store
        self._live: dict[str, _Live] = {}

    async def start(self, recipe: str, snapshot: str, parameters: Mapping[str, str], model: str = "") -> Run:
        """Queue a run and return it at once.

        Args:
            recipe: Its name.
            snapshot: ``DATASET@N``.
            parameters: As people type them; all others keep their defaults.
            model: The line the version joins; the recipe's name when empty.

        Raises:
            InvalidInput: A name or parameter is wrong.
            NotFound: No such recipe or snapshot.
            Refused: The recipe takes another kind of rows.
        """
        spec = self._shelf.spec(recipe)
        check_parameters(spec, parameters)
        name = registry.check_name(model or recipe)
        _, manifest = await self._data.snapshot(snapshot)
        if spec.schema != _SCHEMA_OF_KIND[manifest.kind]:
            why = f"recipe {recipe} takes {spec.schema} rows, snapshot {snapshot} holds {manifest.kind}"
            raise Refused("other-kind", "the recipe cannot use the snapshot", why)
        new = NewRun(recipe, snapshot, name, parameters)
        record = await self._shop.runner.run(self._store.add, new, self._shop.clock.now())
        self._carry_out(record)
        return self._view(record)

    async def resume(self) -> None:
        """Carry on what a stopped or killed controller left unfinished. Call once, after the database is open."""
        for record in await self._shop.runner.run(self._store.unfinished):
            logger.info("run %s goes on from state %s", record.run, record.state, extra=fields(run=record.run))
            self._carry_out(record)

    async def stop(self) -> None:
        """End all work now; unfinished runs go on at the next start."""
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def cancel(self, run: str) -> Run:
        """End a run: its process is gone and it has failed when this returns. A run that has ended stays as it is.

        Raises:
            NotFound: There is none of that name.
            DiskFull: It cannot be stored; its process is gone, and the request may be repeated.
        """
        record = await self._shop.runner.run(self._store.get, run)
        live = self._live.get(run)
        if live is not None and live.task is not None:
            live.task.cancel()
            await asyncio.gather(live.task, return_exceptions=True)
            record = await self._shop.runner.run(self._store.get, run)
            if not record.is_over:
                await self._fail(record, live, "cancelled by an admin")
            self._live.pop(run, None)
        return await self.get(run)

    async def get(self, run: str) -> Run:
        """Return a run by name.

        Raises:
            NotFound: There is none of that name.
        """
        return self._view(await self._shop.runner.run(self._store.get, run))

    async def all(self) -> tuple[Run, ...]:
        """Return the newest runs, newest first, without their logs."""
        records = await self._shop.runner.run(self._store.all)
        return tuple(self._view(record, with_log=False) for record in records)

    async def watch(self, run: str) -> AsyncIterator[Run]:
        """Yield a run now and at every change, the last time when it has ended. Changes may be left out, never the end.

        Raises:
            NotFound: There is none of that name.
        """
        while True:
            live = self._live.get(run)
            changed = live.changed if live is not None else None
            seen = await self.get(run)
            yield seen
            if seen.state in runs.ENDS or changed is None:
                return
            await changed.wait()

    def _carry_out(self, record: RunRecord) -> None:
        live = self._live[record.run] = _Live(doing=_STEPS[record.state])
        for line in _read_log(self._folder(record)):  # of before a restart
            live.log.add(line)
        live.task = asyncio.create_task(self._work(record, live), name=f"run {record.run}")

    async def _work(self, record: RunRecord, live: _Live) -> None:
        try:
            while not record.is_over:
                record = await self._advance(record, live)
        except ControllerError as exc:
            await self._end_failed(record, live, ". ".join(filter(None, (exc.what, exc.why, exc.remedy))))
        except Exception:
            logger.exception("run %s failed for a reason of our own", record.run, extra=fields(run=record.run))
            await self._end_failed(record, live, "the controller failed; its log says why")
        self._live.pop(record.run, None)
        live.wake()

    async def _advance(self, record: RunRecord, live: _Live) -> RunRecord:
        """Do the work of a state and return the record of the next; what is stored is never behind what was done."""
        begun = runs.begin(record)
        if begun is None:
            times = f"{record.starts} times"
            raise Refused("run-repeats", f"the controller ended {times} while it was {record.state}")
        record = begun
        await self._shop.runner.run(self._store.save, record)
        live.tell(0.0, _STEPS[record.state])
        match record.state:
            case RunState.QUEUED:
                event = RunEvent.STARTED
            case RunState.TRAINING:
                await self._phase(record, live, "train")
                event = RunEvent.TRAINED
            case RunState.CONVERTING:
                await self._phase(record, live, "convert")
                event = RunEvent.CONVERTED
            case _:
                record = await self._register(record)
                event = RunEvent.REGISTERED
        return await self._store_step(record, event, live)

    async def _store_step(self, record: RunRecord, event: RunEvent, live: _Live) -> RunRecord:
        record = runs.step(record, event, self._shop.clock.now())
        await self._shop.runner.run(self._store.save, record)
        logger.info("run %s is %s", record.run, record.state, extra=fields(run=record.run))
        if record.is_over:
            await asyncio.to_thread(_tidy, self._folder(record))
        live.tell(0.0, _STEPS[record.state])
        return record

    async def _phase(self, record: RunRecord, live: _Live, phase: str) -> None:
        _, manifest = await self._data.snapshot(record.snapshot)
        work = self._folder(record)
        job_folder = work / phase
        with typed_os_errors(job_folder):
            job_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = {
            "phase": phase,
            "recipe": str(self._shelf.folder / record.recipe),
            "parameters": dict(record.parameters),
            "kind": manifest.kind,
            "columns": manifest.columns,
            "parts": [[str(self._shop.blobs.path(part.digest)), part.file_name] for part in manifest.parts],
            "windows": [window.to_value() for window in manifest.windows],
            "work": str(work),
        }
        try:
            await self._shop.trainers.run(
                _JOB, job_folder, arguments, limits=self._limits, follow=live.tell, log=live.log
            )  # fmt: skip
        finally:
            await asyncio.to_thread(_write_log, work, live.log)

    async def _register(self, record: RunRecord) -> RunRecord:
        _, manifest = await self._data.snapshot(record.snapshot)
        work = self._folder(record)
        said = await asyncio.to_thread(_read_result, work / "convert")
        stored = {name: await asyncio.to_thread(self._shop.blobs.put_file, work / name) for name in _ARTEFACTS}
        draft = _draft(record, said, stored, manifest)
        version = await self._versions.add(draft, f"run:{record.run}")
        return replace(record, version=version.version, metrics=draft.metrics)

    async def _end_failed(self, record: RunRecord, live: _Live, error: str) -> None:
        """Store a failure, however long the disk is full: a run that nobody works on must not look like one at work."""
        for wait_s in chain((1.0, 2.0, 4.0, 8.0, 15.0), repeat(30.0)):
            try:
                await self._fail(record, live, error)
            except ControllerError as exc:
                text, extra = "the failure of run %s is not stored: %s; %s", fields(run=record.run, code=exc.code)
                logger.warning(text, record.run, exc.what, exc.why, extra=extra)
                live.tell(0.0, f"failed, which is not stored yet: {exc.what}")
                await asyncio.sleep(wait_s)
            else:
                return

    async def _fail(self, record: RunRecord, live: _Live, error: str) -> None:
        failed = runs.step(replace(record, error=error[:2000]), RunEvent.FAILED, self._shop.clock.now())
        await self._shop.runner.run(self._store.save, failed)
        await asyncio.to_thread(_tidy, self._folder(record))
        logger.warning("run %s failed: %s", record.run, error, extra=fields(run=record.run))
        live.tell(0.0, _STEPS[RunState.FAILED])

    def _folder(self, record: RunRecord) -> Path:
        return self._shop.runs / record.run

    def _view(self, record: RunRecord, *, with_log: bool = True) -> Run:
        live = self._live.get(record.run)
        if live is None or record.is_over:
            lines = [line.decode("utf-8", "replace") for line in _read_log(self._folder(record))] if with_log else []
            fraction, doing = 0.0, _STEPS[record.state]
        else:
            lines, fraction, doing = list(live.log.lines), live.fraction, live.doing
        return runs.view(record, fraction=fraction, doing=doing, log_tail=tuple(lines[-runs.LOG_TAIL :]))


_ARTEFACTS = ("model.onnx", "golden.bin", "reference.bin", "evaluation.json")


def _draft(record: RunRecord, said: Mapping[str, Any], stored: Mapping[str, Any], manifest: datasets.Manifest) -> Draft:
    schema = FeatureSchema.from_bytes(said["schema"].encode())
    return Draft(
        model=record.model,
        kind=said["kind"],
        schema=schema,
        inputs=registry.specs(ports(said["inputs"])),
        outputs=registry.specs(ports(said["outputs"])),
        row_wise=said["row_wise"],
        labels=tuple(said["labels"]),
        threshold=said["threshold"],
        builds=(Build(registry.ONNX_FP32, stored["model.onnx"], registry.EXACT, registry.REQUIRES),),
        golden=stored["golden.bin"],
        reference=stored["reference.bin"],
        metrics=said["metrics"],
        lineage={
            "origin": "run",
            "run": record.run,
            "recipe": record.recipe,
            "snapshot": record.snapshot,
            "snapshot_digest": manifest.digest,
            "evaluation": stored["evaluation.json"].digest,
            "vedette": __version__,
        }
        | {f"parameter.{name}": value for name, value in record.parameters.items()},
    )


def _read_result(folder: Path) -> dict[str, Any]:
    """Return what the conversion said; it was stored before the state that reads it."""
    return dict(json.loads((folder / harness.RESULT_FILE).read_bytes())["result"])


def _write_log(work: Path, log: Log) -> None:
    try:
        harness.replace(work / _LOG_FILE, "".join(line + "\n" for line in log.lines).encode())
    except OSError as exc:  # a full disk, say: the log is not worth a run
        logger.warning("the log of %s is not kept: %s", work.name, exc, extra=fields(run=work.name))


def _read_log(work: Path) -> list[bytes]:
    try:
        return (work / _LOG_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []


def _tidy(work: Path) -> None:
    """Remove what only an unfinished run needs; the log stays."""
    for path in work.glob("*"):
        if path.name == _LOG_FILE:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
