"""Claims about programs that ask the whole agent: the real program, its settings, its own accounts."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.flow_models import WIDTH
from tests.support.oip import Client, request_of
from vedette.agent.domain.report import status_text


async def test_a_program_is_answered_and_counted(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda report: active(report) == 1)
    client = Client(f"unix:{daemon.folder}/s/inference.sock")
    rows = {"features": np.zeros((3, WIDTH), np.float32)}
    for _ in range(5):
        assert (await client.infer(request_of("flow-threat", rows))).model_version == "1"
    with pytest.raises(grpc.aio.AioRpcError):
        await client.infer(request_of("nobody", rows))
    await client.close()
    assert "requests  5 answered · 1 refused" in status_text(daemon.report())
    found = await asyncio.to_thread(daemon.metrics)
    assert found['vedette_agent_requests_total{method="ModelInfer",slot="flow-threat",code="OK"}'] == 5
    assert found['vedette_agent_requests_total{method="ModelInfer",slot="",code="NOT_FOUND"}'] == 1
    assert found['vedette_agent_request_duration_seconds_count{slot="flow-threat"}'] == 5
    assert await daemon.stop() == 0
    assert not (daemon.folder / "s/inference.sock").exists()


async def test_a_key_that_cannot_be_used_is_a_condition_and_the_socket_answers(daemon: Daemon) -> None:
    key = daemon.folder / "key"
    key.write_text("no key")
    key.chmod(0o644)
    files = "".join(f'inference.{name} = "{key}"\n' for name in ("tls_key", "tls_certificate", "token_file"))
    daemon.config.write_text(daemon.config.read_text() + f'inference.listen = "127.0.0.1:0"\n{files}')
    await daemon.start()
    report = await daemon.until(lambda r: "inference-secret" in [c["code"] for c in r["conditions"]])
    text = next(c["text"] for c in report["conditions"] if c["code"] == "inference-secret")
    assert "its mode is 0644: others can read or change it" in text
    client = Client(f"unix:{daemon.folder}/s/inference.sock")
    await client.ask("ServerLive", b"")
    await client.close()
