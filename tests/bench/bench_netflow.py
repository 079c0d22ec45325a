"""Speed of reading captures and of decoding export datagrams to flow records, on one core and real datagrams.

The ``netflow`` package, pure Python as ours is, decodes the same datagrams in the same run. All is CPU seconds of one
process: what else the machine does matters less.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from typing import Any

import netflow

from tests.support.captures import CAPTURES, capture_datagrams
from vedette.models.flows.captures import read_capture
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.netflow import FlowDecoder

_FORMS = (
    *(f"base/softflowd-{form}" for form in ("v5", "v9", "ipfix", "ipfix-biflow")),
    *("base/pmacct-v9", "base2/pmacct-ipfix"),
)
_BATCH = 256  # datagrams that a collector takes from its socket at once
_REPEATS = 5


def run() -> dict[str, float]:
    """Return datagrams and records per second, each the best of five."""
    figures: dict[str, float] = {}
    for form in _FORMS:
        datagrams = capture_datagrams(form)
        seconds, records = _best(lambda datagrams=datagrams: _in_batches(datagrams))
        others, found = _best(lambda datagrams=datagrams: netflow_records(datagrams))
        if found < 0.99 * records:
            raise RuntimeError(f"{form}: the netflow package finds {found} records, we find {records}")
        name = form.split("/")[1]
        figures[f"{name} datagrams/s"] = len(datagrams) / seconds
        figures[f"{name} records/s"] = records / seconds
        figures[f"{name} the netflow package's records/s"] = found / others
    datagrams = capture_datagrams("base/softflowd-v9")
    seconds, records = _best(lambda: _one_by_one(datagrams))
    figures["softflowd-v9 one by one datagrams/s"] = len(datagrams) / seconds
    seconds, count = _best(_read)
    figures["capture datagrams/s"] = count / seconds
    return figures


def _in_batches(datagrams: list[Datagram]) -> int:
    decoder = FlowDecoder()
    for start in range(0, len(datagrams), _BATCH):
        decoder.decode_many(datagrams[start : start + _BATCH])
    return decoder.counters.records


def netflow_records(datagrams: list[Datagram]) -> int:
    """Return how many records, option data included, the ``netflow`` package decodes of one exporter's datagrams."""
    templates: dict[str, Any] = {"netflow": {}, "ipfix": {}}
    found = 0
    for datagram in datagrams:
        with contextlib.suppress(struct.error):  # it cannot read three datagrams of softflowd whose sets are padded
            found += len(netflow.parse_packet(datagram.payload, templates).flows)
    return found


def _one_by_one(datagrams: list[Datagram]) -> int:
    decoder = FlowDecoder()
    for at_ns, source, _, payload in datagrams:
        decoder.decode(payload, source, at_ns // 1_000_000)
    return decoder.counters.records


def _read() -> int:
    with (CAPTURES / "base/pmacct-v9.pcap.gz").open("rb") as file:
        return sum(1 for _ in read_capture(file))


def _best(work: Callable[[], int]) -> tuple[float, int]:
    """Return the shortest time of several runs, and what the last one returned."""
    shortest, made = float("inf"), 0
    for _ in range(_REPEATS):
        start = time.process_time()
        made = work()
        shortest = min(shortest, time.process_time() - start)
    return shortest, made


if __name__ == "__main__":
    for name, figure in run().items():
        print(f"{name:45} {figure:12,.0f}")
