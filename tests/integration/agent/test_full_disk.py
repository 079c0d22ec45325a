"""The whole agent on a real disk without a byte left."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.disks import BALLAST, full_disk
from tests.support.fake_controller import FakeController

pytestmark = pytest.mark.root


async def test_it_starts_serves_counts_what_it_loses_and_recovers_when_space_returns(
    tmp_path: Path, controller: FakeController
) -> None:
    with full_disk(tmp_path, "64m") as fill:
        daemon = Daemon(tmp_path)
        await enrolled(daemon, controller)
        controller.desired = controller.assign(1, offer(controller, 1))
        await daemon.start()
        await daemon.until(lambda r: active(r) == 1)
        await daemon.stop(signal.SIGKILL)
        fill()

        await daemon.start()
        try:
            await daemon.until(lambda r: active(r) == 1 and r["link"]["state"] == "connected")
            fill()
            daemon.send(capture_datagrams(CAPTURE))
            report = await daemon.until(
                lambda r: r["counters"]["verdicts_lost"] > 50 and r["counters"]["telemetry_batches_dropped"] > 0
            )
            assert {"sink-failed", "spool-failed"} <= {c["code"] for c in report["conditions"]}
            controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
            await controller.until(lambda c: [r for r in c.results if r.sequence == 2 and r.code == "disk-full"])
            assert active(daemon.report()) == 1
            assert daemon.metrics()['vedette_agent_assignments_total{outcome="failed",code="disk-full"}'] >= 1

            (tmp_path / BALLAST).unlink()
            await daemon.until(lambda r: "spool-failed" not in {c["code"] for c in r["conditions"]})
            daemon.send(capture_datagrams(CAPTURE))
            await daemon.until(lambda r: "sink-failed" not in {c["code"] for c in r["conditions"]})
            assert daemon.lines()
            await daemon.until(lambda r: active(r) == 2)
            await controller.until(lambda c: [g for b in c.committed.values() for g in b.gaps if g.rows])
        finally:
            await daemon.stop(signal.SIGKILL)
