"""The wiring of a running agent: which parts there are, in which order they start and how they stop.

Order: what stores, then what takes flows, then what serves, then what talks. So flows are taken from the first second,
models serve before anybody is asked, and the link is last because nothing needs it. On a signal the order is turned
round, and what was received is still scored, written and spooled.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio loads it at its first use; see docs/agent.md, "Upgrades"
import encodings.idna  # noqa: F401 - the same for the first host name
import fcntl
import http.client
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vedette.agent.adapters.clock import SystemClock
from vedette.agent.adapters.fleet.artifacts import Downloads
from vedette.agent.adapters.fleet.bundle_import import PAGE as IMPORT_PAGE
from vedette.agent.adapters.fleet.bundle_import import standing_of
from vedette.agent.adapters.fleet.identity import Identity, IdentityDamaged, IdentityStore
from vedette.agent.adapters.fleet.inbox import Inbox, Watch
from vedette.agent.adapters.fleet.link import Link
from vedette.agent.adapters.fleet.reconciler import Reconciler, current_status
from vedette.agent.adapters.fleet.telemetry import Reporter
from vedette.agent.adapters.host.facts import host_facts
from vedette.agent.adapters.host.pressure import Budgets, PressureWatch, StrainGauge
from vedette.agent.adapters.host.usage import UsageMeter
from vedette.agent.adapters.inference.serving import EventKind, ServingEvent
from vedette.agent.adapters.oip.server import InferenceServer
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sources.collector import Collector, CollectorFailed
from vedette.agent.adapters.sources.templates import TemplateFile
from vedette.agent.adapters.storage.blobs import storage_error
from vedette.agent.adapters.storage.files import make_folder
from vedette.agent.adapters.storage.images import copied
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.adapters.storage.state import State
from vedette.agent.adapters.telling.figures import Figures
from vedette.agent.adapters.telling.http import AddressInUse, HttpServer, Page
from vedette.agent.adapters.telling.standing import (
    flow_standing,
    model_standing,
    pressure_standing,
    process_standing,
    spool_standing,
)
from vedette.agent.domain.advice import EXIT_REFUSED, AdvisedError
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.bandwidth import Bandwidth
from vedette.agent.domain.clock import EARLIEST, TrustedClock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.doctor import Ground, Sight
from vedette.agent.domain.errors import AgentError, DiskFull, InstallCode, StateError, StateReadOnly
from vedette.agent.domain.metrics import CONTENT_TYPE, render
from vedette.agent.domain.reconcile import Trust
from vedette.agent.domain.report import Report, status_report
from vedette.agent.domain.slots import build_ref
from vedette.agent.domain.standstill import Standstill
from vedette.agent.domain.unit_limits import MAIN_BYTES
from vedette.agent.domain.windows import Gauges, Windows
from vedette.agent.rooms.host_metrics import build_host_source
from vedette.agent.rooms.log_sources import build_log_sources
from vedette.agent.rooms.serving import build_serving
from vedette.agent.rooms.sinks import build_sinks
from vedette.agent.settings import Settings
from vedette.models.version import __version__
from vedette.wire import systemd
from vedette.wire.values import Condition, Severity, SlotStatus, Status

logger = logging.getLogger(__name__)

_ENROLMENT_CHECK_S = 2.0
_DISK_CHECK_S = 2.0
_RETRY_BASE_S = 30.0
_STOP_S = 5.0  # for each of the last verdicts and the last lines
_TEMPLATES_EVERY_S = 60.0
_REPORT_TIMEOUT_S = 5.0
_ADDRESS_TRY_S = 5.0  # between two tries of an address that another program has, or no interface yet
_TELL_S = 5.0  # at most between two words on how the agent stands: systemctl status shows the newest
_LOOK_S = 10.0  # at how the agent stands, where no watchdog says how often
# A batch of 4096 rows may take a worker's longest deadline, twice, and wait for a fallen model's successor: 3 minutes.
_STUCK_S = 300.0
_TOLD_MODELS = 4
_TOLD_TROUBLES = 3
_MAX_REPORT_BYTES = 4 * 2**20


class AgentStuck(AdvisedError):
    """Something in this process works no more, and only a new process mends it."""

    code = "agent-stuck"


class AlreadyRunning(AdvisedError):
    """Another agent uses this state folder."""

    code = "already-running"
    exit_code = EXIT_REFUSED


def run_agent(settings: Settings) -> int:
    """Run an agent until SIGTERM or SIGINT and return its exit code.

    Raises:
        AlreadyRunning: Another agent uses the state folder.
        AgentStuck: A part of it stopped working; a new process is the remedy.
        StateError, DiskFull: The state folder cannot be made, or its state not opened.
    """
    try:
        make_folder(settings.state_dir)
    except OSError as exc:
        raise storage_error(exc, settings.state_dir) from exc
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of this process would hold the private key
    with _locked(settings.state_dir / "agent.lock"):
        asyncio.run(_run(settings))
    return 0


async def _run(settings: Settings) -> None:
    await Agent(settings).run()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    file = _lock_file(path)
    try:
        _lock(file, path)
        yield
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise AlreadyRunning(
            f"another agent runs with {path.parent}", f"it holds {path.name}", "vedette-agent status shows it"
        ) from exc


def _lock_file(path: Path) -> int:
    """Return the open lock file; on a disk that is full or takes no writes the one that is there, else its folder."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if not isinstance(storage_error(exc, path), StateReadOnly | DiskFull):
            raise
        return os.open(path if path.exists() else path.parent, os.O_RDONLY | os.O_CLOEXEC)


