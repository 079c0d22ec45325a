"""What Prometheus's client libraries say of every process, under the names that dashboards already look for.

Source: Prometheus, Writing client libraries, "Process metrics"; proc(5) for the fields.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from vedette.agent.adapters.host.usage import cpu_seconds
from vedette.agent.domain.metrics import Family, single

_START_TICKS = 19  # of the fields behind the command's name: proc(5) field 22
_PAGES, _RESIDENT = 0, 1  # of /proc/self/statm


def families_process() -> Iterator[Family]:
    """Return the figures of the calling process."""
    yield single("process_cpu_seconds_total", "counter", "CPU of the main process.", cpu_seconds(os.getpid()) or 0.0)
    yield single("process_start_time_seconds", "gauge", "Start of the main process, Unix time.", _started())
    pages = [int(count) for count in Path("/proc/self/statm").read_text().split()]
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    text = "Resident memory of the main process."
    yield single("process_resident_memory_bytes", "gauge", text, pages[_RESIDENT] * page_bytes)
    text = "Address space of the main process."
    yield single("process_virtual_memory_bytes", "gauge", text, pages[_PAGES] * page_bytes)
    open_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    yield single("process_open_fds", "gauge", "Open files of the main process.", open_files)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield single("process_max_fds", "gauge", "Open files it may have.", most_files)


def _started() -> float:
    """Return the start as the kernel tells it now: it moves with a clock that is set, as every other time does."""
    ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[_START_TICKS])
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
