"""Wiring: the one place that names concrete adapters, and the life of the server from start to stop.

Order of the start: lock the data directory, keys, database and migrations, what services remember, then the ports; so
nothing is answered before everything is read. The stop goes the other way: streams end (agents come back by
themselves), calls in progress get a moment, what is not written yet is written. A SIGKILL at any point loses nothing
that was answered: every answer comes after its commit.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import resource
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vedette.controller.adapters import measure
from vedette.controller.adapters.clock import SystemClock
from vedette.controller.adapters.grpc import server as ports
from vedette.controller.adapters.grpc.admin import compose
from vedette.controller.adapters.grpc.admin_files import AdminFiles
from vedette.controller.adapters.grpc.admin_fleet import AdminFleet
from vedette.controller.adapters.grpc.admin_ml import AdminMl
from vedette.controller.adapters.grpc.admin_rollout import AdminRollout
from vedette.controller.adapters.grpc.guard import Guard, caller
from vedette.controller.adapters.grpc.servicers import (
    ArtifactsServicer,
    EnrolmentServicer,
    FleetServicer,
    TelemetryServicer,
)
from vedette.controller.adapters.http import Answer, HttpServer, Metric, exposition
from vedette.controller.adapters.initialise import DATABASE, check_initialised
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.lock import locked
from vedette.controller.adapters.pki import Identity
from vedette.controller.adapters.reserve import Reserve
from vedette.controller.adapters.restore import finish_restore
from vedette.controller.adapters.sqlite import tokens
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.domain.agents import state_of
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.errors import ControllerError, Refused, Unauthenticated
from vedette.controller.rooms import MIGRATIONS, furnish
from vedette.controller.services.enrolment import Trust
from vedette.controller.settings import ControllerSettings, advertised, with_port
from vedette.models.toml_settings import parse_address
from vedette.models.version import __version__
from vedette.wire.systemd import fields, notify, watchdog_interval_s
from vedette.wire.v1 import admin_pb2_grpc, artifacts_pb2_grpc, enrolment_pb2_grpc, fleet_pb2_grpc, telemetry_pb2_grpc
from vedette.wire.values import HelloResponse

logger = logging.getLogger(__name__)

_PURGE_EVERY_S = 3600.0
_GRACE_S = 3.0


class Controller:
    """One controller: its services, its ports, its life. Belongs to the event loop it is made in, as grpc.aio does."""

    def __init__(self, settings: ControllerSettings, keys: KeyRing, database: Database, clock: Clock) -> None:
        self.settings = settings
        self.database = database
        self.rooms = furnish(settings, keys, database, clock, self._trust)
        self._keys = keys
        self._clock = clock
        self._admins: Mapping[str, str] = {}
        self._guard = Guard(self._check)
        self._members = ports.member_server(self._guard)
        self._strangers = ports.stranger_server(self._guard)
        self._http = HttpServer({"/healthz": self._healthz, "/metrics": self._metrics})
        self._reserve = Reserve(settings.data_dir)
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        self.enrol_port = 0

    def admin_parts(self) -> tuple[object, ...]:
        """Return what serves the Admin verbs."""
        rooms = self.rooms

        def admin(_: object) -> str:
            return caller().name

        return (
            AdminFleet(rooms.desk, rooms.enrolment, admin),
            AdminMl(rooms.datasets, rooms.runs, rooms.registry, rooms.drift, admin),
            AdminRollout(rooms.rollouts, admin),
            AdminFiles(rooms.bundles, rooms.telemetry_files, admin),
        )

    async def start(self) -> None:
        """Read what is stored, then serve.

        Raises:
            StoreFailed: A port cannot be had, or the database failed.
        """
        self._admins = await self.database.run(tokens.AdminStore(self.database).key_digests)
        await self.rooms.start()
        self._serve_members()
        self._serve_strangers()
        await self._members.start()
        await self._strangers.start()
        if self.settings.http:
            await self._http.start(self.settings.http)
        self._reserve.take_back()
        self._tasks = [asyncio.create_task(self._watch_streams()), asyncio.create_task(self._purge())]
        text = "vedette-controller %s serves agents and admins on port %d, enrolment on port %d"
        logger.info(text, __version__, self.port, self.enrol_port)

    @property
    def standing(self) -> str:
        """Return one line for ``systemctl status``."""
        fleet = self.rooms.fleet
        return f"{fleet.online} of {fleet.size} agents online; port {self.port}, enrolment {self.enrol_port}"

    def _serve_members(self) -> None:
        server = self._members
        fleet_pb2_grpc.add_FleetServicer_to_server(FleetServicer(self.rooms.fleet), server)
        telemetry_pb2_grpc.add_TelemetryServicer_to_server(TelemetryServicer(self.rooms.telemetry), server)
        artifacts = ArtifactsServicer(self.rooms.artifacts, lambda: self._check(caller()))
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(artifacts, server)
        admin_pb2_grpc.add_AdminServicer_to_server(compose(*self.admin_parts()), server)
        self.port = ports.bind(server, self.settings.listen, self._keys, is_for_members=True)

    def _serve_strangers(self) -> None:
        server = self._strangers
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(EnrolmentServicer(self.rooms.enrolment, self._hello), server)
        if self.settings.enrol_listen:
            self.enrol_port = ports.bind(server, self.settings.enrol_listen, self._keys, is_for_members=False)
            return
        host = parse_address(self.settings.listen)[0]
        self.enrol_port = ports.bind(server, with_port(host, self.port + 1), self._keys, is_for_members=False)

    async def stop(self) -> None:
        """End streams, give calls a moment, write what is not written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.stop()
        await self.rooms.stop()
        await self.rooms.fleet.stop()
        await asyncio.gather(self._members.stop(_GRACE_S), self._strangers.stop(_GRACE_S))
        self.database.close()

    # -- who is who ------------------------------------------------------------------------------------------------

    def _check(self, identity: Identity) -> None:
        if identity.kind == "agent":
            self.rooms.fleet.check_agent(identity.name, identity.key_digest)
        elif self._admins.get(identity.name) != identity.key_digest:
            why = f"{identity.name} is no admin here"
            remedy = "log in with admin.toml as it is at the controller now: vedette login FILE"
            raise Unauthenticated("admin-unknown", "the controller does not know this admin", why, remedy)

    def _trust(self) -> Trust:
        addresses = self.settings.addresses or advertised(with_port(parse_address(self.settings.listen)[0], self.port))
        return Trust(
            controller_id=self._keys.controller_id,
            ca_digest=self._keys.authority.digest,
            release_keys=(self._keys.release.public,),
            assignment_keys=(self._keys.assignment.public,),
            addresses=addresses,
            enrol_address=with_port(parse_address(addresses[0])[0], self.enrol_port),
        )

    def _hello(self) -> HelloResponse:
        return HelloResponse(
            controller_id=self._keys.controller_id,
            ca_certificate=self._keys.authority.pem,
            time=self._clock.now(),
            version=__version__,
        )

    # -- looking after itself --------------------------------------------------------------------------------------

    async def _watch_streams(self) -> None:
        while True:
            await asyncio.sleep(self.settings.status_interval_s)
            self.rooms.fleet.end_silent()
            self._reserve.take()

    async def _purge(self) -> None:
        while True:
            try:
                deleted = await self.rooms.telemetry.purge()
                if deleted:
                    logger.info("deleted %d telemetry windows older than %d days", deleted, self.settings.keep_days)
            except ControllerError as exc:  # a full disk, say; the next round tries again
                text, extra = "old telemetry was not deleted: %s; %s", fields(code=exc.code)
                logger.warning(text, exc.what, exc.why, extra=extra)
            await asyncio.sleep(_PURGE_EVERY_S)

    async def _healthz(self) -> Answer:
        try:
            await self.database.run(_touch, self.database)
        except ControllerError as exc:
            return Answer("503 Service Unavailable", exc.public_text + "\n")
        return Answer("200 OK", "ok\n")

    async def _metrics(self) -> Answer:
        states = Counter(str(state_of(agent)) for agent in await self.rooms.fleet.agents())
        return Answer("200 OK", exposition(self._measured(states)), "text/plain; version=0.0.4; charset=utf-8")

    def _measured(self, states: Counter[str]) -> Iterator[Metric]:
        yield from measure.process_metrics(self.settings.data_dir)
        yield from measure.fleet_metrics(states)
        yield from measure.call_metrics(self._guard.calls)
        yield from measure.failure_metrics(self.database.failures)
        yield measure.counter("enrolments", "Agents enrolled since the start.", self.rooms.enrolment.enrolled)
        yield measure.counter("telemetry_batches", "Telemetry batches committed.", self.rooms.telemetry.batches)
        yield measure.counter("telemetry_repeated", "Batches that came again.", self.rooms.telemetry.repeated)
        yield measure.counter("artifact_bytes", "Bytes of blobs sent to agents.", self.rooms.artifacts.sent_bytes)


