"""Flow records made up for tests, and ways to feed them to an extractor."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vedette.models.flows.extract import FlowBatch, FlowExtractor
from vedette.models.flows.records import FlowRecords, address_halves, empty

CLIENT, SERVER = "10.0.0.7", "10.0.0.1"
T0_MS = 1_700_000_000_000


def record(**fields: object) -> FlowRecords:
    """Return one record from client to server, TCP to port 443 unless said otherwise."""
    made = empty(1)
    values: dict[str, object] = {
        "src": CLIENT, "dst": SERVER, "src_port": 40_000, "dst_port": 443, "proto": 6, "flags": 27,
        "packets": 5, "bytes": 500, "start_ms": T0_MS, "end_ms": T0_MS + 100, "export_ms": T0_MS + 5000,
    } | fields  # fmt: skip
    for side in ("src", "dst"):
        made[side + "_hi"], made[side + "_lo"] = address_halves(str(values.pop(side)))
    for name, value in values.items():
        made[name] = value
    return made


def answer(to: FlowRecords, **fields: object) -> FlowRecords:
    """Return the other half of a record."""
    made = to.copy()
    for name in ("hi", "lo", "port"):
        made["src_" + name], made["dst_" + name] = to["dst_" + name], to["src_" + name]
    for name, value in fields.items():
        made[name] = value
    return made


def traffic(seed: int, seconds: int, rate: int, *, exporter: int = 0) -> FlowRecords:
    """Return records of a made-up network: halves mostly in pairs, some alone, some a second apart, times in order."""
    rng = np.random.default_rng(seed)
    count = seconds * rate
    made = empty(count)
    made["src_lo"] = rng.integers(0, 30, count) + (0xFFFF << 32)
    made["dst_lo"] = rng.integers(100, 110, count) + (0xFFFF << 32)
    made["src_port"] = rng.integers(32_768, 60_000, count)
    made["dst_port"] = rng.choice([22, 53, 80, 443, 8080, 50_000], count)
    made["proto"] = rng.choice([6, 17, 1], count, p=[0.7, 0.25, 0.05])
    made["flags"] = np.where(made["proto"] == 6, rng.choice([2, 27, 31, 22], count), 0)
    made["packets"] = rng.integers(1, 100, count)
    made["bytes"] = made["packets"] * rng.integers(40, 1500, count).astype(np.uint64)
    made["export_ms"] = T0_MS + np.sort(rng.integers(0, seconds * 1000, count))
    made["start_ms"] = made["export_ms"] - rng.integers(0, 60_000, count)
    made["end_ms"] = np.minimum(made["start_ms"] + rng.integers(0, 9_000, count), made["export_ms"])
    other = answer(made, packets=rng.integers(1, 50, count), bytes=rng.integers(40, 9_000, count))
    other["flags"] = np.where(made["proto"] == 6, rng.choice([18, 20, 27], count), 0)
    other["export_ms"] += rng.choice([0, 0, 0, 1000, 2500], count)
    both = np.concatenate([made, other[rng.random(count) < 0.8]])
    both["exporter"] = exporter
    ordered: FlowRecords = both[np.argsort(both["export_ms"], kind="stable")]
    return ordered


def feed(extractor: FlowExtractor, pieces: Iterable[FlowRecords], *, now_ms: int = 0) -> list[FlowBatch]:
    """Push the pieces and flush; return every batch that came out."""
    batches = [extractor.push(piece, now_ms=now_ms) for piece in pieces]
    return [batch for batch in (*batches, extractor.flush()) if batch is not None]


def cut(records: FlowRecords, size: int) -> list[FlowRecords]:
    """Return the records in pieces of ``size``."""
    return [records[at : at + size] for at in range(0, len(records), size)]


def joined(batches: list[FlowBatch]) -> FlowBatch:
    """Return the batches as one."""
    return FlowBatch(
        np.concatenate([b.flows for b in batches]),
        np.concatenate([b.features for b in batches]),
        np.concatenate([b.origins for b in batches]),
    )


def of_exporter(batch: FlowBatch, exporter: int) -> FlowBatch:
    """Return the rows of one exporter."""
    mine = batch.flows["exporter"] == exporter
    return FlowBatch(batch.flows[mine], batch.features[mine], batch.origins[mine])


def assert_same(one: FlowBatch, other: FlowBatch) -> None:
    """Fail unless both hold the same flows with the same features, bit for bit and in the same order."""
    assert one.flows.tobytes() == other.flows.tobytes()
    assert one.features.tobytes() == other.features.tobytes()
