"""Any order of events, crashes among them: what a rollout promises holds after every step."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.rollout_world import World, choice
from vedette.controller.domain import rollout as machine
from vedette.controller.domain.rollout import Pending, Rollout, WaveState
from vedette.wire.values import Outcome
from vedette.wire.views import MemberState, RolloutState

AGENTS = 6
TIMEOUT_S = 60
SOAK_S = 30


class RolloutMachine(RuleBasedStateMachine):
    """Drive a rollout over six agents with anything that can happen to them, to it and to its controller."""

    @initialize(waves=st.sampled_from(["1,100%", "50%,100%", "2,2,2", "100%", "1,1,100%"]))
    def begin(self, waves: str) -> None:
        self.world = World(AGENTS)
        self.world.start(waves, soak_s=SOAK_S, timeout_s=TIMEOUT_S)
        self.ended: Rollout | None = None

    def _agent(self, index: int) -> str:
        return self.world.order()[index]

    @rule(index=st.integers(0, AGENTS - 1))
    def an_agent_obeys(self, index: int) -> None:
        agent = self.world.agents[self._agent(index)]
        if agent.online and not agent.gone and agent.desired is not None:
            self.world.move(agent.id, number=agent.desired.version)

    @rule(index=st.integers(0, AGENTS - 1), done=st.integers(0, 1000))
    def an_agent_downloads(self, index: int, done: int) -> None:
        agent = self.world.agents[self._agent(index)]
        if agent.desired == choice(2) and agent.active == 1:
            self.world.downloading(agent.id, done)

    @rule(index=st.integers(0, AGENTS - 1), how=st.sampled_from(["status", "result", "refusal", "error"]))
    def an_agent_fails(self, index: int, how: str) -> None:
        agent = self.world.agents[self._agent(index)]
        if agent.desired != choice(2):
            return
        if how == "status":
            self.world.fail(agent.id)
        elif how == "error":
            agent.errors = {"worker-dead": "the worker died 3 times"}
        else:
            self.world.answer(agent.id, Outcome.FAILED if how == "result" else Outcome.REFUSED)

    @rule(index=st.integers(0, AGENTS - 1), online=st.booleans())
    def a_link_changes(self, index: int, online: bool) -> None:
        self.world.agents[self._agent(index)].online = online

    @rule(index=st.integers(0, AGENTS - 1))
    def an_agent_is_revoked(self, index: int) -> None:
        self.world.agents[self._agent(index)].gone = True

    @rule(seconds=st.sampled_from([0, 1, SOAK_S, TIMEOUT_S, 1000]))
    def time_passes(self, seconds: int) -> None:
        self.world.tick(seconds)

    @rule(verb=st.sampled_from(["pause", "resume", "abort"]))
    @precondition(lambda self: not self.world.it.has_ended)
    def a_person_acts(self, verb: str) -> None:
        self.world.apply(verb)

    @rule(before_act=st.booleans(), down_s=st.sampled_from([0, 10, 100_000]))
    def the_controller_is_killed(self, before_act: bool, down_s: int) -> None:
        """Decide, then die: before the actions are done, or after them and before that is written down."""
        world = self.world
        world.rollout = machine.tick(world.it, [agent.sighting() for agent in world.agents.values()], world.now)
        stored = world.it
        if not before_act:
            world.act()
        world.now += timedelta(seconds=down_s)
        world.rollout = machine.recovered(stored, world.now)
        world.act()

    @invariant()
    def nothing_is_left_undone(self) -> None:
        assert machine.pending_actions(self.world.it) == ()

    @invariant()
    def waves_go_in_order(self) -> None:
        states = [wave.state for wave in self.world.it.waves]
        passed = [state is WaveState.PASSED for state in states]
        assert passed == sorted(passed, reverse=True)
        assert sum(state in (WaveState.MOVING, WaveState.SOAKING) for state in states) <= 1

    @invariant()
    def waves_not_begun_are_untouched(self) -> None:
        for wave in self.world.it.waves:
            if wave.state is WaveState.WAITING:
                for member in wave.members:
                    assert self.world.agents[member.agent_id].sequence == 0
                    assert member.state in (MemberState.WAITING, MemberState.SUPERSEDED)

    @invariant()
    def declared_is_what_the_rollout_says(self) -> None:
        for member in self.world.it.members:
            desired = self.world.agents[member.agent_id].desired
            if member.state in (MemberState.ASSIGNED, MemberState.UNREACHABLE, MemberState.MOVED):
                assert desired == choice(2)
            elif member.state is not MemberState.SUPERSEDED:
                assert desired == choice(1)

    @invariant()
    def a_failure_never_leaves_it_running(self) -> None:
        if any(member.state in (MemberState.FAILED, MemberState.REFUSED) for member in self.world.it.members):
            assert self.world.it.state is RolloutState.STOPPED

    @invariant()
    def success_means_that_somebody_moved_and_nobody_failed(self) -> None:
        if self.world.it.state is RolloutState.SUCCEEDED:
            assert any(member.state is MemberState.MOVED for member in self.world.it.members)
            assert all(wave.state is WaveState.PASSED for wave in self.world.it.waves)

    @invariant()
    def an_ended_one_never_changes(self) -> None:
        it = self.world.it
        if self.ended is not None:
            assert machine.view(it) == machine.view(self.ended)
        assert (it.ended is not None) == it.has_ended
        self.ended = it if it.has_ended else None

    @invariant()
    def every_wait_has_an_end(self) -> None:
        """Running means that an instant is known at which it goes on even if nobody says a word."""
        it = self.world.it
        if it.state is RolloutState.RUNNING:
            settled = machine.tick(it, (), self.world.now)
            assert settled.state is not RolloutState.RUNNING or machine.next_due(settled, self.world.now) is not None
        else:
            assert not any(member.pending is not Pending.NOTHING for member in it.members)

    def teardown(self) -> None:
        """Whatever happened, a fleet that falls silent brings it to rest in bounded time."""
        if not hasattr(self, "world"):
            return
        for agent in self.world.agents.values():
            agent.online = False
        limit = self.world.now + timedelta(seconds=2 * (AGENTS + 1) * (TIMEOUT_S + SOAK_S))
        while self.world.it.state is RolloutState.RUNNING:
            due = machine.next_due(self.world.it, self.world.now)
            assert due is not None
            assert due <= limit
            self.world.tick((due - self.world.now).total_seconds())


TestRollouts = RolloutMachine.TestCase
TestRollouts.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
