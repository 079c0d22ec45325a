"""Claims about applying assignments, with the real state and a serving that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.clock import NOON, FakeClock
from tests.support.fake_controller import AGENT_ID
from tests.support.waiting import until
from tests.unit.agent.test_reconcile import (
    ASSIGNMENT_KEY,
    RELEASE_KEY,
    assignment,
    desired,
    release,
    slot_of,
)
from vedette.agent.adapters.fleet.reconciler import Reconciler
from vedette.agent.adapters.inference.serving import EventKind, Serving, ServingEvent
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.clock import TrustedClock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.errors import InstallCode, InstallFailed
from vedette.agent.domain.reconcile import Trust
from vedette.models.assignment import AtDeadline, SlotAssignment
from vedette.models.release import Blob, Release
from vedette.wire.values import BuildRef, DesiredState, Facts, GenerationResult, Outcome, SlotStatus, Welcome


class Active:
    def __init__(self, build: SlotAssignment) -> None:
        self.build = build


class Obedient:
    """A serving whose installations succeed, fail or wait as a test says."""

    def __init__(self) -> None:
        self.actives: dict[str, Active] = {}
        self.unsettled: set[str] = set()
        self.failures: list[InstallFailed] = []
        self.gate: asyncio.Event | None = None
        self.tried: list[int] = []
        self.removed: list[str] = []
        self.cancelled = 0

    async def install(self, target: SlotAssignment, wanted: Release, fetch: Callable[[Blob], Awaitable[Path]]) -> None:
        self.tried.append(target.version)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.failures:
            raise self.failures.pop(0)
        self.actives[target.slot] = Active(target)
        self.unsettled.discard(target.slot)

    async def remove(self, slot: str) -> None:
        self.removed.append(slot)
        self.actives.pop(slot, None)

    def collect_garbage(self) -> int:
        return 0

    def statuses(self) -> tuple[SlotStatus, ...]:
        return ()


class Bench:
    """A reconciler on a folder; several may follow one another on the same."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.state = State(folder / "state.db")
        self.serving = Obedient()
        self.trusted = TrustedClock(self.clock, NOON - timedelta(days=1))
        self.conditions = Conditions(self.clock)
        self.results: list[GenerationResult] = []
        self.reconciler = Reconciler(
            trust=Trust(AGENT_ID, (RELEASE_KEY.public,), (ASSIGNMENT_KEY.public,)),
            facts=Facts(),
            state=self.state,
            serving=cast("Serving", self.serving),
            conditions=self.conditions,
            clock=self.trusted,
            fetch=self._no_fetch,
            report=self.results.append,
            changed=lambda: None,
            backoff=Backoff(base_s=30.0, cap_s=900.0, uniform=lambda low, high: high),
        )

    async def _no_fetch(self, blob: Blob) -> Path:
        raise AssertionError("nothing is fetched here")

    @property
    def codes(self) -> list[str]:
        return [held.code for held in self.conditions.current()]

    def want(self, version: int, sequence: int, lineage: dict[str, str] | None = None, **changes: Any) -> DesiredState:
        one = replace(release(version=version), lineage=lineage or {})
        word = desired(assignment(one, sequence=sequence, **changes), one)
        self.reconciler.desired(word)
        return word

    async def outcome(self, sequence: int, outcome: Outcome) -> GenerationResult:
        await until(lambda: [r for r in self.results if (r.sequence, r.outcome) == (sequence, outcome)])
        return [r for r in self.results if (r.sequence, r.outcome) == (sequence, outcome)][-1]


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.reconciler.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        bench.state.close()


