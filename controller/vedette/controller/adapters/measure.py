"""What the controller's ``/metrics`` says."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from vedette.controller.adapters.http import Metric
from vedette.models.version import __version__

_PREFIX = "vedette_controller"
_STARTED = time.time()


def process_metrics(data_dir: Path) -> Iterator[Metric]:
    """Yield what every process tells, under the names that Prometheus clients agree on."""
    times = os.times()
    statm = Path("/proc/self/statm").read_text().split()
    resident = int(statm[1]) * os.sysconf("SC_PAGE_SIZE")
    yield Metric(f"{_PREFIX}_info", "gauge", "Always 1.", 1, {"version": __version__})
    yield Metric("process_cpu_seconds_total", "counter", "CPU time of this process.", times.user + times.system)
    yield Metric("process_resident_memory_bytes", "gauge", "Resident memory of this process.", resident)
    yield Metric("process_start_time_seconds", "gauge", "When this process started, Unix time.", _STARTED)
    free = shutil.disk_usage(data_dir).free
    yield Metric(f"{_PREFIX}_disk_free_bytes", "gauge", "Free bytes where the data directory lies.", free)


def fleet_metrics(states: Counter[str]) -> Iterator[Metric]:
    """Yield how many agents are in which state."""
    for state, count in states.items():
        yield Metric(f"{_PREFIX}_agents", "gauge", "Agents by state.", count, {"state": state})


def call_metrics(calls: Mapping[tuple[str, str], int]) -> Iterator[Metric]:
    """Yield how many calls ended how."""
    for (method, code), count in calls.items():
        labels = {"method": method.rpartition(".")[2], "code": code}
        yield Metric(f"{_PREFIX}_calls_total", "counter", "gRPC calls by method and outcome.", count, labels)


def failure_metrics(failures: Mapping[str, int]) -> Iterator[Metric]:
    """Yield how often the database failed, by code."""
    for code, count in failures.items():
        text = "Transactions that the database refused or failed."
        yield Metric(f"{_PREFIX}_store_failures_total", "counter", text, count, {"code": code})


def counter(name: str, text: str, value: float) -> Metric:
    """Return a counter of the controller."""
    return Metric(f"{_PREFIX}_{name}_total", "counter", text, value)
