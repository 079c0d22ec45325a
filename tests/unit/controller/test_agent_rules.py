from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clock import NOON
from vedette.controller.domain.agents import AgentRecord, slots_view, state_of, unique_name
from vedette.controller.domain.desired import ASSIGNMENT_LIFE, issue, must_reissue_after, must_reissue_at_hello
from vedette.controller.domain.errors import InvalidInput
from vedette.controller.domain.rate import AddressLimit
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, SlotAssignment
from vedette.models.signing import SigningKey, unseal
from vedette.wire.values import (
    BuildRef,
    Condition,
    Facts,
    GenerationResult,
    Outcome,
    Severity,
    SlotState,
    SlotStatus,
    Status,
)
from vedette.wire.views import AgentState

AGENT = AgentRecord(
    id="a", name="edge", key_digest="k", facts=Facts(), enrolled=NOON, seen=NOON, is_online=True, desired_sequence=3
)
DONE = Status(desired_sequence=3, running_sequence=3)
KEY = SigningKey.generate()
SLOT = SlotAssignment("m", "m", 1, "sha256:" + "1" * 64, "sha256:" + "2" * 64)


def judged(outcome: Outcome, sequence: int = 3) -> GenerationResult:
    return GenerationResult(sequence=sequence, outcome=outcome)


def condition(severity: Severity) -> tuple[Condition, ...]:
    return (Condition(code="c", severity=severity, since=NOON),)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"status": DONE}, AgentState.HEALTHY),
        ({"status": DONE, "revoked": NOON}, AgentState.REVOKED),
        ({"seen": None, "is_online": False}, AgentState.ENROLLED),
        ({"status": DONE, "is_online": False}, AgentState.SILENT),
        ({"status": Status(running_sequence=2)}, AgentState.BEHIND),
        ({"status": Status(running_sequence=4)}, AgentState.HEALTHY),
        ({"status": Status(running_sequence=2, failed_sequence=3)}, AgentState.DEGRADED),
        ({"status": Status(running_sequence=3, failed_sequence=2)}, AgentState.HEALTHY),
        ({"status": Status(running_sequence=2), "result": judged(Outcome.REFUSED)}, AgentState.DEGRADED),
        ({"status": Status(running_sequence=2), "result": judged(Outcome.FAILED)}, AgentState.DEGRADED),
        ({"status": Status(running_sequence=2), "result": judged(Outcome.FAILED, 2)}, AgentState.BEHIND),
        ({"status": DONE, "result": judged(Outcome.APPLIED)}, AgentState.HEALTHY),
        ({"status": replace(DONE, conditions=condition(Severity.ERROR))}, AgentState.DEGRADED),
        ({"status": replace(DONE, conditions=condition(Severity.WARNING))}, AgentState.HEALTHY),
        ({"status": Status(), "desired_sequence": 0}, AgentState.HEALTHY),
    ],
)
def test_state_in_a_word(changes: dict[str, Any], state: AgentState):
    assert state_of(replace(AGENT, **changes)) is state


def test_slots_show_what_is_desired_beside_what_runs():
    active = BuildRef(model="m", version=1, build="sha256:b")
    reported = SlotStatus(
        slot="m", state=SlotState.FAILED, active=active, candidate=replace(active, version=2), reason="r"
    )
    agent = replace(AGENT, status=replace(DONE, slots=(reported,)), slots={"m": replace(SLOT, version=2), "n": SLOT})
    shown = slots_view(agent)
    assert (shown["m"].active, shown["m"].candidate, shown["m"].desired) == ("m:1", "m:2", "m:2")
    assert (shown["m"].state, shown["m"].reason, shown["m"].build) == (SlotState.FAILED, "r", "sha256:b")
    assert (shown["n"].state, shown["n"].active, shown["n"].desired) == (SlotState.EMPTY, "", "m:1")


@pytest.mark.parametrize(
    ("wished", "hostname", "taken", "expected"),
    [
        ("edge", "host", [], "edge"),
        ("", "host", [], "host"),
        ("", "-bad host-", [], "agent"),
        ("", "", ["agent"], "agent-2"),
        ("edge", "", ["edge", "edge-2"], "edge-3"),
        ("x" * 63, "", ["x" * 63], "x" * 56 + "-2"),
    ],
)
def test_names(wished: str, hostname: str, taken: list[str], expected: str):
    assert unique_name(wished, hostname, taken.__contains__) == expected


@given(st.text(max_size=80), st.text(max_size=80), st.sets(st.text(max_size=10)))
def test_a_name_is_free_and_well_formed_or_the_wish_is_refused(wished: str, hostname: str, taken: set[str]):
    try:
        name = unique_name(wished, hostname, taken.__contains__)
    except InvalidInput:
        assert wished
        return
    assert name not in taken
    assert unique_name(name, "", lambda _: False) == name


@given(st.lists(st.integers(0, 2**52), max_size=5))
def test_a_sequence_is_above_all_that_were_seen(above: list[int]):
    made = issue("a", {"m": SLOT}, above=above, now=NOON, key=KEY)
    assert all(made.sequence > seen for seen in above)
    assignment = Assignment.from_bytes(unseal(made.envelope, ASSIGNMENT_TYPE, [KEY.public]))
    assert (assignment.sequence, assignment.digest, assignment.slots) == (made.sequence, made.digest, made.slots)


def test_when_an_assignment_is_issued_anew():
    newest = issue("a", {"m": SLOT}, above=[4], now=NOON, key=KEY)

    def at_hello(digest: str = "", highest: int = 0, later: timedelta = timedelta()) -> bool:
        return must_reissue_at_hello(newest, applied_digest=digest, highest_sequence=highest, now=NOON + later)

    assert not at_hello()
    assert not at_hello(highest=5)
    assert at_hello(highest=6)
    assert at_hello(later=ASSIGNMENT_LIFE * 0.6)
    assert not at_hello(digest=newest.digest, highest=6, later=ASSIGNMENT_LIFE * 2)
    refused = GenerationResult(sequence=5, outcome=Outcome.REFUSED, code="old-sequence")
    assert must_reissue_after(newest, refused)
    assert not must_reissue_after(newest, replace(refused, sequence=4))
    assert not must_reissue_after(newest, replace(refused, outcome=Outcome.FAILED))
    assert not must_reissue_after(newest, replace(refused, code="build-unknown"))


def test_a_site_of_new_appliances_is_let_in_and_a_flood_is_not():
    limit = AddressLimit()
    assert all(limit.allows("10.0.0.1", 0.0) for _ in range(2000))
    assert not limit.allows("10.0.0.1", 0.0)
    assert limit.allows("10.0.0.2", 0.0)
    assert limit.allows("10.0.0.1", 0.01)
    assert all(limit.allows("10.0.0.1", 1.0 + i / 190) for i in range(10_000))


def test_addresses_without_end_take_bounded_memory():
    limit = AddressLimit()
    for number in range(limit.MOST_ADDRESSES + 500):
        limit.allows(str(number), 0.0)
    assert len(limit._buckets) == limit.MOST_ADDRESSES
