"""Speed of the agent from datagram to verdict, with a real worker process.

One busy exporter: NetFlow v5 datagrams of 30 records, made-up traffic of 20,000 flows a second of record time, with
nothing to flag. CPU is of both processes, so flows a second and core is what an appliance can do with that share of one
core. The model is a logistic one: what a real one costs is in the figures of ``bench_features`` and adds to this. A
shared capture runs beside it: a tick of it holds 30 flows, so the cost is a tick's, and a third is flagged.
"""

from __future__ import annotations

import asyncio
import os
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
from vedette.agent.adapters.clock import SystemClock
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.serving import Serving, ServingSettings
from vedette.agent.adapters.state import State
from vedette.agent.adapters.usage import cpu_seconds, proportional_bytes
from vedette.agent.domain.windows import Windows
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.records import FlowRecords

from tests.support.captures import capture_datagrams
from tests.support.flow_models import flow_release
from tests.support.flows import traffic
from tests.support.tiny_models import Shelf, assigned

_RATE, _SECONDS = 20_000, 8
_TURN = 256
_V5_HEADER = struct.Struct(">HHIIIIBBH")
_V5_RECORD = np.dtype(
    [
        *(("src", ">u4"), ("dst", ">u4"), ("hop", ">u4"), ("in", ">u2"), ("out", ">u2"), ("packets", ">u4")),
        *(("bytes", ">u4"), ("first", ">u4"), ("last", ">u4"), ("src_port", ">u2"), ("dst_port", ">u2"), ("p1", "u1")),
        *(("flags", "u1"), ("proto", "u1"), ("tos", "u1"), ("asn", ">u4"), ("masks", ">u2"), ("p2", ">u2")),
    ]
)
_UPTIME_MS = 10_000_000


class _Nowhere:
    """A sink that counts."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, lines: bytes, count: int) -> None:
        self.lines += count


def _datagrams(records: FlowRecords) -> list[Datagram]:
    """Return records as NetFlow v5 datagrams of 30, each exported when its last record was."""
    wire = np.zeros(len(records), _V5_RECORD)
    for name in ("src", "dst"):
        wire[name] = records[name + "_lo"] & np.uint64(0xFFFF_FFFF)
    for name in ("packets", "bytes", "src_port", "dst_port", "flags", "proto"):
        wire[name] = records[name]
    for name, times in (("first", records["start_ms"]), ("last", records["end_ms"])):
        wire[name] = _UPTIME_MS - np.minimum(records["export_ms"] - times, _UPTIME_MS)
    made = []
    for begin in range(0, len(records), 30):
        part = wire[begin : begin + 30]
        export_ms = int(records["export_ms"][min(begin + 29, len(records) - 1)])
        seconds, milliseconds = divmod(export_ms, 1000)
        head = _V5_HEADER.pack(5, len(part), _UPTIME_MS, seconds, milliseconds * 1_000_000, begin, 0, 0, 0)
        made.append(Datagram(export_ms * 1_000_000, "192.0.2.1", 2055, head + part.tobytes()))
    return made


async def _measure(folder: Path, datagrams: list[Datagram], bias: float) -> tuple[FlowPipeline, float, float, float]:
    """Return the pipeline after it took the datagrams, wall seconds, CPU seconds and memory in bytes."""
    shelf, clock = Shelf(), SystemClock()
    release = flow_release(shelf, bias=bias)
    state = State(folder / "state.db")
    serving = Serving(state, folder / "blobs", ServingSettings(), clock)
    await serving.install(assigned(release), release, lambda blob: shelf.fetch_to(folder / "blobs", blob))
    pipeline = FlowPipeline(serving, _Nowhere(), Windows(clock), clock, host="b", emit_all=False, evidence_per_s=50)
    pids = (os.getpid(), *serving.worker_pids)
    before, began = sum(cpu_seconds(pid) or 0.0 for pid in pids), time.perf_counter()
    scoring = asyncio.create_task(pipeline.score_forever())
    for begin in range(0, len(datagrams), _TURN):
        pipeline.take(datagrams[begin : begin + _TURN])
        await asyncio.sleep(0)
        await pipeline.room()
    pipeline.flush()
    await pipeline.drained()
    wall_s = time.perf_counter() - began
    cpu_s = sum(cpu_seconds(pid) or 0.0 for pid in pids) - before
    memory = sum(map(proportional_bytes, pids))
    scoring.cancel()
    await asyncio.gather(scoring, return_exceptions=True)
    await serving.stop()
    state.close()
    return pipeline, wall_s, cpu_s, memory


def _figures(name: str, datagrams: list[Datagram], bias: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        pipeline, wall_s, cpu_s, memory = asyncio.run(_measure(Path(folder), datagrams, bias))
    counters, records = pipeline.counters, pipeline.decoder.counters.records
    assert counters.rows_scored == counters.flows, counters
    return {
        f"{name}: flagged, share": counters.rows_flagged / counters.flows,
        f"{name}: flows/s, wall": counters.flows / wall_s,
        f"{name}: flows/s and core, both processes": counters.flows / cpu_s,
        f"{name}: records/s and core, both processes": records / cpu_s,
        f"{name}: PSS of both processes, MiB": memory / 2**20,
    }


def run() -> dict[str, float]:
    """Return the figures."""
    busy = _figures("busy exporter", _datagrams(traffic(1, _SECONDS, _RATE)), bias=-3000.0)
    return busy | _figures("shared capture", capture_datagrams("base/softflowd-v9"), bias=-200.0)
