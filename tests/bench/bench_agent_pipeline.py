"""Speed of the agent from datagram to verdict: the trained flow-threat cascade in a real worker process.

A large network: one exporter, NetFlow v5 datagrams of 30 records, 5,000 flows and more in every second of record time.
They are real ones: pieces of a shared capture at different moments of it, one for each of many small networks, with all
their benign flows and one attack flow in a hundred. A shared capture as it is runs beside it: a tick of it holds 28
flows, so the cost is a tick's, and half of its flows are attacks that are explained and written.

CPU is of both processes, so flows a second and core is what an appliance can do with that share of one core. The model
learnt from another network's capture. Beside it, in the same run: what the ``netflow`` package merely decodes of the
same datagrams.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.bench.bench_netflow import netflow_records
from tests.support.captures import capture_datagrams
from tests.support.flow_models import trained_release
from tests.support.flow_packets import V5_HEADER, V5_RECORDS
from tests.support.flow_training import capture_flows, capture_labels, capture_records
from tests.support.tiny_models import Shelf, assigned
from vedette.agent.adapters.clock import SystemClock
from vedette.agent.adapters.host.usage import cpu_seconds
from vedette.agent.adapters.inference.serving import Serving, ServingSettings
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.windows import Windows
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.records import FlowRecords
from vedette.models.recipes import BENIGN
from vedette.models.release import Release

_TRAINED, _PLAYED = "base2/softflowd-v9", "base/softflowd-v9"
_NETWORKS, _SECONDS = 720, 20
_ATTACKS = 0.01  # of a large network's attack flows that are kept
_TURN = 256
_UPTIME_MS = 10_000_000


class _Nowhere:
    """A sink that counts."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, lines: bytes, count: int) -> None:
        self.lines += count


def _large_network() -> FlowRecords:
    """Return records in the order of their export, 10.x.y.z of each small network moved to addresses of its own."""
    batch, records = capture_flows(_PLAYED), capture_records(_PLAYED)
    is_attack = np.array([label != BENIGN for label in capture_labels(_PLAYED, batch.flows)])
    kept = ~is_attack | (np.random.default_rng(1).random(len(batch)) < _ATTACKS)
    rows = np.sort(batch.origins[kept].ravel())
    records = records[rows[rows >= 0]]
    into_ms = records["export_ms"] - records["export_ms"][0]
    latest = int(into_ms[-1]) - _SECONDS * 1000
    return _by_export([_moved(records, into_ms, place * latest // _NETWORKS, place) for place in range(_NETWORKS)])


def _moved(records: FlowRecords, into_ms: npt.NDArray[np.int64], begin_ms: int, place: int) -> FlowRecords:
    """Return the records of one small network for some seconds, as if they had begun with the capture."""
    made: FlowRecords = records[(into_ms >= begin_ms) & (into_ms < begin_ms + _SECONDS * 1000)]
    for name in ("start_ms", "end_ms", "export_ms"):
        made[name] -= begin_ms
    for name in ("src_lo", "dst_lo"):
        made[name] += np.uint64(place << 12)  # one network's addresses differ in their last byte alone
    return made


def _by_export(parts: list[FlowRecords]) -> FlowRecords:
    records = np.concatenate(parts)
    ordered: FlowRecords = records[np.argsort(records["export_ms"], kind="stable")]
    return ordered


def _datagrams(records: FlowRecords) -> list[Datagram]:
    """Return records as NetFlow v5 datagrams of 30, each exported when its last record was."""
    wire = np.zeros(len(records), V5_RECORDS)
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
        head = V5_HEADER.pack(5, len(part), _UPTIME_MS, seconds, milliseconds * 1_000_000, begin, 0, 0, 0)
        made.append(Datagram(export_ms * 1_000_000, "192.0.2.1", 2055, head + part.tobytes()))
    return made


async def _measure(
    folder: Path, shelf: Shelf, release: Release, datagrams: list[Datagram]
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
    for begin in range(0, len(datagrams), _TURN):
        pipeline.take(datagrams[begin : begin + _TURN])
        await asyncio.sleep(0)
        await pipeline.room()
    pipeline.flush()
    await pipeline.drained()
    wall_s = time.perf_counter() - began
    cpu_s = sum(cpu_seconds(pid) or 0.0 for pid in pids) - before
    scoring.cancel()
    await asyncio.gather(scoring, return_exceptions=True)
    await serving.stop()
    state.close()
    return pipeline, wall_s, cpu_s


def _figures(name: str, shelf: Shelf, release: Release, datagrams: list[Datagram]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        pipeline, wall_s, cpu_s = asyncio.run(_measure(Path(folder), shelf, release, datagrams))
    counters, records = pipeline.counters, pipeline.decoder.counters.records
    if counters.rows_scored != counters.flows:
        raise RuntimeError(f"not every flow was scored: {counters}")
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


def _decoded_by_netflow(datagrams: list[Datagram]) -> float:
    begin = time.process_time()
    records = netflow_records(datagrams)
    return records / (time.process_time() - begin)


def run() -> dict[str, float]:
    """Return the figures."""
    shelf = Shelf()
    release = trained_release(shelf, _TRAINED)
    large = _figures("large network", shelf, release, _datagrams(_large_network()))
    return large | _figures("shared capture", shelf, release, capture_datagrams(_PLAYED))
