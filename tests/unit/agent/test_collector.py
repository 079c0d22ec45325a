"""Claims about the UDP collector, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.captures import capture_datagrams
from vedette.agent.adapters.sources.collector import Collector, CollectorFailed
from vedette.agent.adapters.sources.templates import TemplateFile
from vedette.models.flows.netflow import FlowDecoder


class Bench:
    """A collector on loopback."""

    def __init__(self, host: str = "127.0.0.1", queue_bytes: int = 64 * 2**20) -> None:
        self.ready = threading.Event()
        self.collector = Collector((host, 0), 4 * 2**20, queue_bytes, self.ready.set)

    def send(self, payloads: list[bytes], to: str = "127.0.0.1") -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            for payload in payloads:
                exporter.sendto(payload, (to, self.collector.port))

    def until_received(self, count: int) -> None:
        """Wait until that many datagrams were taken off the socket."""
        received = threading.Event()
        while self.collector.counters.datagrams < count:
            received.wait(0.001)


@contextmanager
def running(bench: Bench) -> Iterator[Bench]:
    bench.collector.start()
    try:
        yield bench
    finally:
        bench.collector.close()


def test_a_burst_of_a_whole_capture_at_once_is_taken_in_order() -> None:
    payloads = [datagram.payload for datagram in capture_datagrams("base/pmacct-v9")]
    with running(Bench()) as bench:
        for begin in range(0, len(payloads), 500):  # a socket buffer holds so many; the thread empties it meanwhile
            bench.send(payloads[begin : begin + 500])
            bench.until_received(min(begin + 500, len(payloads)))
        taken = bench.collector.take(10**6)
    assert [datagram.payload for datagram in taken] == payloads
    assert {datagram.source for datagram in taken} == {"127.0.0.1"}
    assert bench.collector.counters.dropped_kernel == 0


def test_a_full_queue_drops_the_newest_and_counts_them() -> None:
    with running(Bench(queue_bytes=10_000)) as bench:
        bench.send([bytes([number]) * 1000 for number in range(20)])
        bench.until_received(20)
        taken = bench.collector.take(100)
        assert [datagram.payload[0] for datagram in taken] == list(range(len(taken)))
        assert bench.collector.counters.dropped_queue == 20 - len(taken) > 0
        bench.send([b"again"])
        bench.until_received(21)
        assert [datagram.payload for datagram in bench.collector.take(1)] == [b"again"]


def test_many_tiny_datagrams_do_not_fill_the_memory() -> None:
    with running(Bench(queue_bytes=100_000)) as bench:
        for _ in range(10):
            bench.send([b""] * 100)
        bench.until_received(1000)
        assert len(bench.collector.take(10_000)) < 400


def test_what_waits_can_be_taken_after_the_end() -> None:
    bench = Bench()
    with running(bench):
        bench.send([b"last"])
        bench.until_received(1)
    assert [datagram.payload for datagram in bench.collector.take(5)] == [b"last"]
    assert bench.collector.is_empty


def test_ipv4_exporters_have_their_ipv4_address_on_an_ipv6_socket() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with running(Bench(host="::")) as bench:
        bench.send([b"x"])
        bench.until_received(1)
        assert bench.collector.take(1)[0].source == "127.0.0.1"


def test_one_socket_takes_both_families() -> None:
    with running(Bench(host="::")) as bench:
        bench.send([b"4"])
        bench.until_received(1)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as exporter:
            exporter.sendto(b"6", ("::1", bench.collector.port))
        bench.until_received(2)
        assert [datagram.source for datagram in bench.collector.take(2)] == ["127.0.0.1", "::1"]


def test_a_taken_address_is_a_typed_error_that_names_it() -> None:
    with running(Bench()) as bench:
        other = Collector(("127.0.0.1", bench.collector.port), 4096, 10_000, lambda: None)
        with pytest.raises(CollectorFailed, match=str(bench.collector.port)):
            other.start()
        other.close()


def test_readiness_is_told_when_the_queue_stops_being_empty() -> None:
    with running(Bench()) as bench:
        bench.send([b"one"])
        assert bench.ready.wait(10.0)
        bench.until_received(1)
        bench.ready.clear()
        bench.send([b"two"])
        bench.until_received(2)
        assert not bench.ready.is_set()
        bench.collector.take(10)
        bench.send([b"three"])
        assert bench.ready.wait(10.0)


async def test_after_a_restart_not_one_record_is_missed(tmp_path: Path) -> None:
    datagrams = capture_datagrams("base/softflowd-v9")
    whole = FlowDecoder()
    whole.decode_many(datagrams[:700])
    saved = TemplateFile(tmp_path / "templates.json", whole)
    await asyncio.to_thread(saved.save)
    later = FlowDecoder()
    TemplateFile(tmp_path / "templates.json", later).load()
    assert later.decode_many(datagrams[700:]).tobytes() == whole.decode_many(datagrams[700:]).tobytes()
    assert later.counters.unknown_template_sets == 0


@pytest.mark.parametrize("damage", [b"{", b"", b"\xff" * 1000, b'{"form":1,"exporters":[{}]}', b'{"form":9}'])
async def test_a_damaged_file_of_templates_is_left_and_written_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "templates.json"
    path.write_bytes(damage)
    decoder = FlowDecoder()
    saved = TemplateFile(path, decoder)
    saved.load()
    assert decoder.status() == []
    decoder.decode_many(capture_datagrams("base/softflowd-v9")[:100])
    await asyncio.to_thread(saved.save)
    again = FlowDecoder()
    TemplateFile(path, again).load()
    assert [status.templates for status in again.status()] == [status.templates for status in decoder.status()] != []
