"""The captures that travel with the product, for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

from vedette.models.flows.captures import read_capture
from vedette.models.flows.datagrams import Datagram

CAPTURES = Path(__file__).parents[2] / "controller/vedette/controller/data/captures"


def capture_datagrams(name: str) -> list[Datagram]:
    """Return the datagrams of a capture such as ``base/softflowd-v9``."""
    with (CAPTURES / f"{name}.pcap.gz").open("rb") as file:
        return list(read_capture(file))
