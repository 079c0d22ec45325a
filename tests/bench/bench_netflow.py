"""Speed of reading captures and of decoding export datagrams to flow records, on one core and real datagrams."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.captures import CAPTURES, capture_datagrams
from vedette.models.flows.captures import read_capture
from vedette.models.flows.datagrams import Datagram
from vedette.models.flows.netflow import FlowDecoder

_FORMS = ("softflowd-v5", "softflowd-v9", "softflowd-ipfix", "softflowd-ipfix-biflow", "pmacct-v9")
_BATCH = 256  # datagrams that a collector takes from its socket at once
_REPEATS = 5


def run() -> dict[str, float]:
    """Return datagrams and records per second, each the best of five."""
    figures: dict[str, float] = {}
    for form in _FORMS:
        datagrams = capture_datagrams(f"base/{form}")
        seconds, records = _best(lambda datagrams=datagrams: _in_batches(datagrams))
        figures[f"{form} datagrams/s"] = len(datagrams) / seconds
        figures[f"{form} records/s"] = records / seconds
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
        start = time.perf_counter()
        made = work()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest, made


if __name__ == "__main__":
    for name, figure in run().items():
        print(f"{name:45} {figure:12,.0f}")
