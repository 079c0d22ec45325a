"""Sends recorded export datagrams to a collector at their recorded pace times a factor."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vedette.models.flows.captures import read_capture


def captures() -> Path:
    """Return the folder of captures that travels with the controller."""
    return Path(str(files("vedette.controller"))) / "data" / "captures"


Recorded = Sequence[tuple[float, bytes]]
"""Payloads with their times, seconds, ascending."""


def recorded(capture: Path) -> Recorded:
    """Return the UDP payloads of a capture file."""
    with capture.open("rb") as stream:
        return [(datagram.at_ns / 1e9, datagram.payload) for datagram in read_capture(stream)]


class Replay:
    """Plays one capture after the other to one collector, the last one over and over.

    Args:
        port: Of the collector.
        first: What to begin with.
        factor: How many times faster than recorded.
        address: Of the collector.
    """

    def __init__(self, port: int, first: Recorded, factor: float, *, address: str = "127.0.0.1") -> None:
        self._target = (address, port)
        self._factor = factor
        self._playing = first
        self._changed = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"replay-{port}", daemon=True)
        self.sent = 0
        self.rounds = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def play(self, other: Recorded) -> None:
        """Go over to another capture at once; ``rounds`` counts from 0 again."""
        self._playing = other
        self.rounds = 0
        self._changed.set()

    def stop(self) -> None:
        """End; may be called again."""
        self._stopped = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(self._target)
            while not self._stopped:
                self._changed.clear()
                if self._round(sender, self._playing):
                    self.rounds += 1

    def _round(self, sender: socket.socket, playing: Recorded) -> bool:
        """Send a capture once; return whether it was to the end."""
        begun, first = time.monotonic(), playing[0][0]
        for at, payload in playing:
            due = begun + (at - first) / self._factor
            if self._changed.wait(max(0.0, due - time.monotonic())):
                return False
            try:
                sender.send(payload)
                self.sent += 1
            except OSError:
                pass  # nobody listens yet, or no more, or there is no way there: UDP tells on the next send
        return True


def length_s(playing: Recorded) -> float:
    """Return how long a capture took when it was recorded, seconds."""
    return playing[-1][0] - playing[0][0] if playing else 0.0
