"""Claims about the real agent under clocks that lie: at its start, for ever, and in steps while it runs."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.bundles import bundle_of
from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.false_time import FalseTime, needs_libfaketime
from vedette.agent.domain.clock import EARLIEST
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, AtDeadline, SlotAssignment
from vedette.models.release import Release
from vedette.models.signing import seal
from vedette.wire.values import DesiredState, Outcome, Window

pytestmark = [needs_libfaketime, pytest.mark.slow]

YEAR, A_MINUTE = timedelta(days=365), timedelta(minutes=1)
FALSE = {
    "1970": datetime(1970, 1, 2, tzinfo=UTC),
    "past the end of 32 bits": datetime(2038, 1, 20, tzinfo=UTC),
    "twenty years ahead": datetime.now(UTC) + 20 * YEAR,
}


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FalseTime:
    return FalseTime(tmp_path, monkeypatch)


def assigned(
    controller: FakeController, sequence: int, release: Release, issued: datetime, life: timedelta = timedelta(days=90)
) -> DesiredState:
    slot = SlotAssignment(release.model, release.model, release.version, release.digest, release.builds[0].digest)
    made = Assignment("agent-1", sequence, issued, issued + life, AtDeadline.KEEP, (slot,))
    word = controller.assign(sequence, release)
    return DesiredState(
        assignment=seal(ASSIGNMENT_TYPE, made.to_bytes(), controller.assignment_key), releases=word.releases
    )


def floor_of(daemon: Daemon) -> datetime:
    with sqlite3.connect(daemon.folder / "s/state.db") as state:
        (text,) = state.execute("SELECT value FROM facts WHERE name = 'time_floor'").fetchone()
    return datetime.fromisoformat(text)


async def imported(daemon: Daemon, controller: FakeController, word: DesiredState) -> int:
    file = daemon.folder / "usb.bundle"
    file.write_bytes(bundle_of(word, blobs=controller.blobs.values()))
    # libfaketime 0.9.10 breaks time.sleep when monotonic clocks are left alone, so the command does not wait.
    return await daemon.command("import", "--no-wait", str(file))


def windows_of(controller: FakeController) -> list[Window]:
    ordered = sorted(controller.committed.items())
    return [window for _, batch in ordered for window in batch.windows if not window.slot]


@pytest.mark.parametrize("wrong", FALSE.values(), ids=FALSE.keys())
async def test_whatever_the_clock_says_it_takes_files_serves_connects_and_dates_rightly(
    wrong: datetime, clock: FalseTime, daemon: Daemon, controller: FakeController
) -> None:
    now = datetime.now(UTC)
    controller.time = now
    clock.begin_at(wrong)
    await enrolled(daemon, controller)
    port, enrol_port = controller.port, controller.enrol_port
    await controller.stop()
    await daemon.start()
    assert await imported(daemon, controller, assigned(controller, 2, offer(controller, 2), now)) == 0
    await daemon.until(lambda r: active(r) == 2)
    assert floor_of(daemon) <= now  # never by the wall clock
    assert await imported(daemon, controller, assigned(controller, 1, offer(controller, 1), now)) == 4
    assert "old-sequence" in daemon.log()
    over = assigned(controller, 3, offer(controller, 3), EARLIEST - 2 * YEAR)
    assert await imported(daemon, controller, over) == 4
    assert "expired" in daemon.log()

    await controller.start(port, enrol_port)
    await daemon.until(lambda r: "clock-wrong" in [c["code"] for c in r["conditions"]])
    # Windows from before the first word of the controller have the wrong time, of which the controller makes its own.
    await controller.until(lambda c: (told := windows_of(c)) and abs(told[-1].end - datetime.now(UTC)) < A_MINUTE)
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    await daemon.until(lambda _: daemon.verdicts.exists() and daemon.lines())
    assert abs(datetime.fromisoformat(daemon.lines()[-1]["timestamp"]) - datetime.now(UTC)) < A_MINUTE


async def test_steps_of_a_year_lose_and_double_no_window_and_end_no_session(
    clock: FalseTime, daemon: Daemon, controller: FakeController
) -> None:
    controller.time = datetime.now(UTC)
    await enrolled(daemon, controller)
    controller.desired = assigned(controller, 1, offer(controller, 1), datetime.now(UTC))
    began = asyncio.get_running_loop().time()
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    for step in (YEAR, -YEAR, timedelta(0)):
        clock.step(step)
        told = len(controller.committed)
        await controller.until(lambda c, told=told: len(c.committed) >= told + 3)
    assert active(daemon.report()) == 1
    assert await daemon.stop() == 0
    lasted = asyncio.get_running_loop().time() - began
    sequences = sorted(sequence for _, sequence in controller.committed)
    assert sequences == [*range(1, len(sequences) + 1)]
    spans = [(window.end - window.start).total_seconds() for window in windows_of(controller)]
    assert min(spans) >= 0
    assert 0.8 * lasted - 3 < sum(spans) < lasted + 1
    assert len(controller.hellos) == 1


async def test_after_four_hundred_days_without_a_link_it_connects_renews_nothing_by_hand_and_takes_what_is_new(
    clock: FalseTime, daemon: Daemon, controller: FakeController
) -> None:
    now = datetime.now(UTC)
    await enrolled(daemon, controller)
    port, enrol_port = controller.port, controller.enrol_port
    await controller.stop()
    assert await imported(daemon, controller, assigned(controller, 1, offer(controller, 1), now)) == 0
    clock.step(timedelta(days=400))
    controller.time = now + timedelta(days=400)
    controller.desired = assigned(controller, 2, offer(controller, 2), now + timedelta(days=400))
    await controller.start(port, enrol_port)
    await daemon.start()
    await controller.until(lambda c: [r for r in c.results if r.sequence == 2 and r.outcome is Outcome.APPLIED])
    assert active(await daemon.until(lambda r: active(r) == 2)) == 2
