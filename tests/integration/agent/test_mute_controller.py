"""A controller that falls mute, connections open: the case a cut cable, a dead router or a NAT that forgot makes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.relay import Relay


@pytest.mark.slow
async def test_an_agent_notices_within_17_seconds_infers_meanwhile_and_connects_again(
    tmp_path: Path, controller: FakeController
) -> None:
    """Without ``grpc.http2.ping_timeout_ms`` it took 70 s."""
    async with Relay(controller.port).serving() as relay:
        daemon = Daemon(tmp_path, extra=f'controller = ["127.0.0.1:{relay.port}"]\n')
        await enrolled(daemon, controller)
        controller.desired = controller.assign(1, offer(controller, 1))
        await daemon.start()
        try:
            await daemon.until(lambda r: active(r) == 1 and r["link"]["state"] == "connected")
            hellos = len(controller.hellos)
            relay.cut()
            began = time.monotonic()
            daemon.send(capture_datagrams(CAPTURE))
            report = await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
            assert report["link"]["state"] == "connected"  # it does not know yet
            async with asyncio.timeout(40):
                await daemon.until(lambda r: r["link"]["state"] != "connected")
            assert time.monotonic() - began < 17
            relay.mend()
            await controller.until(lambda c: len(c.hellos) > hellos)
            await daemon.until(lambda r: r["link"]["state"] == "connected")
        finally:
            await daemon.stop()
