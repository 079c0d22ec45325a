"""A real agent-side process is killed at each record it stores while it installs, just before and just after."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.appliance import Appliance
from tests.support.tiny_models import assigned, flow_outputs, flow_rows
from vedette.wire.values import SlotState

SLOT = "flow-threat"
STORED = ["downloading", "verified", "staged", "tested", "active"]

_SCRIPT = """
import asyncio, os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.appliance import Appliance
from tests.support.tiny_models import assigned

async def main():
    appliance = Appliance(Path({folder!r}))
    await appliance.serving.start()
    save = appliance.state.save_slot

    def save_and_die(record, release=None):
        if record.stage == {stage!r} and {before}:
            os.kill(os.getpid(), signal.SIGKILL)
        save(record, release)
        if record.stage == {stage!r}:
            os.kill(os.getpid(), signal.SIGKILL)

    appliance.state.save_slot = save_and_die
    release = appliance.shelf.flow_release(2)
    await appliance.serving.install(assigned(release), release, appliance.fetch)

asyncio.run(main())
"""


def run_until_killed(folder: Path, stage: str, *, before: bool) -> None:
    root = str(Path(__file__).parents[3])
    script = _SCRIPT.format(root=root, folder=str(folder), stage=stage, before=before)
    agent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert agent.returncode == -signal.SIGKILL, agent.stderr


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("stage", STORED)
async def test_killed_at_any_stored_stage_one_version_is_active_serves_and_the_installation_goes_on(
    tmp_path: Path, stage: str, before: bool
) -> None:
    first = Appliance(tmp_path)
    release = first.shelf.flow_release(1)
    await first.serving.install(assigned(release), release, first.fetch)
    await first.close()

    run_until_killed(tmp_path, stage, before=before)

    appliance = Appliance(tmp_path)
    await appliance.serving.start()
    features = flow_rows(3)
    answer = await appliance.serving.infer(SLOT, {"features": features})
    expected = 2 if stage == SlotState.ACTIVE and not before else 1
    assert answer.release.version == expected
    np.testing.assert_allclose(answer.outputs["score"], flow_outputs(features, float(expected))["score"], atol=1e-6)
    (status,) = appliance.serving.statuses()
    assert status.active is not None
    assert (status.active.version, status.quarantined) == (expected, ())

    release = appliance.shelf.flow_release(2)
    await appliance.serving.install(assigned(release), release, appliance.fetch)
    answer = await appliance.serving.infer(SLOT, {"features": features})
    record = appliance.state.slot(SLOT)
    assert (answer.release.version, record.active, record.candidate) == (2, assigned(release), None)
    assert record.stage is SlotState.ACTIVE
    on_disk = {path.name for path in (tmp_path / "blobs" / "sha256").iterdir()}
    assert len(on_disk) == 4  # model and golden samples of the active and the previous version
    await appliance.close()


def test_the_table_covers_every_stage_that_an_installation_stores() -> None:
    assert {SlotState(stage) for stage in STORED} == set(SlotState) - {SlotState.EMPTY, SlotState.FAILED}
