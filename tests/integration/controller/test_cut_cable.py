import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.support.controller import FACTS, TARGET, Stream, prepare, running
from tests.support.relay import Relay
from vedette.wire.v1 import fleet_pb2_grpc
from vedette.wire.values import Hello, Status


@pytest.mark.slow
async def test_a_cut_cable_is_noticed_within_15_seconds(tmp_path: Path):
    """Without ``grpc.http2.ping_timeout_ms`` it took 70 s: an unanswered ping waits a minute by default."""
    gone = asyncio.Event()

    class Watcher:
        async def on_presence(self, agent_id: str, *, is_online: bool) -> None:
            if not is_online:
                gone.set()

        def __getattr__(self, name: str) -> Any:
            return _ignore

    settings = replace(prepare(tmp_path / "data"), status_interval_s=3600)  # silence alone must not end it
    async with running(settings) as served:
        edge = await served.enrolled()
        served.controller.rooms.fleet.subscribe(Watcher())
        pems = (served.keys.authority.pem, edge.key, edge.certificate)
        async with Relay(served.controller.port).serving() as relay:
            credentials = grpc.ssl_channel_credentials(*pems)
            async with aio.secure_channel(f"127.0.0.1:{relay.port}", credentials, options=TARGET) as channel:
                stub: Any = fleet_pb2_grpc.FleetStub(channel)
                stream = Stream(stub.Connect())
                await stream.say(Hello(facts=FACTS, status=Status()))
                await stream.hear()
                relay.cut()
                began = time.monotonic()
                async with asyncio.timeout(40):
                    await gone.wait()
                assert time.monotonic() - began < 17
                stream.call.cancel()


async def _ignore(*_: Any, **__: Any) -> None:
    return None
