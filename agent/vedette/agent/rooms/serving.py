"""How models are served here, by the settings."""

from __future__ import annotations

import os
from collections.abc import Callable

from vedette.agent.adapters.inference.cgroups import admission
from vedette.agent.adapters.inference.serving import Serving, ServingEvent, ServingSettings
from vedette.agent.adapters.inference.worker import WorkerSettings
from vedette.agent.adapters.inference.worker_process import has_room
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.settings import Settings
from vedette.models.toml_settings import SettingsError
from vedette.wire.values import Severity

_UNFILTERED = (
    "{}: models run without it, behind their other limits; a kernel with CONFIG_SECCOMP_FILTER on x86-64 or AArch64 "
    "gives it to them at the next start"
)


def build_serving(
    settings: Settings,
    state: State,
    clock: Clock,
    conditions: Conditions,
    on_event: Callable[[ServingEvent], None],
) -> Serving:
    """Return what serves models; nothing is started yet.

    Raises:
        SettingsError: ``inference.cpus`` names processors that this program may not use.
        StateError: The folders cannot be made or the state not read.
    """
    wanted, budget = settings.workers, settings.budget
    _check_cpus(wanted.cpus)
    worker = WorkerSettings(
        workers=wanted.processes,
        threads=wanted.threads or max(1, budget.threads // wanted.processes),
        cpus=wanted.cpus,
        queue=wanted.queue,
        memory_bytes=budget.memory_bytes,
        admit=admission(budget.memory_bytes),
        on_unfiltered=lambda why: conditions.hold("worker-unfiltered", Severity.WARNING, _UNFILTERED.format(why)),
    )
    spare = wanted.spare if wanted.spare is not None else has_room()
    serving = ServingSettings(worker=worker, spare=spare, disk_bytes=budget.disk_bytes)
    return Serving(state, settings.state_dir / "blobs", serving, clock, on_event)


def _check_cpus(wanted: tuple[int, ...]) -> None:
    allowed = os.sched_getaffinity(0)
    missing = sorted(set(wanted) - allowed)
    if missing:
        raise SettingsError(
            f"inference.cpus names processors {_listed(missing)}",
            f"this program may use {_listed(sorted(allowed))}",
            "name some of these, or leave the key out",
        )


def _listed(cpus: list[int]) -> str:
    shown = ", ".join(map(str, cpus[:16]))
    return f"{shown}, …" if len(cpus) > 16 else shown