def _shelter() -> Path | None:
    """Return where telemetry outlives a restart while the disk takes no writes, if systemd gave a place."""
    folder = os.environ.get("RUNTIME_DIRECTORY")
    return None if not folder else Path(folder) / "spool.db"


class Agent:
    """All parts of one agent."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        spool = settings.state_dir / "spool.db"
        self._state = State(settings.state_dir / "state.db", mends=True, is_first=not spool.exists())
        self._clock = TrustedClock(SystemClock(), max(self._state.time_floor or EARLIEST, EARLIEST))
        self._begun_s: dict[str, float] = {}  # conditions by code; the wall clock may be set while they last
        self._conditions = Conditions(self._clock, on_news=self._log_condition)
        self._windows = Windows(self._clock)
        self._identities = IdentityStore(settings.enrolment_dir)
        self._identity: Identity | None = None
        boot_epoch = self._state.begin_boot()
        self._spool = Spool(spool, settings.telemetry.spool_bytes, boot_epoch, shelter=_shelter())
        self._serving = build_serving(settings, self._state, self._clock, self._conditions, self._slot_event)
        self._programs = InferenceServer(self._serving, settings.oip)
        self._imports = Watch(Inbox(settings.state_dir / "import", self._serving.blobs))
        self._has_datagrams = asyncio.Event()
        self._sink_problems: dict[str, str] = {}
        self._sinks = build_sinks(settings, self._from_thread(self._sink_problem))
        self._collector = self._made_collector()
        self._takes_flows = False
        self._pipeline = FlowPipeline(
            self._serving,
            self._sinks if self._sinks.sinks else None,
            self._windows,
            self._clock,
            host=settings.name,
            emit_all=self._sinks.emits_all,
            evidence_per_s=settings.sink.evidence_per_s,
        )
        sink = self._sinks if self._sinks.sinks else None
        self._host = build_host_source(settings, self._serving, sink, self._windows, self._clock)
        self._logs = build_log_sources(settings, self._pipeline, self._conditions, self._clock)
        self._templates = TemplateFile(settings.state_dir / "templates.json", self._pipeline.decoder)
        self._usage = UsageMeter(lambda: self._serving.process_pids)
        self._pressure = self._made_pressure_watch()
        self._figures = Figures(
            serving=self._serving,
            pipeline=self._pipeline,
            collector=self._collector,
            logs=self._logs,
            host=self._host,
            sinks=self._sinks,
            spool=self._spool,
            conditions=self._conditions,
            usage=self._usage,
            pressure=self._pressure,
            requests=self._programs.counts,
        )
        self._server: HttpServer | None = None
        self._damaged_slots: set[str] = set()  # whose active build fell for a file that is not what it was
        self._reconciler: Reconciler | None = None
        self._is_stopping = asyncio.Event()
        self._stuck: AgentStuck | None = None

    async def run(self) -> None:
        """Run until a signal.

        Raises:
            AgentStuck: A part stopped working; the others were stopped in order.
        """
        self._take_signals()
        async with AsyncExitStack() as parts:
            parts.callback(self._state.close)
            parts.callback(self._spool.close)
            asking = asyncio.create_task(self._ask_for_time())
            await self._start(parts)
            asking.cancel()
            async with asyncio.TaskGroup() as tasks:
                scoring = tasks.create_task(self._pipeline.score_forever())
                running = [tasks.create_task(task) for task in self._tasks()]
                systemd.notify("READY=1")
                logger.info("vedette-agent %s runs as %s", __version__, self._settings.name)
                await self._is_stopping.wait()
                systemd.notify("STOPPING=1")
                logger.info("stopping")
                for task in running:
                    task.cancel()
                await self._finish()
                scoring.cancel()
        if self._stuck is not None:
            raise self._stuck

    async def _start(self, parts: AsyncExitStack) -> None:
        """Start what takes flows and what serves; each adds how it is stopped, so that the last started stops first."""
        self._sinks.start()
        parts.callback(self._sinks.close, _STOP_S)
        parts.callback(self._logs.close)
        self._templates.load()
        server = self._server = HttpServer(
            {
                "/metrics": Page(CONTENT_TYPE, self._metrics),
                "/status": Page("application/json", self._report),
                IMPORT_PAGE: Page("application/json", self._import_standing),
            }
        )
        parts.push_async_callback(server.close)
        await self._listen_for_status()
        parts.callback(self._unlink_sockets)
        if self._settings.metrics_listen is not None:
            try:
                await server.listen(*self._settings.metrics_listen)
            except AddressInUse as exc:
                self._trouble(exc)
        parts.push_async_callback(self._serving.stop)
        self._takes_flows = self._listen_for_flows()
        parts.push_async_callback(self._programs.stop, _STOP_S)
        await self._listen_for_programs()
        await self._serving.start()

    async def _listen_for_programs(self) -> None:
        """Take programs' requests; before the models serve, so that who asks early is told to come again."""
        for listen in (self._programs.start_unix, self._programs.start_tcp):
            try:
                await listen()
            except AdvisedError as exc:
                self._trouble(exc)

    def _listen_for_flows(self) -> bool:
        """Return whether flows are taken now, or are not wanted."""
        if self._collector is None:
            return True
        try:
            self._collector.start()
        except CollectorFailed as exc:
            self._trouble(exc)
            return False
        self._conditions.clear(CollectorFailed.code)
        return True

    async def _listen_again(self) -> None:
        """Try the collector's address until it is free, or there: nobody comes to restart an agent for that."""
        while not self._takes_flows:
            await self._clock.sleep(_ADDRESS_TRY_S)
            self._takes_flows = self._listen_for_flows()

    async def _listen_for_status(self) -> None:
        path = next((path for path in self._settings.status_sockets if path.parent.is_dir()), None)
        if path is None or self._server is None:
            return
        try:
            await self._server.listen_unix(path)
        except AddressInUse as exc:
            self._trouble(exc)

    def _unlink_sockets(self) -> None:
        for path in self._settings.status_sockets:
            with suppress(OSError):  # never made, gone with its folder, or on a disk that takes no writes
                path.unlink()

    def _tasks(self) -> Iterator[Any]:
        if self._collector is not None:
            yield self._pipeline.gather(self._collector, self._has_datagrams, self._settings.netflow.batch_s)
            yield self._listen_again()
        yield from self._logs.tasks()
        if self._host is not None:
            yield self._host.run()
        yield self._pressure.run()
        yield self._close_windows()
        yield self._save_templates()
        yield self._look_at_disk()
        yield self._join_fleet()
        yield self._stay_alive(min(systemd.watchdog_interval_s() or _LOOK_S, _TELL_S))

    async def _finish(self) -> None:
        """Score, write and spool what was received."""
        if self._collector is not None:
            self._collector.close()
            while datagrams := self._collector.take(4096):
                self._pipeline.take(datagrams)
        self._pipeline.flush()
        is_all_told = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._pipeline.drained()
                is_all_told = True
        self._logs.save(is_all_told=is_all_told)
        self._close_window()
        self._templates.save()
        if self._spool.is_read_only and not self._spool.is_empty:
            text = "%d bytes of telemetry wait in memory: a restart keeps them where systemd does, else they are lost"
            logger.warning(text, self._spool.bytes_waiting)

    # Flows and verdicts

    def _made_collector(self) -> Collector | None:
        netflow = self._settings.netflow
        if netflow.listen is None:
            return None
        ready = self._from_thread(self._has_datagrams.set)
        return Collector(netflow.listen, netflow.receive_buffer_bytes, netflow.queue_bytes, ready)

    def _made_pressure_watch(self) -> PressureWatch:
        budget, queues = self._settings.budget, self._settings.netflow.queue_bytes + self._settings.sink.queue_bytes
        gauge = StrainGauge(
            Budgets(budget.cpu_percent / 100, MAIN_BYTES + queues, budget.memory_bytes),
            workers=lambda: self._serving.worker_pids,
            fills=lambda: (self._pipeline.fill, self._collector.fill if self._collector else 0.0),
        )
        return PressureWatch(gauge, self._pipeline, self._conditions, self._clock)

    def _from_thread(self, work: Callable[..., None]) -> Callable[..., None]:
        """Return a function that other threads may call to have something done on the loop."""
        loop = asyncio.get_running_loop()

        def post(*arguments: object) -> None:
            with suppress(RuntimeError):  # the loop has ended; so has everything that would want to know
                loop.call_soon_threadsafe(work, *arguments)

        return post

    def _sink_problem(self, name: str, problem: str | None) -> None:
        """Hold one condition for all sinks, whose text names those that fail."""
        others = self._sink_problems.keys() - {name}
        if problem is None:
            self._sink_problems.pop(name, None)
        else:
            self._sink_problems[name] = problem
        if others:  # the condition stays, so its coming or going tells the log nothing of this one
            logger.warning("sink %s: %s", name, problem or "works again", extra=systemd.fields(code="sink-failed"))
        if self._sink_problems:
            text = "; ".join(f"sink {each}: {why}" for each, why in self._sink_problems.items())
            self._conditions.hold("sink-failed", Severity.ERROR, text)
        else:
            self._conditions.clear("sink-failed")

    async def _save_templates(self) -> None:
        while True:
            await self._clock.sleep(_TEMPLATES_EVERY_S)
            self._templates.save()

    async def _look_at_disk(self) -> None:
        """Say while the disk of the state takes no writes, also when nothing is to be written for days."""
        was_read_only = False
        while True:
            self._tell_damage()
            if not self._state.look() or self._spool.is_read_only:
                was_read_only = True
                text = (
                    f"the disk of {self._settings.state_dir} takes no writes: models serve on, new ones wait, "
                    "telemetry waits in memory; see dmesg, then mount it writable or replace it; no restart is needed"
                )
                self._conditions.hold("state-read-only", Severity.ERROR, text)
            elif was_read_only:
                was_read_only = False
                self._conditions.clear("state-read-only")
                await self._listen_for_status()  # the socket may have lain there, too
            await self._clock.sleep(_DISK_CHECK_S)

    def _tell_damage(self) -> None:
        """Say that files were damaged for as long as they are kept: only a person can tell whether the disk fails."""
        kept = [path.name for path in (*self._state.kept_aside, *self._spool.kept_aside)]
        if not kept and not (self._state.damage and self._state.is_read_only):
            self._conditions.clear("state-damaged")
            return
        found = self._state.damage or "a file of the agent could not be read and was begun anew"
        what = f"then delete {', '.join(kept)}" if kept else "it takes no writes now"
        remedy = f"look at the disk of {self._settings.state_dir}, {what}"
        severity = Severity.ERROR if self._state.is_anew else Severity.WARNING
        self._conditions.hold("state-damaged", severity, f"{found}; {remedy}")

    # Telemetry

    async def _close_windows(self) -> None:
        while True:
            await self._clock.sleep(self._settings.telemetry.interval_s)
            self._close_window()
            if self._reconciler is not None:
                self._reconciler.look_again()

    def _close_window(self) -> None:
        usage = self._usage.read()
        gauges = Gauges(
            counters=self._figures.counters(),
            restarts=self._figures.restarts(),
            cpu_seconds=usage.cpu_seconds,
            memory_bytes=usage.memory_bytes,
        )
        try:
            self._spool.append(self._windows.close(gauges))
        except (DiskFull, StateError) as exc:
            self._conditions.hold("spool-failed", Severity.WARNING, str(exc))
            return
        self._conditions.clear("spool-failed")
        if self._figures.reporter is not None:
            self._figures.reporter.appended()

    # The fleet

    async def _join_fleet(self) -> None:
        """Wait until this appliance is enrolled, then hold the link for ever."""
        while (identity := self._enrolled()) is None:
            await self._clock.sleep(_ENROLMENT_CHECK_S)
        self._conditions.clear("not-enrolled", IdentityDamaged.code)
        if (exposure := self._identities.exposure()) is not None:
            self._conditions.hold("identity-exposed", Severity.WARNING, exposure)
        self._identity = identity
        text, extra = "this appliance is %s (%s) of controller %s", systemd.fields(agent=identity.name)
        logger.info(text, identity.name, identity.agent_id, identity.controller_id, extra=extra)
        link, reconciler, reporter = self._fleet_parts(identity.reached_at(self._settings.link.controller))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(link.run(reconciler))
            tasks.create_task(reconciler.run())
            tasks.create_task(reporter.run())
            tasks.create_task(self._imports.run(reconciler, self._clock))

    def _fleet_parts(self, identity: Identity) -> tuple[Link, Reconciler, Reporter]:
        cap_s = self._settings.link.retry_cap_s

        def backoff() -> Backoff:
            return Backoff(cap_s=cap_s)

        link = Link(identity, self._conditions, self._clock, backoff(), ways=self._settings.link.ways)
        budget = self._settings.budget
        down = Bandwidth(budget.download_bytes_per_s, self._clock)
        up = Bandwidth(budget.telemetry_bytes_per_s, self._clock)
        downloads = Downloads(link, self._serving.blobs, self._clock, backoff, bandwidth=down)
        reporter = Reporter(link, self._spool, self._clock, backoff(), bandwidth=up)
        reconciler = Reconciler(
            trust=Trust(identity.agent_id, identity.release_keys, identity.assignment_keys),
            facts=host_facts(self._serving.runtimes),
            state=self._state,
            serving=self._serving,
            conditions=self._conditions,
            clock=self._clock,
            fetch=self._imports.inbox.offering(downloads.fetch),
            report=self._imports.telling(link.report),
            changed=link.changed,
            backoff=Backoff(base_s=_RETRY_BASE_S, cap_s=max(cap_s, _RETRY_BASE_S)),
        )
        self._conditions.on_change = link.changed
        self._figures.link, self._figures.downloads, self._figures.reporter = link, downloads, reporter
        self._figures.reconciler = self._reconciler = reconciler
        return link, reconciler, reporter

    def _enrolled(self) -> Identity | None:
        try:
            identity = self._identities.load()
        except IdentityDamaged as exc:
            self._trouble(exc)
            return None
        if identity is None:
            text = "this appliance belongs to no controller: vedette-agent enroll --token TOKEN"
            self._conditions.hold("not-enrolled", Severity.INFO, text)
        return identity

    def _slot_event(self, event: ServingEvent) -> None:
        if event.kind is EventKind.FELL_BACK and event.code == InstallCode.DIGEST_MISMATCH:
            self._damaged_slots.add(event.slot)
            text = f"slot {event.slot}: {event.text}; it is fetched again; if this repeats, the disk is failing"
            self._conditions.hold("model-damaged", Severity.WARNING, text)
        elif event.kind is EventKind.INSTALLED or event.build is None:
            self._damaged_slots.discard(event.slot)
            if not self._damaged_slots:
                self._conditions.clear("model-damaged")
        if self._reconciler is not None:
            self._reconciler.happened(event)

    # The outside

    def _metrics(self) -> bytes:
        return render(self._figures.families())

    def _report(self) -> bytes:
        link = self._figures.link
        report = status_report(
            is_running=True,
            name=self._identity.name if self._identity else self._settings.name,
            agent_id=self._identity.agent_id if self._identity else "",
            version=__version__,
            link={"state": link.status.state.value, "address": link.status.address} if link else _NO_LINK,
            status=current_status(self._state, self._serving.statuses(), self._conditions, self._clock),
            counters=self._figures.counters(),
            sources=self._logs.report(),
            sinks=self._sinks.report(),
            process=process_standing(self._clock),
            flows=flow_standing(self._settings, self._collector, self._pipeline),
            models=model_standing(self._serving, self._clock, self._settings.budget.memory_bytes),
            quarantine=dict(self._serving.quarantine),
            spool=spool_standing(self._spool, self._clock, self._settings.telemetry.spool_bytes),
            pressure=pressure_standing(self._pressure),
            download_bytes_per_s=self._figures.downloads.bytes_per_s if self._figures.downloads else 0.0,
        )
        return json.dumps(report).encode()

    def _import_standing(self) -> bytes:
        return standing_of(self._state, self._clock.floor_now(), self._imports).to_json()

    async def _ask_for_time(self) -> None:
        """Have the service manager wait for as long as the loop turns: a large model may load longer than it would."""
        while True:
            systemd.notify(
                f"STATUS=loading the last good models\nEXTEND_TIMEOUT_USEC={int(3 * _LOOK_S * 1e6)}", wait_s=0
            )
            await asyncio.sleep(_LOOK_S)

    async def _stay_alive(self, interval_s: float) -> None:
        """Feed the watchdog from the loop itself, for as long as the parts that the loop does not run work too."""
        scoring = Standstill()
        while (ailment := self._ailment(scoring.look(self._pipeline.scoring, interval_s))) is None:
            systemd.notify(f"WATCHDOG=1\nSTATUS={self._standing()}", wait_s=0)
            await self._clock.sleep(interval_s)
        self._stuck = AgentStuck("this agent works no more", ailment, "it ends and is started anew; report this")
        logger.critical("%s", self._stuck)
        self._is_stopping.set()

    def _ailment(self, scoring_s: float) -> str | None:
        if self._collector is not None and self._collector.is_broken:
            return "the thread that takes flows has ended"
        if (sink := self._sinks.broken) is not None:
            return f"the thread that writes verdicts has ended ({sink})"
        if scoring_s > _STUCK_S:
            return f"one batch of flows has been scored for {scoring_s:.0f} s, limit {_STUCK_S:.0f}"
        return None

    def _standing(self) -> str:
        """Return one line for ``systemctl status``."""
        models = [f"{model.ref.model}:{model.ref.version}" for model in self._serving.actives.values()]
        link = self._figures.link
        fleet = f"link {link.status.state.value}" if link else "not enrolled: vedette-agent enroll --token TOKEN"
        troubles = [held.code for held in self._conditions.current() if held.severity is not Severity.INFO]
        told = f"; {', '.join(troubles[:_TOLD_TROUBLES])}" if troubles else ""
        return f"serves {', '.join(models[:_TOLD_MODELS]) or 'no model'}; {fleet}{told}"

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._is_stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reopen)

    def _reopen(self) -> None:
        self._sinks.reopen()

    def _trouble(self, exc: AdvisedError) -> None:
        self._conditions.hold(exc.code, Severity.ERROR, f"{exc.what}: {exc.why}; {exc.remedy}")

    def _log_condition(self, condition: Condition, holds: bool) -> None:
        extra, now_s = systemd.fields(code=condition.code), self._clock.monotonic()
        if holds:
            self._begun_s.setdefault(condition.code, now_s)
            logger.log(_LEVELS[condition.severity], "%s", condition.text, extra=extra)
        else:
            lasted = timedelta(seconds=round(now_s - self._begun_s.pop(condition.code, now_s)))
            logger.info("%s is over, it lasted %s", condition.code, lasted, extra=extra)


_LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}
_NOT_ENROLLED = "not enrolled"
_NO_LINK = {"state": _NOT_ENROLLED, "address": ""}


def current_report(settings: Settings) -> Report:
    """Return how the agent of these settings stands: asked of it when it runs, else read from its disk.

    Raises:
        StateError, DiskFull: It does not run and its state cannot be read.
        IdentityDamaged: Nor can its identity.
    """
    return running_report(settings) or _stored(settings, settings.state_dir / "state.db")


def running_report(settings: Settings) -> Report | None:
    """Return what the running agent says of itself; None when none runs. Writes nothing, whoever asks.

    Raises:
        StateError: It runs and cannot say.
    """
    for path in settings.status_sockets:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return _asked(path)
    return None


def seen(settings: Settings, start: str) -> Ground:
    """Return what is seen of the agent by whoever asks, for `doctor`; writes nothing and never raises.

    Args:
        settings: Of the agent.
        start: How it is started here.
    """
    try:
        report = running_report(settings)
    except PermissionError as exc:
        return Ground(Sight.HIDDEN, trouble=f"{exc.filename or 'its socket'} is for its own user")
    except (AgentError, OSError, ValueError, http.client.HTTPException) as exc:
        return Ground(Sight.MUTE, trouble=str(exc) or type(exc).__name__)
    if report is not None:
        return running_ground(report)
    try:
        return Ground(Sight.STOPPED, _stored_untouched(settings), start=start)
    except PermissionError:
        return Ground(Sight.HIDDEN, trouble=f"{settings.state_dir} is for its own user")
    except (AgentError, OSError) as exc:
        status = Status(agent_time=EARLIEST)
        return Ground(Sight.STOPPED, _at_rest(settings, None, status), trouble=str(exc), start=start)


