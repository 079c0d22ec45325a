"""A simulated exporter: replays captures that real softflowd and pmacct sent, as UDP datagrams to a collector.

Runs as a program in an exporter's network namespace: ``python -m tests.lab.exporter ADDRESS PORT CAPTURE FACTOR``.
"""

from __future__ import annotations

import signal
import sys

from tests.support.captures import CAPTURES
from vedette.controller.demo.replay import Replay, recorded


def main(address: str, port: str, capture: str, factor: str) -> None:
    """Replay over and over until the process is ended."""
    replay = Replay(int(port), recorded(CAPTURES / f"{capture}.pcap.gz"), float(factor), address=address)
    replay.start()
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