async def test_what_is_wanted_is_stored_applied_and_told(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        word = bench.want(1, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        hello = bench.reconciler.hello()
        assert (hello.highest_sequence, hello.status.running_sequence, hello.status.attempted_sequence) == (5, 5, 5)
        assert bench.state.applied is not None
        assert (hello.applied_digest, bench.state.applied.assignment) == (bench.state.applied.digest, word.assignment)


async def test_signed_times_raise_the_stored_floor(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(1, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        assert bench.state.time_floor == NOON


async def test_a_refused_assignment_changes_nothing_and_is_told(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(1, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        bench.want(2, sequence=4)
        result = await bench.outcome(4, Outcome.REFUSED)
        assert result.code == "old-sequence"
        assert bench.codes == ["assignment-refused"]
        assert bench.serving.actives["flow-threat"].build == slot_of(release(version=1))
        bench.want(2, sequence=6)
        await bench.outcome(6, Outcome.APPLIED)
        assert bench.codes == []


@pytest.mark.parametrize("code", [InstallCode.DISK_FULL, InstallCode.HOST_FAILED, InstallCode.DIGEST_MISMATCH])
async def test_a_failure_that_is_not_the_builds_is_tried_again(tmp_path: Path, code: InstallCode) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.serving.failures = [InstallFailed(code, "now"), InstallFailed(code, "and then")]
        bench.want(1, sequence=5)
        for tries in (1, 2):
            await bench.clock.until_asleep(tries)
            assert (await bench.outcome(5, Outcome.FAILED)).code == code
            await bench.clock.advance(900.0)
        await bench.outcome(5, Outcome.APPLIED)
        assert bench.clock.slept == [30.0, 60.0]
        assert bench.codes == []


@pytest.mark.parametrize("code", [InstallCode.SELF_TEST_FAILED, InstallCode.QUARANTINED])
async def test_a_failure_that_is_the_builds_is_final(tmp_path: Path, code: InstallCode) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.serving.failures = [InstallFailed(code, "as it is")]
        bench.want(1, sequence=5)
        result = await bench.outcome(5, Outcome.FAILED)
        assert (result.code, result.reason) == (code, "as it is")
        assert bench.clock.slept == []
        assert bench.state.sequences.failed == 5
        assert bench.state.sequences.running == 0


async def test_the_newest_wins_over_one_that_is_being_applied(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.serving.gate = asyncio.Event()
        bench.want(1, sequence=5)
        await until(lambda: bench.serving.tried == [1])
        bench.want(2, sequence=6)
        await until(lambda: bench.serving.tried == [1, 2])
        bench.serving.gate.set()
        await bench.outcome(6, Outcome.APPLIED)
        assert bench.serving.cancelled == 1
        assert [r.sequence for r in bench.results] == [6]


async def test_the_same_word_again_is_answered_not_applied_again(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        word = bench.want(1, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        bench.reconciler.desired(word)
        await until(lambda: len(bench.results) == 2)
        assert bench.results[0] == bench.results[1]
        assert bench.serving.tried == [1]


async def test_a_restart_goes_on_with_what_was_wanted(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as first:
        first.serving.gate = asyncio.Event()
        first.want(1, sequence=5)
        await until(lambda: first.serving.tried == [1])
    async with running(Bench(tmp_path)) as second:
        await second.outcome(5, Outcome.APPLIED)
        assert second.state.sequences.running == 5


async def test_a_build_that_falls_after_it_was_applied_fails_its_assignment(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(2, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        build = slot_of(release(version=2)).build
        fallen = BuildRef(model="flow-threat", version=2, build=build)
        bench.reconciler.happened(ServingEvent(EventKind.FELL_BACK, "flow-threat", fallen, "worker-crashed", "3 times"))
        result = await bench.outcome(5, Outcome.FAILED)
        assert (result.code, result.reason) == ("worker-crashed", "3 times")
        assert bench.state.sequences.failed == 5


async def test_a_build_that_falls_for_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(2, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        fallen = BuildRef(model="flow-threat", version=2, build=slot_of(release(version=2)).build)
        del bench.serving.actives["flow-threat"]
        bench.reconciler.happened(ServingEvent(EventKind.FELL_BACK, "flow-threat", fallen, "digest-mismatch", "a bit"))
        await until(lambda: bench.serving.tried == [2, 2])
        await until(lambda: [r.outcome for r in bench.results] == [Outcome.APPLIED, Outcome.FAILED, Outcome.APPLIED])
        assert bench.codes == []


async def test_a_slot_that_is_wanted_no_more_is_removed(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(1, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        bench.reconciler.desired(desired(assignment(sequence=6)))
        await bench.outcome(6, Outcome.APPLIED)
        assert bench.serving.removed == ["flow-threat"]


async def test_slots_stop_at_a_deadline_that_says_so_by_the_floor_and_not_by_the_wall(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(1, sequence=5, at_deadline=AtDeadline.STOP)
        await bench.outcome(5, Outcome.APPLIED)
        bench.clock.step_wall(timedelta(days=7300))  # a broken clock stops nothing
        bench.reconciler.look_again()
        assert bench.serving.removed == []
        bench.trusted.raise_floor(NOON + timedelta(days=31))
        bench.reconciler.look_again()
        await until(lambda: bench.serving.removed == ["flow-threat"])
        assert bench.codes == ["assignment-over"]


async def test_a_controller_that_signed_in_the_future_is_obeyed_once_its_clock_is_right(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(1, sequence=5, issued=NOON + timedelta(days=365), not_after=NOON + timedelta(days=455))
        await bench.outcome(5, Outcome.APPLIED)
        bench.want(2, sequence=6, issued=NOON)
        await bench.outcome(6, Outcome.APPLIED)


async def test_a_clock_that_steps_while_connected_is_told_until_it_steps_back(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.reconciler.welcomed(Welcome(time=NOON, status_interval_s=60))
        bench.clock.step_wall(timedelta(days=7300))
        bench.reconciler.look_again()
        assert bench.codes == ["clock-wrong"]
        bench.clock.step_wall(timedelta(days=-7300))
        bench.reconciler.look_again()
        assert bench.codes == []


async def test_a_clock_far_from_the_controllers_is_told_and_corrected(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.reconciler.welcomed(Welcome(time=NOON + timedelta(days=365), status_interval_s=60))
        assert bench.codes == ["clock-wrong"]
        assert bench.reconciler.status().agent_time == NOON + timedelta(days=365)
        bench.reconciler.welcomed(Welcome(time=NOON, status_interval_s=60))
        assert bench.codes == []


async def test_a_disk_that_is_full_when_storing_is_told_and_what_runs_goes_on(tmp_path: Path) -> None:
    async with running(Bench(tmp_path)) as bench:
        bench.want(1, sequence=5)
        await bench.outcome(5, Outcome.APPLIED)
        pages = bench.state._connection.execute("PRAGMA page_count").fetchone()[0]
        bench.state._connection.execute(f"PRAGMA max_page_count = {pages}")
        bench.want(2, sequence=6, lineage={"padding": "x" * 30_000})
        assert bench.codes == ["state-failed"]
        assert (await bench.outcome(6, Outcome.FAILED)).code == "disk-full"
        assert bench.serving.actives["flow-threat"].build == slot_of(release(version=1))
        bench.state._connection.execute("PRAGMA max_page_count = 1000000")
        bench.reconciler.look_again()  # the controller has said it and will not say it again
        await bench.outcome(6, Outcome.APPLIED)
        assert bench.codes == []