def running_ground(report: Report) -> Ground:
    """Return what a running agent's report is worth to this program, which may be of another version."""
    if (runs := report.get("version")) != __version__:
        return Ground(Sight.OTHER, trouble=f"vedette-agent {runs} runs, {__version__} is installed")
    return Ground(Sight.RUNNING, report)


def _asked(path: Path) -> Report:
    connection = http.client.HTTPConnection("localhost", timeout=_REPORT_TIMEOUT_S)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(_REPORT_TIMEOUT_S)
        made.connect(str(path))
        connection.sock = made
        connection.request("GET", "/status")
        answer = connection.getresponse()
        body = answer.read(_MAX_REPORT_BYTES)
    if answer.status != HTTPStatus.OK:
        raise StateError(f"the running agent cannot say how it stands ({answer.status}): look at its log and its disk")
    report: Report = json.loads(body)
    return report


def _stored_untouched(settings: Settings) -> Report:
    """Return the stored report, read from a copy: opening a database tidies up what a killed agent left."""
    path = settings.state_dir / "state.db"
    if not path.exists():
        return _stored(settings, path)
    with copied(path) as copy:
        return _stored(settings, copy)


def _stored(settings: Settings, path: Path) -> Report:
    identity = IdentityStore(settings.enrolment_dir).load()
    clock = TrustedClock(SystemClock(), EARLIEST)
    if not path.exists():
        return _at_rest(settings, identity, Status(agent_time=clock.now()))
    state = State(path)
    try:
        status = current_status(state, tuple(_stored_slots(state)), Conditions(clock), clock)
        return _at_rest(settings, identity, status, {build: one.reason for build, one in state.quarantine.items()})
    finally:
        state.close()


def _at_rest(
    settings: Settings, identity: Identity | None, status: Status, quarantine: Mapping[str, str] = MappingProxyType({})
) -> Report:
    return status_report(
        is_running=False,
        name=identity.name if identity else settings.name,
        agent_id=identity.agent_id if identity else "",
        version=__version__,
        link={"state": "not running", "address": ", ".join(identity.addresses) if identity else ""},
        status=status,
        counters={},
        quarantine=quarantine,
    )


def _stored_slots(state: State) -> Iterator[SlotStatus]:
    quarantined = tuple(state.quarantine)[:256]
    for record in state.slots.values():
        yield SlotStatus(
            slot=record.slot,
            state=record.stage,
            active=build_ref(record.active),
            previous=build_ref(record.previous),
            candidate=build_ref(record.candidate),
            reason=record.reason,
            quarantined=quarantined,
        )
