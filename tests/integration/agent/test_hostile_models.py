"""Hostile and broken models at an appliance whose controller let them through: signed, assigned, downloaded.

Each is installed into a slot while another slot is asked without a pause. What must hold whatever the model does: no
file of the host is opened, the agent's process lives, the installation ends in time and says why, the other slot
answers every request, rightly, from the same worker.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import hostile_models
from tests.support.appliance import Appliance
from tests.support.hostile_models import BROKEN, HOSTILE, SLOW, Hostile, row
from tests.support.tiny_models import Shelf, assigned, flow_outputs, flow_rows
from vedette.agent.domain.errors import InstallCode, InstallFailed, NoActiveModel, WorkerTimeout
from vedette.models.golden import Golden
from vedette.models.release import Release

NEIGHBOUR, TARGET = "flow-threat", "target"
HALF_S = 0.5
_LONGEST_S = 30.0
"""An installation's: two loads, the deadline and the grace of a batch, each on a machine that is busy."""
_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000


class Watched:
    """A file whose every opening is noticed, by whatever name."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"root:x:0:0:secret" * 1000)
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(_IN_NONBLOCK)
        assert libc.inotify_add_watch(self._events, bytes(path), _IN_OPEN) >= 0
        self.path = path

    @property
    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._events, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._events)


def released(shelf: Shelf, hostile: Hostile) -> Release:
    """Return a release that calls it an ordinary model."""
    inputs, outputs = hostile.specs
    golden = Golden(dict(hostile.inputs), dict(hostile.outputs))
    return shelf.flow_release(
        1,
        model=hostile.data(),
        kind="tensor",
        schema=None,
        inputs=inputs,
        outputs=outputs,
        golden=shelf.put(golden.to_bytes()),
    )


class Neighbour:
    """Asks a slot without a pause and remembers what came."""

    def __init__(self, appliance: Appliance) -> None:
        self._serving = appliance.serving
        self._rows = flow_rows(17)
        self._wanted = flow_outputs(self._rows, 1.0)["score"]
        self.took_s: list[float] = []

    async def ask(self) -> None:
        while True:
            begun = time.monotonic()
            answer = await self._serving.infer(NEIGHBOUR, {"features": self._rows})
            self.took_s.append(time.monotonic() - begun)
            np.testing.assert_allclose(answer.outputs["score"], self._wanted, atol=1e-6)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def besieged(
    folder: Path, *, memory_bytes: int = 512 << 20, load_timeout_s: float = 30.0
) -> AsyncIterator[Appliance]:
    """Give an appliance whose neighbouring slot is asked all the time, and must not notice."""
    appliance = Appliance(folder)
    worker = replace(
        appliance.settings.worker,
        test_deadline_s=HALF_S,
        deadline_s=HALF_S,
        grace_s=HALF_S,
        memory_bytes=memory_bytes,
        load_timeout_s=load_timeout_s,
    )
    appliance.use(replace(appliance.settings, worker=worker))
    try:
        good = appliance.shelf.flow_release(1)
        await appliance.serving.install(assigned(good), good, appliance.fetch)
        (pids,) = [model.runner.pids for model in appliance.serving.actives.values()]
        neighbour = Neighbour(appliance)
        asking = asyncio.create_task(neighbour.ask())
        try:
            yield appliance
            assert not asking.done(), asking.exception()
        finally:
            asking.cancel()
        assert appliance.serving.actives[NEIGHBOUR].runner.pids == pids, "the neighbour's worker was lost"
        assert len(neighbour.took_s) > 5
        assert np.quantile(neighbour.took_s, 0.99) < 2.0  # it shares two cores with all that the table does
    finally:
        await appliance.close()


async def install(appliance: Appliance, hostile: Hostile) -> tuple[InstallCode | None, str]:
    """Return how its installation ended; nothing of it is left."""
    release = released(appliance.shelf, hostile)
    async with asyncio.timeout(_LONGEST_S):
        try:
            await appliance.serving.install(assigned(release, TARGET), release, appliance.fetch)
        except InstallFailed as exc:
            return exc.code, exc.reason
        await appliance.serving.remove(TARGET)
        return None, "it serves"


async def ends_as_told(appliance: Appliance, models: Sequence[Hostile]) -> None:
    wrong = []
    for hostile in models:
        code, reason = await install(appliance, hostile)
        if not (code in hostile.agent or (code is None and not hostile.agent)):
            wrong.append(f"{hostile.name}: {code}: {reason}")
    assert wrong == []


async def test_no_model_opens_a_file_of_the_host(tmp_path: Path) -> None:
    canary = Watched(tmp_path / "canary")
    (tmp_path / "agent").mkdir()
    async with besieged(tmp_path / "agent") as appliance:
        beside = appliance.blobs / "empty"
        beside.chmod(0o700)
        (beside / "etc").mkdir()
        others = [Watched(beside / "beside"), Watched(beside / "etc/passwd")]
        (beside / "symbolic").symlink_to(canary.path)
        (beside / "hard").hardlink_to(canary.path)
        await ends_as_told(appliance, hostile_models.asking_for_files(str(canary.path), "hard"))
        assert [watched.path.name for watched in (canary, *others) if watched.was_opened] == []
        canary.path.read_bytes()
        assert canary.was_opened, "an opening is not noticed"
    for watched in (canary, *others):
        watched.close()


async def test_no_broken_model_is_served_or_noticed_by_another_slot(tmp_path: Path) -> None:
    async with besieged(tmp_path) as appliance:
        await ends_as_told(appliance, BROKEN)


async def test_no_hostile_model_outlasts_its_limits_or_is_noticed_by_another_slot(tmp_path: Path) -> None:
    async with besieged(tmp_path) as appliance:
        await ends_as_told(appliance, HOSTILE)


async def test_a_model_that_takes_too_long_to_load_is_given_up(tmp_path: Path) -> None:
    async with besieged(tmp_path, load_timeout_s=1.5) as appliance:
        await ends_as_told(appliance, SLOW)


async def test_a_model_that_never_answers_seventeen_rows_is_stopped_quarantined_and_stays_so(tmp_path: Path) -> None:
    turncoat = row("slow at 17 rows", lambda: hostile_models.slow_at(17), "subgraph")
    async with besieged(tmp_path) as appliance:
        release = released(appliance.shelf, turncoat)
        await appliance.serving.install(assigned(release, TARGET), release, appliance.fetch)
        rows = np.ones((17, 4), np.float32)
        for _ in range(3):
            answer = await appliance.serving.infer(TARGET, {"x": rows[:16]})
            np.testing.assert_array_equal(answer.outputs["y"], rows[:16])
            with pytest.raises(WorkerTimeout):
                await appliance.serving.infer(TARGET, {"x": rows})
        with pytest.raises(NoActiveModel):
            await appliance.serving.infer(TARGET, {"x": rows[:16]})
        await appliance.serving.remove(TARGET)
        with pytest.raises(InstallFailed) as caught:
            await appliance.serving.install(assigned(release, TARGET), release, appliance.fetch)
        assert caught.value.code is InstallCode.QUARANTINED
