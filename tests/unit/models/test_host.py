"""Claims about the rows of host metrics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vedette.agent.adapters.sources.host_reading import read_host
from vedette.models.host import HOST_SCHEMA, HostReading, host_row, host_values
from vedette.models.schema import FeatureSchema

CPU = {"cpu_user": 5, "cpu_system": 3, "cpu_iowait": 1, "cpu_interrupt": 1, "cpu_steal": 0, "cpu_idle": 10}
READING = HostReading(100.0, CPU, {"load_1m": 0.5, "temperature": 61.0}, {"forks": 1000, "net_drops": 7})


def later(**counters: float) -> HostReading:
    cpu = {name: value + 2 for name, value in CPU.items()} | {"cpu_idle": 20.0}
    return replace(READING, at_s=110.0, cpu_s=cpu, counters={**READING.counters, **counters})


def test_counters_are_rates_and_processor_times_are_shares() -> None:
    row = host_values(host_row(READING, later(forks=1050))[0])
    assert (row["forks_rate"], row["net_drops_rate"], row["load_1m"], row["temperature"]) == (5.0, 0.0, 0.5, 61.0)
    assert (row["cpu_user_share"], row["cpu_steal_share"]) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("before", "now", "unknown"),
    [
        (READING, later(forks=3), {"forks_rate"}),
        (READING, replace(later(), gauges={}), {"temperature", "load_1m"}),
        (READING, replace(later(), cpu_s={"cpu_user": 9}), {"cpu_user_share", "cpu_steal_share"}),
        (later(), later(), {"cpu_user_share", "forks_rate"}),
    ],
)
def test_what_is_not_known_or_went_back_is_null(before: HostReading, now: HostReading, unknown: set[str]) -> None:
    row = host_values(host_row(before, now)[0])
    assert {name for name in unknown if row[name] is not None} == set()


def test_a_row_has_a_value_for_every_feature_and_no_infinity() -> None:
    row = host_row(READING, later(forks=1e300))
    assert row.shape == (1, len(HOST_SCHEMA))
    assert row.dtype == np.float32
    assert not np.isinf(row).any()


def test_the_schema_has_units_and_its_own_kind() -> None:
    assert HOST_SCHEMA.kind == "host"
    assert all(feature.unit and feature.description for feature in HOST_SCHEMA.features)
    assert FeatureSchema.from_bytes(HOST_SCHEMA.to_bytes()) == HOST_SCHEMA


def test_the_docs_list_every_feature_with_its_unit() -> None:
    page = (Path(__file__).parents[3] / "docs/sources.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \|", page.partition("## Host metrics")[2], re.MULTILINE)
    assert listed == [(feature.name, feature.unit) for feature in HOST_SCHEMA.features]


def test_a_reading_of_this_machine_is_plausible(tmp_path: Path) -> None:
    before = read_host(tmp_path, 100.0)
    sum(range(2_000_000))
    row = host_values(host_row(before, read_host(tmp_path, 101.0))[0])
    assert set(row) == set(HOST_SCHEMA.names)
    assert {name for name, value in row.items() if value is None} <= {"temperature"} | {
        name for name in row if name.startswith(("disk_", "cpu_"))
    }
    assert all(0 <= row[name] <= 1 for name in row if name.endswith("_share") and row[name] is not None)
    assert row["tasks"] > 1
    assert row["uptime"] > 0
    assert all(value is None or value >= 0 for value in row.values())


def test_a_machine_that_hides_a_file_tells_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette.agent.adapters.sources.host_reading._PROC", tmp_path)
    reading = read_host(tmp_path, 1.0)
    assert "load_1m" not in reading.gauges
    assert "memory_used_share" in reading.gauges
