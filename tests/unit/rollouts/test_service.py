"""The rollout service over a real store and a fleet in memory; killed at every save and at every action."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.rollout_fleet import FakeFleet, FakeVersions, HandClock
from vedette.controller.adapters.clock import SystemClock
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.sqlite.rollouts import MIGRATIONS, SqliteRollouts
from vedette.controller.domain.errors import NotFound, Refused, StoreFailed
from vedette.controller.domain.rollout import Rollout
from vedette.controller.services.rollouts import RolloutService
from vedette.wire import views
from vedette.wire.values import GenerationResult, Outcome
from vedette.wire.views import MemberState, RolloutState


class InPlace:
    """Runs store work at once."""

    async def run(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)


@dataclass
class Site:
    """All that outlives a controller: its database, its fleet, the time."""

    database: Database
    fleet: FakeFleet
    clock: HandClock

    def service(self, store: Any = None) -> RolloutService:
        return RolloutService(
            runner=InPlace(),
            store=store or SqliteRollouts(self.database),
            fleet=self.fleet,
            desired=self.fleet,
            versions=FakeVersions(),
            clock=self.clock,
            gather_s=0,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = Database(tmp_path / "db.sqlite")
    database.migrate(MIGRATIONS)
    yield Site(database, FakeFleet(4), HandClock())
    database.close()


async def _begin(service: RolloutService, name: str = "flow-threat:2", **options: Any) -> views.Rollout:
    given = {"selector": "", "waves": ("1", "100%"), "soak_s": 30, "timeout_s": 60, "by": "ana", **options}
    started = await service.begin(name, **given)
    await service.tick()
    return started


async def _step(site: Site, service: RolloutService, seconds: float) -> None:
    """Let agents obey and report, and time pass."""
    site.fleet.obey()
    for agent_id in list(site.fleet.records):
        await service.on_presence(agent_id, is_online=True)
    await service.tick()
    site.clock.advance(seconds)
    await service.tick()


async def _finish(site: Site, service: RolloutService, rollout_id: str) -> views.Rollout:
    for _ in range(10):
        await _step(site, service, 31)
        shown = await service.rollout(rollout_id)
        if shown.ended:
            break
    return shown


def _states(shown: views.Rollout) -> list[MemberState]:
    return [member.state for wave in shown.waves for member in wave.members]


async def test_a_rollout_touches_its_canary_first_and_ends_with_everyone_moved(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    assert len(site.fleet.changes) == 1
    ended = await _finish(site, service, started.rollout)
    assert ended.state is RolloutState.SUCCEEDED
    assert [site.fleet.wanted(name) for name in site.fleet.records] == [2, 2, 2, 2]


async def test_a_failure_stops_it_and_takes_back_what_has_not_moved(site: Site) -> None:
    service = site.service()
    started = await _begin(service, waves=("2", "100%"))
    first, second = (agent_id for agent_id, _ in site.fleet.changes)
    site.fleet.serve(first, 2)
    site.fleet.fail(second, 2)
    await service.on_status(second, site.fleet.records[second].status)
    await service.on_status(first, site.fleet.records[first].status)
    await service.tick()
    shown = await service.rollout(started.rollout)
    assert shown.state is RolloutState.STOPPED
    assert shown.reason == f"edge-{second} failed: self-test: row 3 differs"
    assert (site.fleet.wanted(first), site.fleet.wanted(second)) == (2, 1)
    assert len(site.fleet.changes) == 3


def _logged(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, dict[str, str]]]:
    records = [record for record in caplog.records if record.name.endswith(".rollout_log")]
    return [(record.levelno, record.getMessage(), record.vedette_fields) for record in records]  # type: ignore[attr-defined]


async def test_the_log_has_each_event_and_each_agents_fate_once_with_fields_to_find_them_by(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = site.service()
    started = await _begin(service)
    await _finish(site, service, started.rollout)
    told = _logged(caplog)
    events = [event.text for event in (await service.rollout(started.rollout)).events]
    head = f"rollout {started.rollout} (flow-threat:2"
    of_rollout = [text for _, text, known in told if "VEDETTE_AGENT" not in known]
    begun = [f"{head} to all agents): {event}" for event in events[:2]]  # its start, and its first wave's
    assert of_rollout == [*begun, *[f"{head}): {event}" for event in events[2:]]]
    of_agents = {known["VEDETTE_AGENT"]: text for _, text, known in told if "VEDETTE_AGENT" in known}
    assert of_agents == {name: f"{head}): {name} serves it" for name in of_agents}
    assert len(of_agents) == len(told) - len(events) == 4
    common = {"VEDETTE_ROLLOUT": started.rollout, "VEDETTE_MODEL": "flow-threat:2", "VEDETTE_SLOT": "flow-threat"}
    assert all(common.items() <= known.items() for _, _, known in told)


async def test_a_rollout_that_stopped_is_a_warning_and_so_is_the_agent_that_stopped_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    service = site.service()
    await _begin(service, waves=("2", "100%"))
    bad = site.fleet.changes[0][0]
    site.fleet.fail(bad, 2)
    await service.on_status(bad, site.fleet.records[bad].status)
    await service.tick()
    warnings = [(text.partition("): ")[2], known.get("VEDETTE_AGENT")) for level, text, known in _logged(caplog)]
    assert warnings == [
        (f"edge-{bad} failed: self-test: row 3 differs", f"edge-{bad}"),
        (f"stopped: edge-{bad} failed: self-test: row 3 differs", None),
    ]


async def test_a_refusal_is_learnt_from_the_stored_result(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    canary = site.fleet.changes[0][0]
    result = GenerationResult(sequence=1, outcome=Outcome.REFUSED, code="bad-signature", reason="unknown key")
    site.fleet.judge(canary, result)
    await service.on_result(canary, result)
    await service.tick()
    shown = await service.rollout(started.rollout)
    assert shown.reason == f"edge-{canary} refused it: unknown key (bad-signature)"


async def test_pause_resume_and_abort_reach_the_agents(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    canary = site.fleet.changes[0][0]
    for verb, wanted in ((service.pause, 1), (service.resume, 2), (service.abort, 1)):
        await verb(started.rollout, "ana")
        await service.tick()
        assert site.fleet.wanted(canary) == wanted


async def test_an_ended_rollout_refuses_and_an_unknown_one_is_not_found(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    await service.abort(started.rollout, "ana")
    await service.tick()
    assert (await service.abort(started.rollout, "ana")).state is RolloutState.ABORTED
    with pytest.raises(Refused, match="cannot be paused"):
        await service.pause(started.rollout, "ana")
    with pytest.raises(NotFound, match="no rollout 99"):
        await service.rollout("99")


async def test_a_second_rollout_over_the_same_agents_is_refused(site: Site) -> None:
    service = site.service()
    first = await _begin(service)
    with pytest.raises(Refused, match=f"rollout {first.rollout} "):
        await _begin(service, "flow-threat:3", selector="name=edge-a1")


async def test_a_rollout_started_right_after_an_abort_is_not_taken_back_by_it(site: Site) -> None:
    service = site.service()
    first = await _begin(service, waves=("100%",))
    await service.abort(first.rollout, "ana")
    second = await service.begin("flow-threat:3", "", ("100%",), soak_s=0, timeout_s=60, by="ana")
    await service.tick()
    assert [site.fleet.wanted(name) for name in site.fleet.records] == [3, 3, 3, 3]
    await service.abort(second.rollout, "ana")
    await service.tick()
    assert [site.fleet.wanted(name) for name in site.fleet.records] == [1, 1, 1, 1]


async def test_a_revoked_agent_is_passed_over_even_when_nobody_says_so(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    site.fleet.set(site.fleet.changes[0][0], revoked=site.clock.now(), is_online=False)
    ended = await _finish(site, service, started.rollout)
    assert _states(ended) == [MemberState.SUPERSEDED, MemberState.MOVED, MemberState.MOVED, MemberState.MOVED]


async def test_an_agent_removed_before_it_is_assigned_is_passed_over(site: Site) -> None:
    service = site.service()
    started = await service.begin("flow-threat:2", "", ("1", "100%"), soak_s=0, timeout_s=60, by="ana")
    canary = started.waves[0].members[0].agent.removeprefix("edge-")
    del site.fleet.records[canary]
    await service.tick()
    shown = await service.rollout(started.rollout)
    assert _states(shown)[0] is MemberState.SUPERSEDED


async def test_an_agent_that_cannot_be_assigned_stops_it_with_the_reason(site: Site) -> None:
    def full(agent_id: str) -> None:
        raise Refused("slots-full", f"agent {agent_id} has no free slot", "it has 16, limit 16")

    site.fleet.before_change = full
    service = site.service()
    started = await _begin(service)
    shown = await service.rollout(started.rollout)
    assert shown.state is RolloutState.STOPPED
    assert "it has 16, limit 16" in shown.reason


async def test_an_agent_that_enrols_after_success_gets_the_version(site: Site) -> None:
    service = site.service()
    await _finish(site, service, (await _begin(service, selector="site=s1")).rollout)
    for name, home in (("late", "s1"), ("elsewhere", "s2")):
        site.fleet.enrol(name, site=home, empty=True)
        await service.on_enrolled(name)
    await service.tick()
    assert (site.fleet.wanted("late"), site.fleet.wanted("elsewhere")) == (2, None)


async def test_an_agent_that_enrols_while_a_rollout_runs_gets_the_version_once_it_succeeded(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    site.fleet.enrol("late", empty=True)
    await service.on_enrolled("late")
    await service.tick()
    assert site.fleet.wanted("late") is None
    await _finish(site, service, started.rollout)
    assert site.fleet.wanted("late") == 2


async def _away(site: Site, service: RolloutService, name: str = "island") -> None:
    """Let an agent enrol that no network reaches after that, and be given what rolled out to its like."""
    site.fleet.enrol(name, empty=True)
    site.fleet.set(name, is_online=False)
    await service.on_enrolled(name)
    await service.tick()


async def test_what_a_file_decided_is_taken_back_by_no_rollout_of_before_nor_by_a_restart(site: Site) -> None:
    service = site.service()
    await _finish(site, service, (await _begin(service)).rollout)
    await _away(site, service)
    assert site.fleet.wanted("island") == 2
    assert await service.decide_by_file("flow-threat:3", "name=edge-island", "ana") == ("island",)
    for again in (service, site.service()):  # a new one looks at everyone
        await again.on_presence("island", is_online=True)
        await again.tick()
        assert site.fleet.wanted("island") == 3


async def test_the_same_file_again_decides_nothing_anew(site: Site) -> None:
    service = site.service()
    await _away(site, service)
    await service.decide_by_file("flow-threat:3", "name=edge-island", "ana")
    changes = list(site.fleet.changes)
    await service.decide_by_file("flow-threat:3", "name=edge-island", "ana")
    assert site.fleet.changes == changes


async def test_a_later_rollout_moves_who_got_a_version_by_file(site: Site) -> None:
    service = site.service()
    await _away(site, service)
    await service.decide_by_file("flow-threat:3", "name=edge-island", "ana")
    site.fleet.set("island", is_online=True)
    await _finish(site, service, (await _begin(service, "flow-threat:4")).rollout)
    assert site.fleet.wanted("island") == 4


async def test_a_file_moves_nobody_who_is_connected_and_nobody_whom_a_rollout_moves(site: Site) -> None:
    service = site.service()
    with pytest.raises(Refused, match="edge-a0, edge-a1, edge-a2, edge-a3 would be moved at once") as caught:
        await service.decide_by_file("flow-threat:3", "", "ana")
    assert caught.value.code == "agent-online"
    site.fleet.set("a0", is_online=False)
    await _begin(service)
    with pytest.raises(Refused) as caught:
        await service.decide_by_file("flow-threat:3", "name=edge-a0", "ana")
    assert caught.value.code == "rollout-overlap"
    assert site.fleet.wanted("a0") == 1


async def test_a_file_may_bring_to_the_connected_what_they_are_to_run_already(site: Site) -> None:
    service = site.service()
    assert set(await service.decide_by_file("flow-threat:1", "", "ana")) == {"a0", "a1", "a2", "a3"}
    assert site.fleet.changes == []


async def test_an_agent_labelled_into_a_selection_gets_its_version_with_its_next_word(site: Site) -> None:
    service = site.service()
    await _finish(site, service, (await _begin(service, selector="site=s1")).rollout)
    site.fleet.enrol("mover", site="s2", empty=True)
    await service.on_enrolled("mover")
    await service.tick()
    site.fleet.set("mover", labels={"site": "s1"})
    await service.on_presence("mover", is_online=True)
    await service.tick()
    assert site.fleet.wanted("mover") == 2


async def test_a_late_joiner_without_the_runtime_is_left_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    service = site.service()
    await _finish(site, service, (await _begin(service)).rollout)
    site.fleet.enrol("old", empty=True)
    site.fleet.set("old", facts=views.Facts(runtimes={"onnxruntime": "1.16"}))
    await service.on_enrolled("old")
    await service.tick()
    assert site.fleet.wanted("old") is None
    assert "no runtime" in caplog.text


async def test_a_clock_that_is_set_changes_no_wait(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    site.fleet.obey()
    await _report(site, service)
    site.clock.wall = site.clock.wall.replace(year=2036)
    await service.tick()
    shown = await service.rollout(started.rollout)
    assert [wave.state for wave in shown.waves] == ["soaking", "waiting"]
    site.clock.advance(31)
    await service.tick()
    assert len(site.fleet.changes) == 4


async def test_nothing_is_done_of_what_could_not_be_stored_and_it_is_decided_again(site: Site) -> None:
    store = BreakingStore(site.database)
    service = site.service(store)
    await _begin(service)
    site.fleet.obey()
    await _report(site, service)
    store.broken = True
    site.clock.advance(31)
    with pytest.raises(StoreFailed):
        await service.tick()
    assert len(site.fleet.changes) == 1
    store.broken = False
    await service.tick()
    assert len(site.fleet.changes) == 4


class BreakingStore(SqliteRollouts):
    """A store whose saves fail on command."""

    broken = False

    def save(self, rollout: Rollout, before: Rollout | None) -> None:
        if self.broken:
            raise StoreFailed("store-failed", "the store failed")
        super().save(rollout, before)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


class DoomedStore(SqliteRollouts):
    """A store that kills its controller right before or right after its n-th save."""

    def __init__(self, database: Database, saves: int, *, after: bool) -> None:
        super().__init__(database)
        self.left = saves
        self._after = after

    def save(self, rollout: Rollout, before: Rollout | None) -> None:
        self.left -= 1
        if self.left < 0 and not self._after:
            raise Killed
        super().save(rollout, before)
        if self.left < 0:
            raise Killed


async def _whole_life(site: Site, service: RolloutService, *, bad: bool) -> None:
    await service.recover()
    if not await service.rollouts():
        await _begin(service)
    for _ in range(8):
        site.fleet.obey()
        if bad:
            for name in ("a0", "a1", "a2", "a3"):
                if site.fleet.wanted(name) == 2 and len(site.fleet.changes) > 1:
                    site.fleet.fail(name, 2)
        await _report(site, service)
        site.clock.advance(31)
        await service.tick()


async def _report(site: Site, service: RolloutService) -> None:
    for agent_id in list(site.fleet.records):
        await service.on_presence(agent_id, is_online=True)
    await service.tick()


@pytest.mark.parametrize("bad", [False, True], ids=["good version", "bad version"])
@pytest.mark.parametrize("after", [False, True], ids=["before commit", "after commit"])
async def test_killed_at_any_save_it_ends_as_if_nothing_had_happened(site: Site, after: bool, bad: bool) -> None:
    kills = 0
    for saves in range(40):
        await _fresh(site)
        store = DoomedStore(site.database, saves, after=after)
        try:
            await _whole_life(site, site.service(store), bad=bad)
        except Killed:
            kills += 1
        survivor = site.service()
        await _whole_life(site, survivor, bad=bad)
        _check_end(site, await survivor.rollouts(), bad=bad)
        if store.left >= 0:
            break
    assert store.left >= 0, "the life was longer than the kills"
    assert kills >= 5


@pytest.mark.parametrize("bad", [False, True], ids=["good version", "bad version"])
async def test_killed_at_any_action_it_ends_as_if_nothing_had_happened(site: Site, bad: bool) -> None:
    for actions in range(5):
        await _fresh(site)
        left = [actions]

        def kill(agent_id: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        site.fleet.before_change = kill
        try:
            await _whole_life(site, site.service(), bad=bad)
        except Killed:
            site.fleet.before_change = lambda agent_id: None
        survivor = site.service()
        await _whole_life(site, survivor, bad=bad)
        _check_end(site, await survivor.rollouts(), bad=bad)


async def _fresh(site: Site) -> None:
    with site.database.transaction() as connection:
        connection.execute("DELETE FROM rollouts")
    site.fleet.__init__(4)  # type: ignore[misc]


def _check_end(site: Site, shown: tuple[views.Rollout, ...], *, bad: bool) -> None:
    assert [item.state for item in shown] == [RolloutState.STOPPED if bad else RolloutState.SUCCEEDED]
    for wave in shown[0].waves:
        for member in wave.members:
            wanted = 2 if member.state is MemberState.MOVED else 1
            assert site.fleet.wanted(member.agent.removeprefix("edge-")) == wanted


async def test_watching_tells_every_state_and_ends_with_the_rollout(site: Site) -> None:
    service = site.service()
    started = await _begin(service)
    watching = service.watch(started.rollout)
    seen = [await anext(watching)]
    for verb in (service.pause, service.resume, service.abort):
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        await verb(started.rollout, "ana")
        seen.append(await waiting)
    assert [item.state for item in seen] == ["running", "paused", "running", "aborted"]
    assert await _rest(watching) == []


async def _rest(watching: AsyncIterator[views.Rollout]) -> list[views.Rollout]:
    return [item async for item in watching]


async def test_in_the_background_its_time_comes_without_a_word_from_anyone(site: Site) -> None:
    site.clock = SystemClock()  # type: ignore[assignment]
    service = site.service()
    await service.start()
    try:
        started = await service.begin("flow-threat:2", "", ("100%",), soak_s=0, timeout_s=1, by="ana")
        seen = [shown.state async for shown in service.watch(started.rollout)]
    finally:
        await service.stop()
    assert (seen[0], seen[-1]) == (RolloutState.RUNNING, RolloutState.STOPPED)


async def test_in_the_background_news_move_it_on(site: Site) -> None:
    service = site.service()
    await service.start()
    try:
        site.fleet.before_change = lambda agent_id: assigned.set()
        assigned = asyncio.Event()
        started = await service.begin("flow-threat:2", "name=edge-a1", ("1",), soak_s=0, timeout_s=60, by="ana")
        await assigned.wait()
        site.fleet.serve("a1", 2)
        await service.on_presence("a1", is_online=True)
        seen = [shown.state async for shown in service.watch(started.rollout)]
    finally:
        await service.stop()
    assert seen[-1] is RolloutState.SUCCEEDED


async def test_lists_of_very_many_agents_leave_members_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vedette.controller.services.rollouts.MAX_LISTED_MEMBERS", 3)
    service = site.service()
    started = await _begin(service)
    assert [wave.members for wave in (await service.rollouts())[0].waves] == [(), ()]
    assert len(_states(await service.rollout(started.rollout))) == 4
