"""Where the agent stands against its budgets and its host, read once a second, and who is told what is given up.

What a host does not tell (no pressure stall information, no quota, another kernel) counts as no strain: the agent's own
CPU, memory and queues are always there, and are what its budgets are about.

Source: Linux, Documentation/accounting/psi.rst; Documentation/admin-guide/cgroup-v2.rst (cpu.stat);
Documentation/scheduler/sched-bwc.rst (cpu.stat of v1); proc_meminfo(5).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vedette.agent.adapters.host.usage import CpuMeter, private_bytes
from vedette.agent.adapters.storage.files import FileTooLarge, read_file
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.metrics import Family, Sample, single
from vedette.agent.domain.pressure import STEP_S, Level, Measures, Pressure, told
from vedette.wire.values import Severity

CODE = "under-pressure"
_LOOK_S = 1.0
_MAX_FILE_BYTES = 64 * 1024
_PRESSURE = Path("/proc/pressure/cpu")
_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Budgets:
    """What the agent may take.

    Attributes:
        cpu: Processors.
        main_bytes: Memory of the main process with its queues.
        worker_bytes: Memory of each worker.
    """

    cpu: float
    main_bytes: int
    worker_bytes: int


class StrainGauge:
    """Reads the measures.

    Args:
        budgets: What they are measured against.
        workers: Process ids of the workers that there are now.
        fills: Of the queues, each 0 to 1.
        throttle_files: ``cpu.stat`` of the control groups whose quota may hold the agent up.
    """

    def __init__(
        self,
        budgets: Budgets,
        workers: Callable[[], Iterable[int]],
        fills: Callable[[], Iterable[float]],
        *,
        throttle_files: tuple[Path, ...] | None = None,
    ) -> None:
        self._budgets = budgets
        self._workers = workers
        self._fills = fills
        self._throttle_files = own_cpu_stats() if throttle_files is None else throttle_files
        self._cpu = CpuMeter()
        self._spent = 0.0
        self._read: deque[tuple[float, float, float]] = deque()  # when, CPU seconds, throttled seconds

    def read(self, now_s: float) -> Measures:
        """Return the measures of this moment; processor time as of the last seconds.

        Args:
            now_s: Monotonic.
        """
        workers = tuple(self._workers())
        pids = (os.getpid(), *workers)
        cpu, throttled = self._shares(now_s, pids)
        budget_bytes = self._budgets.main_bytes + self._budgets.worker_bytes * max(1, len(workers))
        return Measures(
            cpu=cpu / self._budgets.cpu,
            throttled=throttled,
            memory=sum(map(private_bytes, pids)) / budget_bytes,
            queues=max(self._fills(), default=0.0),
            host_cpu=host_cpu_waiting(),
            host_memory=host_memory_taken(),
        )

    def _shares(self, now_s: float, pids: tuple[int, ...]) -> tuple[float, float]:
        """Return processors used, and the share of time throttled, of the last :data:`STEP_S` and a look more."""
        is_first = not self._read
        grown = self._cpu.read(pids)
        self._spent += 0.0 if is_first else grown  # what went before the first look is of no known time
        self._read.append((now_s, self._spent, max(map(throttled_seconds, self._throttle_files), default=0.0)))
        while len(self._read) > 2 and self._read[1][0] <= now_s - STEP_S:
            self._read.popleft()
        since, spent, throttled = self._read[0]
        passed = now_s - since
        if passed <= 0:
            return 0.0, 0.0
        return (self._spent - spent) / passed, min(1.0, (self._read[-1][2] - throttled) / passed)


class Yielding(Protocol):
    """What gives something up."""

    pressure: Level
    flow_share: float


class PressureWatch:
    """Looks once a second and tells the pipeline. Run it as one task."""

    def __init__(self, gauge: StrainGauge, pipeline: Yielding, conditions: Conditions, clock: Clock) -> None:
        self._gauge = gauge
        self._pipeline = pipeline
        self._conditions = conditions
        self._clock = clock
        self.pressure = Pressure()
        self.measures = Measures()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            await self._clock.sleep(_LOOK_S)

    def look(self) -> None:
        """Look once."""
        now_s = self._clock.monotonic()
        self.measures = self._gauge.read(now_s)
        self._pipeline.pressure = level = self.pressure.look(self.measures, now_s)
        self._pipeline.flow_share = self.pressure.share
        if level >= Level.PROFILES:  # below it nothing is missed
            self._conditions.hold(CODE, Severity.WARNING, told(self.pressure, self.measures))
        else:
            self._conditions.clear(CODE)

    def families(self) -> Iterator[Family]:
        """Return what ``/metrics`` says of it."""
        text = "What is given up: 0 nothing, 1 shadow, 2 profiles, 3 promptness, 4 flows."
        yield single("vedette_agent_pressure_level", "gauge", text, int(self.pressure.level))
        share = self.pressure.share
        yield single("vedette_agent_flow_share_ratio", "gauge", "Of the conversations that are scored.", share)
        strains = {**self.measures.strains, "host_cpu": self.measures.host}
        samples = [Sample(round(strain, 4), {"measure": name}) for name, strain in strains.items()]
        yield Family("vedette_agent_strain_ratio", "gauge", "Measures against their limits; over 1 is strain.", samples)


def host_cpu_waiting(path: Path = _PRESSURE) -> float:
    """Return the share of the last ten seconds in which some task of the host waited for a processor."""
    for line in _lines(path):
        kind, _, rest = line.partition(" ")
        if kind == "some":
            fields = dict(item.partition("=")[::2] for item in rest.split())
            return _number(fields.get("avg10", "")) / 100
    return 0.0


def host_memory_taken(path: Path = _MEMORY) -> float:
    """Return the share of the host's memory that is not available."""
    fields = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in _lines(path)) if rest.split()}
    total, available = _number(fields.get("MemTotal", "")), _number(fields.get("MemAvailable", ""))
    return 1 - available / total if 0 < available <= total else 0.0


def throttled_seconds(path: Path) -> float:
    """Return for how long a control group was held up by its quota since it was made."""
    fields = dict(line.partition(" ")[::2] for line in _lines(path))
    return _number(fields.get("throttled_usec", "")) / 1e6 + _number(fields.get("throttled_time", "")) / 1e9


def own_cpu_stats(groups: Path = _GROUPS, mount: Path = _MOUNT) -> tuple[Path, ...]:
    """Return the ``cpu.stat`` files of this process's control group and those above it: any may have the quota."""
    found: list[Path] = []
    for line in _lines(groups):
        number, controllers, own = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            base = mount
        elif "cpu" in controllers.split(","):
            base = mount / controllers
        else:
            continue
        group = base / own.strip("/")
        folders = [group, *group.parents]
        found += [folder / "cpu.stat" for folder in folders[: len(group.relative_to(base).parts) + 1]]
    return tuple(path for path in found if path.is_file())


def _lines(path: Path) -> list[str]:
    with suppress(OSError, FileTooLarge, UnicodeDecodeError):
        return read_file(path, _MAX_FILE_BYTES).decode().splitlines()
    return []


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() and text.isascii() else 0.0
