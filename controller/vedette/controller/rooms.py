"""Wiring of the services: which adapters stand behind them, and how they hear of each other."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.adapters.certifier import AuthorityCertifier
from vedette.controller.adapters.children import Children
from vedette.controller.adapters.initialise import BLOBS
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.recipes_loader import RecipeShelf, recipes_folder
from vedette.controller.adapters.sqlite import agents, datasets, registry, restores, rollouts, runs, telemetry, tokens
from vedette.controller.adapters.sqlite.database import Database, Migration
from vedette.controller.adapters.uploads import receive
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.disk import typed_os_error
from vedette.controller.domain.errors import ControllerError
from vedette.controller.domain.jobs import ChildLimits
from vedette.controller.services.artifacts import Artifacts
from vedette.controller.services.bundles import Bundles
from vedette.controller.services.datasets import DatasetService
from vedette.controller.services.drift import DriftService
from vedette.controller.services.enrolment import Enrolment, Trust
from vedette.controller.services.fleet import Fleet, FleetSettings
from vedette.controller.services.overview import FleetDesk
from vedette.controller.services.registry import RegistryService
from vedette.controller.services.rollouts import RolloutService
from vedette.controller.services.runs import RunService
from vedette.controller.services.telemetry import Telemetry
from vedette.controller.services.telemetry_files import TelemetryFiles
from vedette.controller.services.workshop import Workshop
from vedette.controller.settings import ControllerSettings
from vedette.wire.systemd import fields

logger = logging.getLogger(__name__)

MIGRATIONS: tuple[Migration, ...] = (
    *agents.MIGRATIONS,
    *tokens.MIGRATIONS,
    *telemetry.MIGRATIONS,
    *datasets.MIGRATIONS,
    *registry.MIGRATIONS,
    *runs.MIGRATIONS,
    *rollouts.MIGRATIONS,
    *restores.MIGRATIONS,
)
"""Of every store, in order. Append only: a recorded one never changes."""

_LONGEST_IMPORT_S = 3600.0
_LONGEST_LOOK_S = 60.0
_ORPHAN_LIFE = timedelta(days=1)
_GRACE_AFTER_RESTORE = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """Every service of a controller."""

    blobs: BlobStore
    fleet: Fleet
    telemetry: Telemetry
    enrolment: Enrolment
    artifacts: Artifacts
    desk: FleetDesk
    datasets: DatasetService
    registry: RegistryService
    runs: RunService
    rollouts: RolloutService
    drift: DriftService
    bundles: Bundles
    telemetry_files: TelemetryFiles

    async def start(self) -> None:
        """Read what is stored and go on with what was unfinished; rollouts last, they need all the others.

        Raises:
            StoreFailed: The database failed.
        """
        await self.fleet.start()
        await self.telemetry.start()
        await self.runs.resume()
        self.fleet.subscribe(self.rollouts)
        await self.rollouts.start()

    async def stop(self) -> None:
        """Stop what decides, then what works; everything unfinished goes on at the next start."""
        await self.rollouts.stop()
        await self.runs.stop()


def furnish(
    settings: ControllerSettings, keys: KeyRing, database: Database, clock: Clock, trust: Callable[[], Trust]
) -> Rooms:
    """Return the services of a controller. Belongs to the event loop they will run in.

    Raises:
        StoreFailed: A folder cannot be made, or the recipes are missing.
    """
    blobs = BlobStore(settings.data_dir / BLOBS)
    versions = registry.RegistryStore(database, keys.release)
    tables = datasets.DatasetStore(database)
    restore = restores.RestoreStore(database).newest()
    _collect(blobs, versions, tables, clock, restore)
    fleet = Fleet(
        runner=database,
        store=agents.AgentStore(database),
        releases=versions,
        key=keys.assignment,
        clock=clock,
        settings=FleetSettings(
            status_interval_s=settings.status_interval_s, restored_backup=restore.made if restore else None
        ),
    )
    measured = Telemetry(
        runner=database,
        store=telemetry.TelemetryStore(database),
        clock=clock,
        keep=timedelta(days=settings.keep_days),
    )

    async def newest_versions() -> Mapping[str, int]:
        return await database.run(versions.newest)

    workshop = _workshop(settings.data_dir, database, blobs, clock)
    data = DatasetService(
        workshop,
        tables,
        limits=ChildLimits(
            memory_bytes=settings.import_memory_bytes, memory_setting="import.memory", deadline_s=_LONGEST_IMPORT_S
        ),
    )
    models = RegistryService(
        workshop,
        versions,
        limits=ChildLimits(
            memory_bytes=settings.registry_memory_bytes, memory_setting="registry.memory", deadline_s=_LONGEST_LOOK_S
        ),
    )
    decisions = RolloutService(
        runner=database,
        store=rollouts.SqliteRollouts(database),
        fleet=fleet,
        desired=fleet,
        versions=models,
        clock=clock,
    )
    return Rooms(
        blobs=blobs,
        fleet=fleet,
        telemetry=measured,
        enrolment=Enrolment(
            runner=database,
            tokens=tokens.TokenStore(database),
            certifier=AuthorityCertifier(keys.authority),
            fleet=fleet,
            trust=trust,
            clock=clock,
        ),
        artifacts=Artifacts(
            runner=database,
            releases=versions,
            release_keys=(keys.release.public,),
            blobs=blobs,
            desired_slots=fleet.desired_slots,
        ),
        desk=FleetDesk(
            controller_id=keys.controller_id, fleet=fleet, telemetry=measured, newest_versions=newest_versions
        ),
        datasets=data,
        registry=models,
        runs=RunService(
            workshop,
            data,
            models,
            RecipeShelf(recipes_folder()),
            runs.RunStore(database),
            limits=ChildLimits(memory_bytes=settings.training_memory_bytes),
        ),
        rollouts=decisions,
        bundles=Bundles(
            runner=database,
            versions=models,
            releases=versions,
            release_keys=(keys.release.public,),
            blobs=blobs,
            deciders=decisions,
            assignments=fleet,
            name_of=fleet.name_of,
        ),
        telemetry_files=TelemetryFiles(
            workshop, measured, agent_of=AuthorityCertifier(keys.authority).agent_of, fleet=fleet
        ),
        drift=DriftService(
            runner=database,
            telemetry=telemetry.TelemetryStore(database),
            registry=versions,
            blobs=blobs,
            fleet=fleet,
            clock=clock,
        ),
    )


def _collect(
    blobs: BlobStore,
    versions: registry.RegistryStore,
    data: datasets.DatasetStore,
    clock: Clock,
    restore: restores.Restore | None,
) -> None:
    """Remove blobs of imports and versions that a crash kept from being stored.

    None for a while after a restore: a newer backup may still follow, and names what the older one does not.
    """
    if restore and abs(clock.now() - restore.restored) < _GRACE_AFTER_RESTORE:
        return
    try:
        keep = versions.named_blobs() | data.named_blobs()
        removed = blobs.collect(keep, older_than=(clock.now() - _ORPHAN_LIFE).timestamp())
    except ControllerError as exc:  # they cost room, no more; the next start tries again
        logger.warning("orphaned blobs are not removed: %s; %s", exc.what, exc.why, extra=fields(code=exc.code))
    else:
        if removed:
            logger.info("removed %d blobs that nothing names", removed)


def _workshop(data_dir: Path, database: Database, blobs: BlobStore, clock: Clock) -> Workshop:
    """Return a workshop with an empty staging folder: what a crash left there is of no use to anyone."""
    staging, kept = data_dir / "staging", data_dir / "runs"
    try:
        if staging.exists():
            shutil.rmtree(staging)
        for folder in (staging, kept):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise typed_os_error(exc, staging) from exc
    return Workshop(
        runner=database,
        blobs=blobs,
        children=Children(),
        trainers=Children(at_once=1),
        receive=receive,
        staging=staging,
        runs=kept,
        clock=clock,
    )
