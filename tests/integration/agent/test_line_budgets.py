"""The real agent keeps to its budgets of the line, by the clock, and its stream with the controller never waits."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.oip import tensor_release
from tests.support.tiny_models import Shelf, model_bytes
from vedette.models.golden import Golden
from vedette.models.release import Release, TensorSpec
from vedette.wire.convert import BATCH

_DOWN, _UP = 100_000, 2_000  # bytes a second
_MODEL_BYTES = 2_000_000
_UP_S = 20.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


def large(controller: FakeController) -> Release:
    """Return a release of a model that is mostly a constant which nothing compresses."""
    value = helper.make_tensor_value_info
    ballast = np.random.default_rng(1).integers(0, 255, _MODEL_BYTES, dtype=np.uint8)
    file = model_bytes(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        {"ballast": ballast},
    )
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    shelf = Shelf()
    specs = [(TensorSpec(name, "float32", (-1, 4)),) for name in "xy"]
    release = tensor_release(shelf, file, *specs, Golden({"x": rows}, {"y": rows}), model="large")
    controller.blobs |= shelf.blobs
    return release


async def test_a_download_takes_its_budget_of_the_line_and_the_stream_speaks_meanwhile(
    tmp_path: Path, controller: FakeController
) -> None:
    daemon = Daemon(tmp_path, extra=f"budget.network_down = {_DOWN}\n")
    controller.status_interval_s = 1
    await enrolled(daemon, controller)
    await daemon.start()
    await daemon.until(lambda r: r["link"]["state"] == "connected")
    heard: list[float] = []

    async def hear() -> None:
        while True:
            known = len(controller.statuses)
            await controller.until(lambda c, known=known: len(c.statuses) > known)
            heard.append(time.monotonic())

    begun = time.monotonic()
    controller.push(controller.assign(1, large(controller)))
    hearing = asyncio.create_task(hear())
    await daemon.until(lambda r: r["slots"].get("large", {}).get("state") == "active")
    took = time.monotonic() - begun
    hearing.cancel()
    rate, pauses = controller.bytes_sent / took, [b - a for a, b in itertools.pairwise(heard)]
    print(f"{rate:.0f} bytes/s of {_DOWN}; pauses of the stream up to {max(pauses):.2f} s")
    assert 0.8 * _DOWN <= rate <= 1.1 * _DOWN, "the time to start the model is in it"
    assert max(pauses) <= 3.0
    assert await daemon.stop() == 0


async def test_telemetry_takes_its_budget_of_the_line(tmp_path: Path, controller: FakeController) -> None:
    daemon = Daemon(tmp_path, extra=f"budget.network_up = {_UP}\n")
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(active)
    flows = asyncio.create_task(_flows(daemon))
    await daemon.until(lambda r: r["spool"]["batches"] >= 5)
    before, begun = _bytes(controller), time.monotonic()
    await asyncio.sleep(_UP_S)  # for the measurement
    rate = (_bytes(controller) - before) / (time.monotonic() - begun)
    flows.cancel()
    print(f"{rate:.0f} bytes/s of {_UP}")
    assert daemon.report()["spool"]["batches"] > 0, "there was always more to send"
    assert 0.8 * _UP <= rate <= 1.1 * _UP
    await daemon.stop()


async def _flows(daemon: Daemon) -> None:
    datagrams = capture_datagrams(CAPTURE)
    for begin in itertools.count(0, 20):
        daemon.send(datagrams[begin % 1200 :][:20])
        await asyncio.sleep(0.1)


def _bytes(controller: FakeController) -> int:
    return sum(BATCH.to_wire(batch).ByteSize() for batch in controller.committed.values())
