"""What a rollout does, as a table of short stories.

A story is a list of words. Agents are named by their place in the rollout's order: 0 is the canary. States are written
one letter a member, waves apart: (w)aiting (a)ssigned (m)oved (f)ailed (r)efused (u)nreachable (s)uperseded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.rollout_world import NOON, World, choice, plan_only
from vedette.controller.domain import rollout as machine
from vedette.controller.domain.errors import Refused
from vedette.controller.domain.rollout import Pending
from vedette.wire.values import GenerationResult, Outcome
from vedette.wire.views import MemberState, RolloutState

# name: (agents, waves, story, members, state, part of the reason)
STORIES: dict[str, tuple[int, str, str, str, str, str]] = {
    "first wave is assigned at once": (3, "1,100%", "", "a|ww", "running", ""),
    "a wave moves and soaks before the next": (3, "1,100%", "move:0 tick:0 tick:29", "m|ww", "running", ""),
    "the next wave follows the soak": (3, "1,100%", "move:0 tick:0 tick:30", "m|aa", "running", ""),
    "the last wave soaks too": (3, "1,100%", "move:0 tick tick:30 move:1 move:2 tick tick:29", "m|mm", "running", ""),
    "it succeeds after the last soak": (
        3,
        "1,100%",
        "move:0 tick tick:30 move:1 move:2 tick tick:30",
        "m|mm",
        "succeeded",
        "",
    ),
    "one laggard holds a wave up": (3, "1,100%", "move:0 tick tick:30 move:1 tick:50", "m|ma", "running", ""),
    "a canary that fails stops it": (3, "1,100%", "fail:0 tick", "f|ww", "stopped", "failed: self-test"),
    "a refusal stops it": (3, "1,100%", "refuse:0 tick", "r|ww", "stopped", "refused it: signature (c)"),
    "a failed result stops it": (3, "1,100%", "failed:0 tick", "f|ww", "stopped", "failed: signature (c)"),
    "a failure of a later wave stops it": (3, "1,100%", "move:0 tick tick:30 fail:1 tick", "m|fw", "stopped", "failed"),
    "a failure in the soak stops it": (3, "1,100%", "move:0 tick tick:10 back:0 tick", "f|ww", "stopped", "went back"),
    "an error condition in the soak stops it": (
        3,
        "1,100%",
        "move:0 tick tick:10 error:0 tick",
        "f|ww",
        "stopped",
        "disk is full",
    ),
    "a canary that falls back in a later wave stops it": (
        3,
        "1,100%",
        "move:0 tick tick:30 back:0 tick",
        "f|ww",
        "stopped",
        "went back",
    ),
    "what is kept of one that is away may be from before it moved": (
        3,
        "1,100%",
        "move:0 tick tick:10 gone-silent:0 back:0 tick",
        "m|ww",
        "running",
        "",
    ),
    "one that comes back without the version stops it": (
        3,
        "1,100%",
        "move:0 tick tick:10 gone-silent:0 back:0 tick return:0 tick",
        "f|ww",
        "stopped",
        "went back",
    ),
    "an error it had before does not count": (3, "1,100%", "sick move:0 tick tick:30", "m|aa", "running", ""),
    "an agent that serves but is not well has not moved": (3, "1,100%", "move:0 error:0 tick:5", "a|ww", "running", ""),
    "an agent that stays unwell fails at its deadline": (
        3,
        "1,100%",
        "move:0 error:0 tick:5 tick:60",
        "f|ww",
        "stopped",
        "disk is full",
    ),
    "an online agent that does nothing fails at its deadline": (
        3,
        "1,100%",
        "tick:60",
        "f|ww",
        "stopped",
        "no progress towards flow-threat:2 in 60 s",
    ),
    "a moment before the deadline it has not": (3, "1,100%", "tick:59.9", "a|ww", "running", ""),
    "progress moves the deadline": (3, "1,100%", "load:0:10 tick:50 load:0:20 tick:50", "a|ww", "running", ""),
    "a download that stalls fails": (
        3,
        "1,100%",
        "load:0:100 tick:50 tick:60",
        "f|ww",
        "stopped",
        "last seen: downloading 10 %",
    ),
    "a download that starts over is no progress": (
        3,
        "1,100%",
        "load:0:500 tick:10 load:0:1 tick:30 load:0:499 tick:30",
        "f|ww",
        "stopped",
        "no progress",
    ),
    "silence is not failure": (3, "1,100%", "gone-silent:0 tick:59", "u|ww", "running", ""),
    "a wave nobody answered pauses it": (3, "1,100%", "gone-silent:0 tick tick:60", "w|ww", "paused", "nobody of wave"),
    "silent members do not hold a wave up for ever": (
        3,
        "100%",
        "move:0 move:1 gone-silent:2 tick tick:60 tick:30",
        "mmu",
        "succeeded",
        "",
    ),
    "a last wave that is all silent ends as success": (
        3,
        "2,100%",
        "move:0 move:1 gone-silent:2 tick tick:30 tick:60 tick:30",
        "mm|u",
        "succeeded",
        "",
    ),
    "one that returns in time moves": (
        3,
        "1,100%",
        "gone-silent:0 tick:30 return:0 move:0 tick",
        "m|ww",
        "running",
        "",
    ),
    "one that was silent at its deadline is not failed by it": (
        3,
        "3",
        "move:0 move:1 gone-silent:2 tick return:2 tick:61 tick:30",
        "mma",
        "succeeded",
        "",
    ),
    "one that returns late and fails stops it all the same": (
        3,
        "2,100%",
        "move:1 gone-silent:0 tick tick:61 return:0 fail:0 tick",
        "fm|w",
        "stopped",
        "failed",
    ),
    "a canary silent through the soak is no proof": (
        3,
        "1,100%",
        "move:0 tick gone-silent:0 tick:30",
        "m|ww",
        "running",
        "",
    ),
    "a canary that stays silent pauses it": (
        3,
        "1,100%",
        "move:0 tick gone-silent:0 tick:30 tick:60",
        "m|ww",
        "paused",
        "fell silent",
    ),
    "a canary that comes back well lets it go on": (
        3,
        "1,100%",
        "move:0 tick gone-silent:0 tick:30 return:0 tick:5",
        "m|aa",
        "running",
        "",
    ),
    "few silent of many are no reason to wait": (
        5,
        "4,100%",
        "move:0 move:1 move:2 move:3 tick gone-silent:3 tick:30",
        "mmmm|a",
        "running",
        "",
    ),
    "a revoked member is passed over": (3, "1,100%", "revoke:0 tick tick:30", "s|aa", "running", ""),
    "all members revoked end it": (2, "1,100%", "revoke:0 revoke:1 tick", "s|s", "stopped", "revoked or removed"),
    "pausing takes back what has not moved": (3, "2,100%", "move:0 tick pause", "mw|w", "paused", "paused by ana"),
    "a paused one does not time out": (3, "1,100%", "pause tick:9999", "w|ww", "paused", ""),
    "a paused one still learns of a failure": (3, "1,100%", "pause failed-old:0 tick", "f|ww", "stopped", "failed"),
    "resuming assigns anew": (3, "1,100%", "pause tick:9999 resume", "a|ww", "running", ""),
    "a resumed one goes on": (3, "1,100%", "pause resume obey tick tick:30", "m|aa", "running", ""),
    "resuming in a soak soaks anew": (3, "1,100%", "move:0 tick pause tick:99 resume tick:29", "m|ww", "running", ""),
    "resuming after silence waits anew": (
        3,
        "1,100%",
        "gone-silent:0 tick tick:60 resume tick:59",
        "u|ww",
        "running",
        "",
    ),
    "aborting takes back what has not moved": (3, "2,100%", "move:0 tick abort", "mw|w", "aborted", "aborted by ana"),
    "a paused one can be aborted": (3, "1,100%", "pause abort", "w|ww", "aborted", ""),
    "nothing moves an ended one": (3, "1,100%", "abort move:0 tick:99 fail:1 tick:99", "w|ww", "aborted", ""),
    "a result of an older assignment is not ours": (3, "1,100%", "stale:0 tick", "a|ww", "running", ""),
    "a failed result while the slot serves it is another slot's": (
        3,
        "1,100%",
        "move:0 failed:0 tick",
        "m|ww",
        "running",
        "",
    ),
    "a soak of zero goes on at once": (3, "1,100%", "soak0 move:0 tick", "m|aa", "running", ""),
}


def _play(agents: int, waves: str, story: str) -> World:
    words = story.split()
    world = World(agents)
    if "sick" in words:
        for agent in world.agents.values():
            agent.errors = {"disk-full": "the disk is full"}
    world.start(waves, soak_s=0 if "soak0" in words else 30)
    order = world.order()
    for word in words:
        name, *rest = word.split(":")
        if name not in ("sick", "soak0"):
            _WORDS[name](world, order, rest)
    return world


def _tick(world: World, _: list[str], rest: list[str]) -> None:
    world.tick(float(rest[0]) if rest else 0)


def _who(change: Callable[[World, str], None]) -> Callable[[World, list[str], list[str]], None]:
    return lambda world, order, rest: change(world, order[int(rest[0])])


def _set(**fields: object) -> Callable[[World, list[str], list[str]], None]:
    def change(world: World, name: str) -> None:
        for key, value in fields.items():
            setattr(world.agents[name], key, value)

    return _who(change)


_WORDS: dict[str, Callable[[World, list[str], list[str]], None]] = {
    "tick": _tick,
    "move": _who(lambda world, name: world.move(name)),
    "back": _who(lambda world, name: world.move(name, number=1)),
    "fail": _who(lambda world, name: world.fail(name)),
    "load": lambda world, order, rest: world.downloading(order[int(rest[0])], int(rest[1])),
    "refuse": _who(lambda world, name: world.answer(name, Outcome.REFUSED)),
    "failed": _who(lambda world, name: world.answer(name, Outcome.FAILED)),
    "failed-old": _who(lambda world, name: world.answer(name, Outcome.FAILED, sequence=1)),
    "stale": _who(lambda world, name: world.answer(name, Outcome.FAILED, sequence=99)),
    "error": _set(errors={"disk-full": "the disk is full"}),
    "gone-silent": _set(online=False),
    "return": _set(online=True),
    "revoke": _set(gone=True),
    "pause": lambda world, order, rest: world.apply("pause"),
    "resume": lambda world, order, rest: world.apply("resume"),
    "abort": lambda world, order, rest: world.apply("abort"),
    "obey": lambda world, order, rest: world.obey(),
}


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str) -> None:
    agents, waves, story, members, state, reason = STORIES[name]
    world = _play(agents, waves, story)
    assert (world.states(), str(world.it.state)) == (members, state)
    assert reason in world.it.reason


def test_what_was_assigned_and_not_moved_is_taken_back_and_what_moved_stays() -> None:
    world = _play(3, "2,100%", "move:0 tick fail:1 tick")
    moved, failed, untouched = (world.agents[name] for name in world.order())
    assert moved.desired == choice(2)
    assert failed.desired == choice(1)
    assert (untouched.desired, untouched.sequence) == (choice(1), 0)


def test_a_slot_that_was_empty_is_emptied_again() -> None:
    world = World(2)
    for agent in world.agents.values():
        agent.active, agent.desired = None, None
    world.start("1,100%")
    assert world.agents[world.order()[0]].desired == choice(2)
    world.apply("abort")
    assert world.agents[world.order()[0]].desired is None


def test_agents_that_serve_the_version_have_moved_at_once() -> None:
    world = World(3)
    world.move("0", "1", "2")
    world.start("100%", soak_s=0)
    assert world.it.state is RolloutState.SUCCEEDED
    assert world.states() == "mmm"


def test_agents_never_heard_of_again_keep_their_assignment_after_success() -> None:
    world = _play(3, "100%", "move:0 move:1 gone-silent:2 tick tick:60 tick:30")
    assert world.agents[world.order()[2]].desired == choice(2)


def test_no_agent_of_a_later_wave_is_touched_when_every_agent_is_bad() -> None:
    world = World(50)
    world.start("5,100%")
    for name in world.order():
        world.fail(name)
    world.tick()
    assert sum(agent.sequence > 0 for agent in world.agents.values()) == 5
    assert world.it.state is RolloutState.STOPPED


@pytest.mark.parametrize("change", [machine.pause, machine.resume, machine.abort])
def test_verbs_on_an_ended_rollout_are_refused_naming_how_it_ended(change: Callable[..., object]) -> None:
    world = _play(3, "1,100%", "fail:0 tick")
    with pytest.raises(Refused, match="rollout 7 cannot be") as caught:
        change(world.it, "ana", world.now)
    assert "stopped" in caught.value.why


@pytest.mark.parametrize(("verb", "first"), [("pause", "pause"), ("resume", ""), ("abort", "abort")])
def test_saying_it_twice_changes_nothing(verb: str, first: str) -> None:
    world = _play(3, "1,100%", first)
    before = world.it
    world.apply(verb)
    assert machine.view(world.it) == machine.view(before)


def test_a_restart_after_a_long_time_waits_for_evidence_instead_of_passing_on() -> None:
    world = _play(3, "1,100%", "move:0 tick")
    world.now += timedelta(days=1)
    world.rollout = machine.recovered(world.it, world.now)
    world.tick()
    assert world.states() == "m|ww"
    world.tick(30)
    assert world.states() == "m|aa"


def test_a_restart_gives_open_members_their_whole_time_again() -> None:
    world = _play(3, "1,100%", "")
    world.now += timedelta(days=1)
    world.rollout = machine.recovered(world.it, world.now)
    world.tick(59)
    assert world.states() == "a|ww"
    world.tick(1)
    assert world.it.state is RolloutState.STOPPED


@pytest.mark.parametrize("days", [-365, 365])
def test_a_stepped_clock_neither_ends_nor_stretches_a_wait(days: int) -> None:
    world = _play(3, "1,100%", "move:0 tick tick:20")
    step = timedelta(days=days)
    world.now += step
    world.rollout = machine.shifted(world.it, step)
    world.tick(9)
    assert world.states() == "m|ww"
    world.tick(1)
    assert world.states() == "m|aa"


def test_a_clock_that_went_back_while_the_controller_was_down_stalls_nothing() -> None:
    world = _play(3, "1,100%", "")
    world.now -= timedelta(days=365)
    world.rollout = machine.recovered(world.it, world.now)
    world.tick(60)
    assert world.it.state is RolloutState.STOPPED


@pytest.mark.parametrize("code", ["old-sequence", "expired"])
def test_a_refusal_that_is_issued_again_by_itself_is_no_verdict(code: str) -> None:
    world = _play(3, "1,100%", "")
    canary = world.agents[world.order()[0]]
    canary.results.append(GenerationResult(sequence=1, outcome=Outcome.REFUSED, code=code, reason="renumbered"))
    world.tick()
    assert world.states() == "a|ww"


def test_refusing_a_later_assignment_that_still_has_the_version_is_refusing_it() -> None:
    world = _play(3, "1,100%", "")
    world.answer(world.order()[0], Outcome.REFUSED, sequence=2)
    world.tick()
    assert world.states() == "r|ww"


def test_a_version_that_cannot_be_assigned_has_failed_there() -> None:
    world = World(2)
    planned = plan_only(world)
    first = planned.members[0]
    barred = machine.barred(planned, {first.agent_id: "it has 16 slots, limit 16"}, world.now)
    assert barred.state is RolloutState.STOPPED
    assert "16 slots" in barred.reason


def test_what_cannot_be_taken_back_is_left() -> None:
    world = _play(2, "1,100%", "")
    ended = machine.abort(world.it, "ana", world.now)
    assert machine.pending_actions(machine.barred(ended, {world.order()[0]: "gone"}, world.now)) == ()


def test_next_due_is_the_next_instant_at_which_time_alone_matters() -> None:
    world = _play(3, "1,100%", "")
    assert machine.next_due(world.it, world.now) == NOON + timedelta(seconds=60)
    world.move(world.order()[0])
    world.tick(10)
    assert machine.next_due(world.it, world.now) == NOON + timedelta(seconds=40)
    world.apply("pause")
    assert machine.next_due(world.it, world.now) is None


def test_equal_members_stay_the_same_objects_so_that_little_is_stored() -> None:
    world = _play(3, "1,100%", "")
    before = world.it
    world.tick(1)
    assert all(old is new for old, new in zip(before.members, world.it.members, strict=True))


def test_pending_actions_are_part_of_the_state_until_they_are_performed() -> None:
    world = World(3)
    world.start("1,100%")
    decided = machine.abort(world.it, "ana", world.now)
    actions = machine.pending_actions(decided)
    assert [(action.agent_id, action.choice) for action in actions] == [(world.order()[0], choice(1))]
    done = machine.performed(decided, {actions[0].agent_id: 9})
    assert machine.pending_actions(done) == ()
    assert done.members[0].pending is Pending.NOTHING
    assert done.members[0].sequence == 1


def test_the_view_names_agents_and_says_why() -> None:
    world = _play(3, "1,100%", "fail:0 tick")
    shown = machine.view(world.it)
    first = shown.waves[0].members[0]
    assert first.agent == f"edge-{world.order()[0]}"
    assert (first.state, first.reason) == (MemberState.FAILED, "self-test: row 3 differs")
    assert [wave.state for wave in shown.waves] == ["stopped", "waiting"]
    assert "stopped: " in shown.events[-1].text


def test_a_failure_of_an_earlier_try_that_still_shows_is_not_one_of_this_try() -> None:
    world = _play(3, "1,100%", "")
    canary = world.order()[0]
    world.fail(canary)
    agent = world.agents[canary]
    agent.slot, agent.attempted = replace(agent.slot, quarantined=()), 0
    world.tick()
    assert world.states() == "a|ww"
    agent.attempted = 1
    world.tick()
    assert world.states() == "f|ww"


def test_an_agent_that_talks_too_much_is_cut_short() -> None:
    world = _play(3, "1,100%", "")
    world.fail(world.order()[0], reason="x" * 4000)
    world.tick()
    assert len(world.it.members[0].reason) == machine.MAX_REASON


def test_events_are_bounded() -> None:
    world = _play(3, "1,100%", "pause")
    for _ in range(machine.MAX_EVENTS):
        world.apply("resume")
        world.apply("pause")
    assert len(world.it.events) == machine.MAX_EVENTS
