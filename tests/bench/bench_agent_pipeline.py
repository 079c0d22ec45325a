"""Speed of the agent from datagram to verdict: the trained flow-threat cascade in a real worker process.

A large network (:mod:`tests.support.large_network`): 5,000 flows and more in every second of record time, one attack
flow in a hundred. It comes twice: handed to the pipeline, and over UDP from another process through the collector. In
turns with that the ``netflow`` package decodes the same datagrams and does nothing else with them. A shared capture as
it is runs beside it: a tick of it holds 28 flows, so the cost is a tick's, and half of its flows are attacks that are
explained and written.

CPU is of the agent's process with all its threads and of its worker, kernel time included, so records a second and core
is what an appliance can do with that share of one core. The model learnt from another network's capture.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.bench.bench_netflow import netflow_records
from tests.support.captures import capture_datagrams
from tests.support.flow_models import trained_release
from tests.support.large_network import large_network
from tests.support.tiny_models import Shelf, assigned
from vedette.agent.adapters.clock import SystemClock
from vedette.agent.adapters.host.usage import cpu_seconds
from vedette.agent.adapters.inference.serving import Serving, ServingSettings
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.agent.adapters.sources.collector import Collector
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.windows import Windows
from vedette.models.flows.datagrams import Datagram
from vedette.models.release import Release

_TRAINED, _PLAYED = "base2/softflowd-v9", "base/softflowd-v9"
_NETWORKS, _SECONDS = 720, 20
_TURN = 256
_ROUNDS = 3
_UDP_RECORDS_PER_S = 60_000  # of the other process: less than the agent takes, so that nothing waits or is lost
_BATCH_S = 0.2
_Feed = Callable[[FlowPipeline, list[Datagram]], Awaitable[None]]


class _Nowhere:
    """A sink that counts."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, verdicts: Verdicts) -> None:
        self.lines += len(verdicts.lines)


async def _hand(pipeline: FlowPipeline, datagrams: list[Datagram]) -> None:
    for begin in range(0, len(datagrams), _TURN):
        pipeline.take(datagrams[begin : begin + _TURN])
        await asyncio.sleep(0)
        await pipeline.room()


async def _receive(pipeline: FlowPipeline, datagrams: list[Datagram]) -> None:
    """Take datagrams off a socket into which another process sends them."""
    loop, has_datagrams = asyncio.get_running_loop(), asyncio.Event()
    collector = Collector(("127.0.0.1", 0), 4 * 2**20, 64 * 2**20, lambda: loop.call_soon_threadsafe(has_datagrams.set))
    collector.start()
    gathering = asyncio.create_task(pipeline.gather(collector, has_datagrams, _BATCH_S))
    payloads = [datagram.payload for datagram in datagrams]
    sender = multiprocessing.get_context("spawn").Process(target=_send, args=(collector.port, payloads))
    sender.start()
    await asyncio.to_thread(sender.join)
    await asyncio.sleep(2 * _BATCH_S)  # the last leave the socket; were one lost, it would be missed below
    counted = collector.counters
    collector.close()
    gathering.cancel()
    await asyncio.gather(gathering, return_exceptions=True)
    pipeline.take(collector.take(len(datagrams)))
    if counted.datagrams != len(datagrams) or counted.dropped_queue:
        raise RuntimeError(f"not every one of {len(datagrams)} datagrams was received: {counted}")


