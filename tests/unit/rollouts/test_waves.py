"""The sizes of waves, who goes first, and which plans are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.controller.domain.errors import InvalidInput
from vedette.controller.domain.waves import DEFAULT_WAVES, MAX_WAVES, WaveSize, in_order, parse_waves, split


@pytest.mark.parametrize(
    ("text", "everyone", "size"),
    [
        ("1", 3, 1),
        ("5", 3, 5),
        ("25%", 4, 1),
        ("25%", 5, 2),
        ("0.5%", 1000, 5),
        ("0.01%", 3, 1),
        ("100%", 7, 7),
        ("33.33%", 9999, 3333),
        (" 10% ", 10, 1),
    ],
)
def test_a_size_takes_so_many_of_everyone(text: str, everyone: int, size: int) -> None:
    assert WaveSize.parse(text).of(everyone) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "-1", "101%", "1.5", "100001", "all", "١", "1%%", "1e3", "nan", "5 %5", "1.234%", "½"]
)
def test_a_size_that_means_nothing_is_refused_with_the_value(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        WaveSize.parse(text)
    assert repr(text) in caught.value.what
    assert "100%" in caught.value.why


def test_no_sizes_are_the_default_plan() -> None:
    assert tuple(size.text for size in parse_waves(())) == DEFAULT_WAVES


def test_too_many_waves_are_refused_with_the_limit() -> None:
    with pytest.raises(InvalidInput, match=f"{MAX_WAVES + 1} waves"):
        parse_waves(["1"] * (MAX_WAVES + 1))


def test_waves_that_leave_agents_out_are_refused() -> None:
    with pytest.raises(InvalidInput, match="reach 2 of 3 agents"):
        split(["a", "b", "c"], parse_waves(["1", "1"]))


@given(st.integers(1, 400), st.lists(st.sampled_from(["1", "3", "5%", "25%", "60%"]), max_size=6))
def test_every_agent_is_in_exactly_one_wave_and_no_wave_is_empty(count: int, sizes: list[str]) -> None:
    agents = [f"a{i}" for i in range(count)]
    waves = split(agents, parse_waves([*sizes, "100%"]))
    assert [agent for _, members in waves for agent in members] == agents
    assert all(members for _, members in waves)
    assert all(len(members) <= size.of(count) for size, members in waves)


def _order(rollout_id: str, offline: set[str]) -> list[str]:
    agents = [f"a{i}" for i in range(40)]
    return in_order(agents, rollout_id, lambda name: name, lambda name: name not in offline)


def test_order_is_the_same_every_time_and_other_for_another_rollout() -> None:
    assert _order("7", set()) == _order("7", set())
    assert _order("7", set()) != _order("8", set())


def test_agents_that_are_online_come_first() -> None:
    offline = {"a3", "a17", "a39"}
    assert set(_order("7", offline)[-3:]) == offline
