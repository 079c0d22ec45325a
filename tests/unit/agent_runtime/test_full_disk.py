"""A real disk without a byte left: what served goes on serving, falls back, and remembers it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.appliance import Appliance
from tests.support.disks import full_disk
from tests.support.tiny_models import assigned, flow_rows
from vedette.agent.domain.errors import InstallCode, InstallFailed

SLOT = "flow-threat"

pytestmark = pytest.mark.root


async def version_that_answers(appliance: Appliance) -> int:
    return (await appliance.serving.infer(SLOT, {"features": flow_rows(2)})).release.version


async def test_an_agent_starts_serves_falls_back_and_remembers_it_on_a_full_disk(tmp_path: Path) -> None:
    with full_disk(tmp_path, "48m") as fill:
        await fall_back_on(tmp_path, fill)


async def fall_back_on(disk: Path, fill: Callable[[], None]) -> None:
    appliance = Appliance(disk)
    releases = [appliance.shelf.flow_release(version) for version in (1, 2, 3)]
    for release in releases[:2]:
        await appliance.serving.install(assigned(release), release, appliance.fetch)
    await appliance.close()
    fill()

    appliance = Appliance(disk)
    await appliance.serving.start()
    with pytest.raises(InstallFailed) as caught:
        await appliance.serving.install(assigned(releases[2]), releases[2], appliance.fetch)
    assert caught.value.code is InstallCode.DISK_FULL
    for _ in range(3):
        assert await version_that_answers(appliance) == 2
        model = appliance.serving.active(SLOT)
        assert model is not None
        os.kill(model.runner.pids[0], signal.SIGKILL)
    assert await version_that_answers(appliance) == 1

    await appliance.restart()
    assert await version_that_answers(appliance) == 1
    assert list(appliance.serving.quarantine) == [releases[1].builds[0].digest]
    await appliance.close()