def _send(port: int, payloads: list[bytes]) -> None:
    begun, sent = time.monotonic(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        while sent < len(payloads):
            due = min(int((time.monotonic() - begun) * _UDP_RECORDS_PER_S / 30) + 1, len(payloads))
            for payload in payloads[sent:due]:
                exporter.sendto(payload, ("127.0.0.1", port))
            sent = due
            time.sleep(0.01)


async def _measure(
    folder: Path, shelf: Shelf, release: Release, datagrams: list[Datagram], feed: _Feed
) -> tuple[FlowPipeline, float, float]:
    """Return the pipeline after it took the datagrams, wall and CPU seconds."""
    clock = SystemClock()
    state = State(folder / "state.db")
    serving = Serving(state, folder / "blobs", ServingSettings(), clock)
    await serving.install(assigned(release), release, lambda blob: shelf.fetch_to(folder / "blobs", blob))
    pipeline = FlowPipeline(serving, _Nowhere(), Windows(clock), clock, host="b", emit_all=False, evidence_per_s=50)
    pids = (os.getpid(), *serving.worker_pids)
    before, began = sum(cpu_seconds(pid) or 0.0 for pid in pids), time.perf_counter()
    scoring = asyncio.create_task(pipeline.score_forever())
    await feed(pipeline, datagrams)
    pipeline.flush()
    await pipeline.drained()
    wall_s = time.perf_counter() - began
    cpu_s = sum(cpu_seconds(pid) or 0.0 for pid in pids) - before
    scoring.cancel()
    await asyncio.gather(scoring, return_exceptions=True)
    await serving.stop()
    state.close()
    return pipeline, wall_s, cpu_s


def _run(
    shelf: Shelf, release: Release, datagrams: list[Datagram], feed: _Feed = _hand
) -> tuple[FlowPipeline, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        pipeline, wall_s, cpu_s = asyncio.run(_measure(Path(folder), shelf, release, datagrams, feed))
    if pipeline.counters.rows_scored != pipeline.counters.flows:
        raise RuntimeError(f"not every flow was scored: {pipeline.counters}")
    return pipeline, wall_s, cpu_s


def _figures(name: str, shelf: Shelf, release: Release, datagrams: list[Datagram]) -> dict[str, float]:
    pipeline, wall_s, cpu_s = _run(shelf, release, datagrams)
    counters, records = pipeline.counters, pipeline.decoder.counters.records
    exported = [datagram.at_ns for datagram in datagrams]
    return {
        f"{name}: flows": counters.flows,
        f"{name}: flows a second of record time": counters.flows * 1e9 / (exported[-1] - exported[0]),
        f"{name}: flagged, share": counters.rows_flagged / counters.flows,
        f"{name}: flows/s, wall": counters.flows / wall_s,
        f"{name}: flows/s and core, both processes": counters.flows / cpu_s,
        f"{name}: records/s and core, both processes": records / cpu_s,
        f"{name}: records/s and core, decoded by the netflow package": _decoded_by_netflow(datagrams),
    }


def _beside_netflow(name: str, shelf: Shelf, release: Release, datagrams: list[Datagram]) -> dict[str, float]:
    """Return medians of turns; the ratio is taken in each turn, so that what else the machine does matters less."""
    received, decoded = [], []
    for _ in range(_ROUNDS):
        pipeline, _, cpu_s = _run(shelf, release, datagrams, _receive)
        received.append(pipeline.decoder.counters.records / cpu_s)
        decoded.append(_decoded_by_netflow(datagrams))
    return {
        f"{name} over UDP: records/s and core, both processes": statistics.median(received),
        f"{name}, the netflow package decodes records/s and core": statistics.median(decoded),
        f"{name}, datagram to verdict over UDP, times that decoding": statistics.median(
            ours / theirs for ours, theirs in zip(received, decoded, strict=True)
        ),
    }


def _decoded_by_netflow(datagrams: list[Datagram]) -> float:
    """Return records a CPU second of the package's decoding."""
    begun = time.process_time()
    records = netflow_records(datagrams)
    return records / (time.process_time() - begun)


def run() -> dict[str, float]:
    """Return the figures."""
    shelf = Shelf()
    release, datagrams = trained_release(shelf, _TRAINED), large_network(_PLAYED, _NETWORKS, _SECONDS)
    figures = _figures("large network", shelf, release, datagrams)
    for version in (9, 5):
        datagrams = large_network(_PLAYED, _NETWORKS, _SECONDS, version=version)
        figures |= _beside_netflow(f"large network, v{version}", shelf, release, datagrams)
    return figures | _figures("shared capture", shelf, release, capture_datagrams(_PLAYED))
