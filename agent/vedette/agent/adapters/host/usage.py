"""What the agent's processes cost the appliance: CPU seconds and memory, read from /proc."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UTIME, _STIME = 11, 12  # of the fields behind the command's name, proc(5) fields 14 and 15


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds spent since the last reading, and memory now."""

    cpu_seconds: float
    memory_bytes: int


class CpuMeter:
    """Adds up the CPU seconds of processes that come and go."""

    def __init__(self) -> None:
        self._spent: dict[int, float] = {}

    def read(self, pids: Iterable[int]) -> float:
        """Return what was spent since the last reading; a process that ended meanwhile counts up to that reading."""
        spent = {pid: seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None}
        # A pid that came back smaller is another process.
        grown = sum(max(0.0, now - self._spent.get(pid, 0.0)) for pid, now in spent.items())
        self._spent = spent
        return grown


class UsageMeter:
    """Reads the agent's own process and its workers."""

    def __init__(self, workers: Callable[[], Iterable[int]]) -> None:
        self._workers = workers
        self._cpu = CpuMeter()
        self.cpu_seconds_total = 0.0

    def read(self) -> Usage:
        """Return what was spent since the last reading."""
        pids = (os.getpid(), *self._workers())
        grown = self._cpu.read(pids)
        self.cpu_seconds_total += grown
        return Usage(grown, sum(map(proportional_bytes, pids)))


def cpu_seconds(pid: int) -> float | None:
    """Return the user and system CPU seconds of a process; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S


def proportional_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 when it is gone or may not be read."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def private_bytes(pid: int) -> int:
    """Return what a process holds resident and shares with no file and no other process; 0 when it is gone.

    Cheap enough for every second, where the proportional size costs milliseconds.
    """
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES
