from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.conditions import Conditions
from vedette.agent.rooms.serving import build_serving
from vedette.agent.settings import cpus_of, read_settings
from vedette.models.toml_settings import SettingsError, WrongValue


@pytest.mark.parametrize(("text", "cpus"), [("", ()), ("3", (3,)), ("0,4-7,5", (0, 4, 5, 6, 7))])
def test_a_list_of_processors_is_read_as_cpusets_are_written(text: str, cpus: tuple[int, ...]) -> None:
    assert cpus_of(text) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "1;2", "-1", "3-1", "1,,2", "123456", " 1"])
def test_what_is_no_list_of_processors_is_refused(text: str) -> None:
    with pytest.raises(WrongValue):
        cpus_of(text)


def build(folder: Path, text: str) -> None:
    file = folder / "agent.toml"
    file.write_text(f'state_dir = "{folder}"\n{text}\n')
    state = State(folder / "state.db")
    try:
        build_serving(read_settings(file), state, FakeClock(), Conditions(FakeClock()), lambda event: None)
    finally:
        state.close()


def test_processors_that_the_host_has_not_are_an_error_with_those_it_has(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    build(tmp_path, f'[inference]\ncpus = "{allowed[0]}"')
    with pytest.raises(SettingsError, match=f"processors 99991, 99992; this program may use {allowed[0]}"):
        build(tmp_path, '[inference]\ncpus = "99991-99992"')


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("workers = 0", "inference.workers is 0, allowed is at least 1"),
        ("queue = 0", "inference.queue is 0"),
        ('spare = "yes"', "inference.spare is .yes., expected one of auto, on, off"),
        ('cpus = "two"', "inference.cpus is 'two', expected processors such as"),
        ("cpus = 2", "inference.cpus is 2, expected a text"),
    ],
)
def test_wrong_values_are_told_with_what_is_expected(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        build(tmp_path, f"[inference]\n{text}")
