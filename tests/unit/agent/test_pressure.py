"""Claims about pressure: what is given up comes in one order, is taken back, and does not flap."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.agent.domain.pressure import HOLD_S, LEAST_SHARE, STEP_S, Level, Measures, Pressure, told

STRAINED, CALM = Measures(cpu=1.5), Measures(cpu=0.1)


def looked(pressure: Pressure, measures: Measures, seconds: int, begin: int = 0) -> list[Level]:
    return [pressure.look(measures, begin + second) for second in range(seconds)]


def test_what_nobody_asked_for_goes_first_and_flows_last() -> None:
    levels = looked(Pressure(), STRAINED, 60)
    assert list(dict.fromkeys(levels)) == list(Level)
    assert levels.index(Level.FLOWS) == 4 * STEP_S


SCENARIOS: list[tuple[str, list[tuple[Measures, int]], Level]] = [
    ("idle", [(Measures(), 600)], Level.NONE),
    ("just within every limit", [(Measures(0.95, 0.25, 0.9, 0.5, 0.6, 0.97), 600)], Level.NONE),
    ("a spike of two seconds", [(STRAINED, 2), (CALM, 1), (STRAINED, 2)], Level.NONE),
    ("a model that computes too much", [(STRAINED, 60)], Level.FLOWS),
    ("a quota that is smaller than the budget", [(Measures(cpu=0.4, throttled=0.5), 60)], Level.FLOWS),
    ("a process that leaks", [(Measures(memory=0.95), 60)], Level.FLOWS),
    ("more datagrams than can be decoded", [(Measures(queues=0.6), 60)], Level.FLOWS),
    ("a host without memory", [(Measures(host_memory=0.98), 60)], Level.FLOWS),
    ("a busy host and a busy agent", [(Measures(cpu=0.5, host_cpu=0.9), 600)], Level.WAITING),
    ("a busy host and an idle agent", [(Measures(cpu=0.1, host_cpu=1.0), 600)], Level.NONE),
    ("strain that ended a moment ago", [(STRAINED, 60), (CALM, 5)], Level.FLOWS),
    ("strain that ended, host still busy", [(STRAINED, 16), (Measures(cpu=0.3, host_cpu=0.9), 600)], Level.WAITING),
    ("strain that ended long ago", [(STRAINED, 60), (CALM, 900)], Level.NONE),
    ("too much to take anything back", [(STRAINED, 7), (Measures(cpu=0.8), 3600)], Level.PROFILES),
]


@pytest.mark.parametrize(("phases", "level"), [row[1:] for row in SCENARIOS], ids=[row[0] for row in SCENARIOS])
def test_a_scenario_ends_at_its_level(phases: list[tuple[Measures, int]], level: Level) -> None:
    pressure, at = Pressure(), 0
    for measures, seconds in phases:
        looked(pressure, measures, seconds, at)
        at += seconds
    assert pressure.level is level
    assert pressure.share == 1 or level is Level.FLOWS


@pytest.mark.parametrize("demand", [1.05, 1.5, 3.0, 10.0])
def test_the_share_of_flows_settles_where_the_budget_holds_and_stays_there(demand: float) -> None:
    pressure, shares, costs = Pressure(), [], []
    for second in range(600):
        costs.append(0.1 + demand * pressure.share)  # what decoding costs anyway, and what scoring all flows would
        pressure.look(Measures(cpu=fmean(costs[-3:])), second)
        shares.append(pressure.share)
    assert max(costs[-300:]) <= 1.0
    assert min(costs[-300:]) >= 0.6  # and no more is given up than need be
    assert pressure.level is Level.FLOWS
    assert len(set(shares[-300:])) == 1


def test_even_the_greatest_strain_leaves_a_share_of_the_flows() -> None:
    pressure = Pressure()
    looked(pressure, Measures(cpu=1000.0), 600)
    assert pressure.share == LEAST_SHARE


def test_a_load_that_fits_only_while_something_is_given_up_makes_ever_longer_pauses_between_tries() -> None:
    pressure, changes = Pressure(), []
    for second in range(6 * 3600):
        load = 1.2 if pressure.level < Level.PROFILES else 0.5  # profiling all rows is what is too much
        before = pressure.level
        if pressure.look(Measures(cpu=load), second) is not before:
            changes.append(second)
    assert len(changes) < 100
    pauses = [later - earlier for earlier, later in pairwise(changes)]
    assert max(pauses[-4:]) >= 900


MOMENTS = st.lists(st.tuples(st.builds(Measures, *[st.floats(0, 3)] * 6), st.integers(1, 60)), min_size=1, max_size=60)


@given(MOMENTS)
def test_however_the_load_moves_levels_change_by_one_step_and_not_sooner_than_said(
    moments: list[tuple[Measures, int]],
) -> None:
    pressure, at = Pressure(), 0
    level, since = Level.NONE, -1000
    for measures, seconds in moments:
        for _ in range(seconds):
            at += 1
            now = pressure.look(measures, at)
            if now is not level:
                assert abs(now - level) == 1
                assert at - since >= (STEP_S if now > level else HOLD_S)
                level, since = now, at
            assert LEAST_SHARE <= pressure.share <= 1
            assert pressure.share == 1 or now is Level.FLOWS
    looked(pressure, Measures(), 7200, at)
    assert (pressure.level, pressure.share) == (Level.NONE, 1.0)


@given(MOMENTS)
def test_a_busy_host_alone_never_costs_a_flow(moments: list[tuple[Measures, int]]) -> None:
    pressure, at = Pressure(), 0
    for measures, seconds in moments:
        for _ in range(seconds):
            at += 1
            pressure.look(Measures(cpu=min(measures.cpu, 0.9), host_cpu=1.0), at)
    assert pressure.level <= Level.WAITING


def test_the_condition_says_why_what_was_given_up_and_what_to_do() -> None:
    pressure = Pressure()
    looked(pressure, STRAINED, 14)
    assert told(pressure, STRAINED) == (
        "the agent uses 150% of budget.cpu_percent; given up: models in shadow, data profiles of all but 1 in 8 rows, "
        "promptness (flows are scored in batches of a second), flows: 63% of the conversations are scored, the rest is "
        "counted; raise budget.cpu_percent; it is taken back when it is calm"
    )


def test_a_busy_host_is_named_as_the_cause_when_it_is() -> None:
    pressure, busy = Pressure(), Measures(cpu=0.5, host_cpu=0.9)
    looked(pressure, busy, 30)
    assert told(pressure, busy).startswith("tasks of this host wait for a processor 90% of the time; given up: models")
