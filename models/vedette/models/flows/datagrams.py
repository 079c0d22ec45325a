"""What a collector's socket and a capture file both give: one UDP datagram and where it came from."""

from __future__ import annotations

from typing import NamedTuple


class Datagram(NamedTuple):
    """One UDP datagram of an exporter."""

    at_ns: int
    """When it arrived, Unix nanoseconds of the receiver's clock."""
    source: str
    """Address of the sender as text, IPv4 or IPv6."""
    source_port: int
    payload: bytes