def _touch(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("SELECT 1").fetchone()


@contextmanager
def opened(settings: ControllerSettings) -> Iterator[Database]:
    """Hold a data directory's lock and open its database, migrated.

    Raises:
        Refused: There is no controller, another process runs it, or a newer version wrote its database.
        StoreFailed: The directory or the database cannot be used.
        DiskFull: There is no room.
    """
    with locked(settings.data_dir):
        Reserve(settings.data_dir).give_if_needed()
        finish_restore(settings.data_dir)
        check_initialised(settings.data_dir)
        with _migrated(settings) as database:
            yield database


@contextmanager
def _migrated(settings: ControllerSettings) -> Iterator[Database]:
    with _database(settings) as database:
        unknown = database.unknown_migrations(MIGRATIONS)
        if unknown:
            why = f"it has {', '.join(unknown[:5])}, which version {__version__} does not know"
            raise Refused("database-newer", "the database was written by a newer controller", why, "install that one")
        database.migrate(MIGRATIONS)
        database.make_durable()
        yield database


@contextmanager
def _database(settings: ControllerSettings) -> Iterator[Database]:
    database = Database(settings.data_dir / DATABASE)
    try:
        yield database
    finally:
        database.close()


def serve(settings: ControllerSettings) -> None:
    """Run a controller until SIGTERM or SIGINT.

    Raises:
        ControllerError: It cannot start.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of this process would hold every key
    with opened(settings) as database:
        faulthandler.enable(2)  # systemd ends a hung server with SIGABRT: the journal shows where it hung
        asyncio.run(_serve(settings, KeyRing.load(settings.data_dir), database))


async def _serve(settings: ControllerSettings, keys: KeyRing, database: Database) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = Controller(settings, keys, database, SystemClock())
    feeding = asyncio.create_task(_feed_watchdog(controller))
    try:
        await controller.start()
        notify(f"READY=1\nSTATUS={controller.standing}")
        await stop.wait()
        notify("STOPPING=1")
        logger.info("stopping")
    finally:
        await controller.stop()
        feeding.cancel()


async def _feed_watchdog(controller: Controller) -> None:
    """Tell systemd, as often as it wants, that the event loop turns: by the loop itself, so a hung one is found."""
    interval_s = watchdog_interval_s()
    while interval_s:
        await asyncio.sleep(interval_s)
        notify(f"WATCHDOG=1\nSTATUS={controller.standing}", wait_s=0)
