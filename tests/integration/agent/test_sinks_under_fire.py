"""Every kind of receiver slow, away or hung under the real agent: what is lost is counted exactly, flows are scored."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.flow_models import capture_features
from tests.support.receivers import (
    Answer,
    StreamReceiver,
    UdpReceiver,
    WebhookReceiver,
    hanging_receiver,
    unused_port,
)

Report = dict[str, Any]
_ALL = 'sink.json.emit = "all"\n'
_KINDS = ("json", "syslog", "webhook", "nftables")
_ROUNDS = 7


_started: list[Daemon] = []


@pytest.fixture(autouse=True)
async def _leaves_no_agent() -> AsyncIterator[None]:
    yield
    while _started:
        daemon = _started.pop()
        if daemon.process is not None and daemon.process.returncode is None:
            await daemon.stop(signal.SIGKILL)


async def serving(daemon: Daemon, controller: FakeController) -> Daemon:
    _started.append(daemon)
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(active)
    return daemon


async def scored(daemon: Daemon, number: int = 1) -> int:
    """Send a capture as exporter 127.0.0.NUMBER; return how many flows were scored of all, which is every one."""
    due = len(capture_features(CAPTURE)) * number
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        exporter.bind((f"127.0.0.{number}", 0))
        for datagram in capture_datagrams(CAPTURE):
            exporter.sendto(datagram.payload, ("127.0.0.1", daemon.port))
    await daemon.until(lambda r: r["counters"]["rows_scored"] == due)
    return due


def sink(report: Report, name: str) -> Report:
    return next(each for each in report["sinks"] if each["sink"] == name)


def told(report: Report, name: str) -> int:
    each = sink(report, name)
    return int(each["written"]) + sum(each["lost"].values())


@contextmanager
def hanging_helper(path: Path) -> Iterator[None]:
    """Listen as the helper that blocks addresses does, and never answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield


async def test_a_syslog_receiver_that_comes_late_and_the_counters_have_every_verdict(
    tmp_path: Path, controller: FakeController
) -> None:
    port = unused_port()
    daemon = await serving(Daemon(tmp_path, extra=_ALL + f"""
        sink.syslog.address = "tcp://127.0.0.1:{port}"
        sink.syslog.emit = "all"
        sink.syslog.queue = 1000000
        sink.syslog.retry_cap_s = 0.2
    """), controller)  # fmt: skip
    total = await scored(daemon)
    receiver = StreamReceiver(port)
    report = await daemon.until(lambda r: told(r, "syslog") == total)
    assert sink(report, "syslog")["lost"]["queue"] > 0
    assert told(report, "json") == total
    assert await daemon.stop() == 0
    assert receiver.ends.get(timeout=20) == b""
    assert receiver.messages.qsize() == sink(report, "syslog")["written"]
    receiver.close()
    assert len(daemon.lines()) == total


async def test_a_webhook_that_fails_refuses_and_takes_and_the_counters_have_every_verdict(
    tmp_path: Path, controller: FakeController
) -> None:
    receiver = WebhookReceiver([Answer(503), Answer(400), Answer(200), Answer(500)])
    daemon = await serving(Daemon(tmp_path, extra=_ALL + f"""
        sink.webhook.url = "http://127.0.0.1:{receiver.port}/"
        sink.webhook.emit = "all"
        sink.webhook.queue = "1MiB"
        sink.webhook.retry_cap_s = 0.2
        sink.webhook.batch_age_s = 0.1
    """), controller)  # fmt: skip
    total = await scored(daemon)
    report = await daemon.until(lambda r: told(r, "webhook") == total)
    assert await daemon.stop() == 0
    receiver.close()
    requests = [receiver.requests.get_nowait() for _ in range(receiver.requests.qsize())]
    taken = {each.headers["idempotency-key"]: each.body.count(b"\n") for each in requests}
    assert sink(report, "webhook")["lost"]["refused"] > 0
    assert sum(taken.values()) == sink(report, "webhook")["written"] + sink(report, "webhook")["lost"]["refused"]


async def test_each_datagram_counts_once_as_taken_by_nobody_or_as_written(
    tmp_path: Path, controller: FakeController
) -> None:
    port = unused_port(socket.SOCK_DGRAM)
    daemon = await serving(Daemon(tmp_path, extra=_ALL + f"""
        sink.syslog.address = "udp://127.0.0.1:{port}"
        sink.syslog.emit = "all"
        sink.syslog.queue = "64KiB"
        sink.syslog.retry_cap_s = 0.2
    """), controller)  # fmt: skip
    total = await scored(daemon)
    receiver = UdpReceiver(port)
    report = await daemon.until(lambda r: told(r, "syslog") == total)
    assert sink(report, "syslog")["lost"]["network"] >= 1
    assert sink(report, "syslog")["lost"]["queue"] > 0
    assert sink(report, "syslog")["written"] > 0
    assert await daemon.stop() == 0
    receiver.close()


def hung(folder: Path, places: ExitStack) -> Daemon:
    """Return an agent whose receivers all hang: a disk that takes no more, a stream, a webhook and the helper."""
    (folder / "log").mkdir()
    os.mkfifo(folder / "log/verdicts.jsonl")
    syslog, webhook = (places.enter_context(hanging_receiver()) for _ in range(2))
    places.enter_context(hanging_helper(folder / "nft.sock"))
    return Daemon(folder, extra=_ALL + f"""
        sink.json.queue = "1MiB"
        sink.syslog.address = "tcp://127.0.0.1:{syslog}"
        sink.syslog.emit = "all"
        sink.syslog.queue = "1MiB"
        sink.webhook.url = "http://127.0.0.1:{webhook}/"
        sink.webhook.emit = "all"
        sink.webhook.queue = "1MiB"
        sink.nftables.enabled = true
        sink.nftables.labels = ["scan"]
        sink.nftables.socket = "{folder}/nft.sock"
    """)  # fmt: skip


async def test_with_every_receiver_hung_each_flow_is_scored_and_each_sink_is_named(
    tmp_path: Path, controller: FakeController
) -> None:
    with ExitStack() as places:
        daemon = await serving(hung(tmp_path, places), controller)
        await scored(daemon)
        report = await daemon.until(lambda _: all(f"sink {name}: " in daemon.log() for name in _KINDS))
        assert all(sink(report, name)["lost"]["queue"] > 0 for name in ("json", "syslog", "webhook"))
        assert await daemon.stop() == 0


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_hung_receivers_cost_the_flows_no_pace(tmp_path: Path, controller: FakeController) -> None:
    async with FakeController() as other:
        with ExitStack() as places:
            for name in ("with", "without"):
                (tmp_path / name).mkdir()
            burdened = await serving(hung(tmp_path / "with", places), controller)
            free = await serving(Daemon(tmp_path / "without", extra=_ALL), other)
            ratios = []
            for number in range(1, _ROUNDS + 1):
                begun = time.perf_counter()
                await scored(free, number)
                between = time.perf_counter()
                await scored(burdened, number)
                ratios.append((between - begun) / (time.perf_counter() - between))
            print(f"flows/s with hung receivers to those with one file that works: {[round(r, 2) for r in ratios]}")
            assert statistics.median(ratios) >= 0.75
            for daemon in (burdened, free):
                assert await daemon.stop() == 0
