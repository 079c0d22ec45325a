"""The real program is killed at each thing it stores while it takes over a version, just before and just after."""

from __future__ import annotations

import signal

import pytest

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from vedette.wire.values import Outcome, SlotState

STAGES = [stage.value for stage in SlotState if stage not in (SlotState.EMPTY, SlotState.FAILED)]
STORED = ["accept", "attempt", *(f"save_slot={stage}" for stage in STAGES), "apply"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stored", STORED)
async def test_killed_anywhere_it_comes_back_with_one_whole_version_and_ends_with_the_new_one(
    daemon: Daemon, controller: FakeController, stored: str, when: str
) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    await daemon.stop()
    controller.desired = controller.assign(2, offer(controller, 2, bias=-6.0))
    assert await daemon.run_doomed(stored, when) == -signal.SIGKILL

    at_rest = daemon.report()["slots"]["flow-threat"]["active"]["version"]
    assert at_rest == (2 if stored == "apply" or (stored, when) == ("save_slot=active", "after") else 1)
    await daemon.start()
    await daemon.until(lambda r: active(r) == 2 and r["sequences"]["running"] == 2)
    assert not [result for result in controller.results if result.outcome is not Outcome.APPLIED]
    assert list((daemon.folder / "s/blobs/partial").iterdir()) == []
    slot = daemon.report()["slots"]["flow-threat"]
    assert (slot["previous"]["version"], slot["candidate"], slot["quarantined"]) == (1, None, [])
