"""Claims about reading where the agent stands: figures of the real kernel, and files of kernels that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from vedette.agent.adapters.host.pressure import (
    Budgets,
    PressureWatch,
    StrainGauge,
    host_cpu_waiting,
    host_memory_taken,
    own_cpu_stats,
    throttled_seconds,
)
from vedette.agent.adapters.host.usage import cpu_seconds, private_bytes
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.metrics import render
from vedette.agent.domain.pressure import Level

MIB = 2**20
PSI = "some avg10=12.34 avg60=1.00 avg300=0.10 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"


def gauge(budgets: Budgets, *fills: float, workers: tuple[int, ...] = (), files: tuple[Path, ...] = ()) -> StrainGauge:
    return StrainGauge(budgets, workers=lambda: workers, fills=lambda: fills, throttle_files=files)


def burn(seconds: float) -> None:
    until = (cpu_seconds(os.getpid()) or 0.0) + seconds
    while (cpu_seconds(os.getpid()) or 0.0) < until:
        sum(range(10_000))


def test_processor_time_is_a_share_of_the_budget_over_the_last_seconds() -> None:
    own = gauge(Budgets(cpu=0.2, main_bytes=MIB, worker_bytes=MIB))
    assert own.read(100.0).cpu == 0.0  # what was spent before is of no known time
    burn(0.3)
    assert own.read(101.0).cpu == pytest.approx(0.3 / 0.2, rel=0.3)
    assert own.read(103.0).cpu == pytest.approx(0.1 / 0.2, rel=0.4)
    for second in range(104, 110):
        last = own.read(second)
    assert last.cpu < 0.3


def test_memory_is_of_all_processes_against_all_budgets() -> None:
    alone = gauge(Budgets(1.0, 1000 * MIB, 500 * MIB)).read(0.0).memory
    assert alone == pytest.approx(private_bytes(os.getpid()) / (1500 * MIB), rel=0.2)
    code = "import sys; block = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        workers = (child.pid, child.pid)
        both = gauge(Budgets(1.0, 1000 * MIB, 500 * MIB), workers=workers).read(0.0).memory
        assert both * 2000 - alone * 1500 == pytest.approx(2 * 70, rel=0.2)
        child.communicate(b"")
    assert private_bytes(2**22 + 1) == 0


def test_the_fullest_queue_counts() -> None:
    assert gauge(Budgets(1.0, MIB, MIB), 0.1, 0.7, 0.2).read(0.0).queues == 0.7
    assert gauge(Budgets(1.0, MIB, MIB)).read(0.0).queues == 0.0


@pytest.mark.parametrize("text", ["usage_usec 9\nthrottled_usec {us}\n", "nr_throttled 3\nthrottled_time {us}000\n"])
def test_throttling_is_the_share_of_the_time_held_up_by_the_worst_group(tmp_path: Path, text: str) -> None:
    mine, above = tmp_path / "mine", tmp_path / "above"
    mine.write_text("nr_periods 0\n")
    own = gauge(Budgets(1.0, MIB, MIB), files=(mine, above, tmp_path / "gone"))
    shares = []
    for second in range(6):
        above.write_text(text.format(us=400_000 * second))
        shares.append(round(own.read(second).throttled, 3))
    assert shares == [0.0, 0.4, 0.4, 0.4, 0.4, 0.4]


@pytest.mark.parametrize(("text", "share"), [(PSI, 0.1234), ("", 0.0), ("some avg10=nan", 0.0), ("some\n\xff=", 0.0)])
def test_waiting_for_processors_is_read_where_the_kernel_tells_it(tmp_path: Path, text: str, share: float) -> None:
    path = tmp_path / "cpu"
    path.write_text(text, "latin-1")
    assert host_cpu_waiting(path) == share
    assert host_cpu_waiting(tmp_path / "none") == 0.0


@pytest.mark.parametrize(
    ("text", "share"),
    [("MemTotal: 1000 kB\nMemAvailable: 250 kB\n", 0.75), ("MemTotal: 1000 kB\n", 0.0), ("MemTotal:\n", 0.0)],
)
def test_memory_of_the_host_is_read_where_the_kernel_tells_it(tmp_path: Path, text: str, share: float) -> None:
    path = tmp_path / "meminfo"
    path.write_text(text)
    assert host_memory_taken(path) == share
    assert 0.0 < host_memory_taken() < 1.0  # this host's


GROUPS = {
    "v2": ("0::/system.slice/agent.service/main\n", "", ["system.slice/agent.service/main", "system.slice", ""]),
    "v1": ("5:cpu,cpuacct:/a/b\n4:cpuset:/\n1:name=systemd:/\n", "cpu,cpuacct", ["a/b", "a", ""]),
    "both": ("5:cpu:/a\n0::/a\n", "cpu", ["a", ""]),
    "neither": ("1:name=systemd:/\nmalformed\n", "cpu", []),
}


@pytest.mark.parametrize(("text", "controller", "folders"), GROUPS.values(), ids=GROUPS)
def test_quotas_of_the_own_group_and_those_above_are_found(
    tmp_path: Path, text: str, controller: str, folders: list[str]
) -> None:
    (tmp_path / "cgroup").write_text(text)
    mount = tmp_path / "mount"
    wanted = [mount / controller / folder / "cpu.stat" for folder in folders]
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert own_cpu_stats(tmp_path / "cgroup", mount) == tuple(wanted)
    assert throttled_seconds(mount / "none") == 0.0


class Pipeline:
    """What gives something up."""

    pressure = Level.NONE
    flow_share = 1.0


async def test_the_pipeline_and_the_operator_are_told_what_is_given_up_and_when_it_is_over() -> None:
    clock, pipeline, fills = FakeClock(), Pipeline(), [1.0]
    conditions = Conditions(clock)
    own = StrainGauge(Budgets(100.0, 2**40, 0), workers=tuple, fills=lambda: fills, throttle_files=())
    watch = PressureWatch(own, pipeline, conditions, clock)
    codes = []
    for second in range(900):
        watch.look()
        codes.append([held.code for held in conditions.current()])
        assert codes[-1] == (["under-pressure"] if pipeline.pressure >= Level.PROFILES else [])
        if second == 20:
            assert (pipeline.pressure, watch.pressure.share) == (Level.FLOWS, pipeline.flow_share)
            text = conditions.current()[0].text
            assert text.startswith("its queues are 100% full; given up: ")
            assert b'strain_ratio{measure="queues"} 2\n' in render(watch.families())
            fills[0] = 0.0
        await clock.advance(1.0)
    assert codes[20] == ["under-pressure"]
    assert (pipeline.pressure, pipeline.flow_share, codes[-1]) == (Level.NONE, 1.0, [])
