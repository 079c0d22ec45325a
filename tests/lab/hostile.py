"""A hostile appliance, enrolled and with a key of its own, that says everything wrong to both ports of a controller.

Runs on a lab's host with the agent's own interpreter: ``hostile.py ADDRESS SECONDS ENROLMENT_FOLDER``. Prints how its
calls ended, by port and gRPC status.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from vedette.agent.adapters.fleet.channels import SERVER_NAME, credentials

_MEMBERS, _STRANGERS = 7443, 7444
_IDLE = 100  # connections to each port that say nothing at all
_LARGE_BYTES = 5 << 20  # over the limit of 4 MiB
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PREFIX = "/vedette.wire.v1."
_CALLS = {
    _MEMBERS: ("Fleet/Connect", "Telemetry/Report", "Artifacts/Read", "Admin/ListAgents", "Nothing/AtAll"),
    _STRANGERS: ("Enrolment/Hello", "Enrolment/Enrol", "Fleet/Connect"),
}


class Hostile:
    """All that is wrong, over and over until the time is up."""

    def __init__(self, address: str, seconds: float, enrolment: Path) -> None:
        self._address = address
        self._end = time.monotonic() + seconds
        key, certificate = ((enrolment / name).read_bytes() for name in ("key.pem", "certificate.pem"))
        ca = (enrolment / "ca.pem").read_bytes()
        self._trusted = {_MEMBERS: credentials(ca, key, certificate), _STRANGERS: credentials(ca)}
        self.ends: Counter[str] = Counter()

    def run(self) -> None:
        """Do everything at once."""
        idle = [self._open(port) for port in _CALLS for _ in range(_IDLE)]
        work = [threading.Thread(target=self._repeat, args=(act, port)) for port in _CALLS for act in self._acts()]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        for connection in idle:
            connection.close()

    def _acts(self) -> tuple[Callable[[int], None], ...]:
        return self._noise, self._calls

    def _repeat(self, act: Callable[[int], None], port: int) -> None:
        while time.monotonic() < self._end:
            act(port)

    def _open(self, port: int) -> socket.socket:
        return socket.create_connection((self._address, port), 10)

    def _noise(self, port: int) -> None:
        """Say what is no TLS."""
        with suppress(OSError), self._open(port) as connection:
            connection.sendall(random.choice((b"", _PREFACE, b"GET / HTTP/1.1\r\n\r\n")) + os.urandom(20_000))
            connection.recv(1)

    def _calls(self, port: int) -> None:
        """Call everything with what is no message, and with one that is too large."""
        options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.max_send_message_length", -1))
        target = f"{self._address}:{port}"
        with grpc.secure_channel(target, self._trusted[port], options=options) as channel:
            for name in _CALLS[port]:
                for size in (0, 1, 1000, _LARGE_BYTES):
                    self._call(channel, port, name, os.urandom(size))

    def _call(self, channel: grpc.Channel, port: int, name: str, body: bytes) -> None:
        call = channel.stream_stream(_PREFIX + name)(iter([body]), timeout=10)
        try:
            for _ in call:
                pass
            end = "OK"
        except grpc.RpcError as exc:
            end = exc.code().name
        self.ends[f"{port} {name.partition('/')[2]} {'large' if len(body) == _LARGE_BYTES else len(body)} {end}"] += 1


if __name__ == "__main__":
    hostile = Hostile(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
    hostile.run()
    print(json.dumps(hostile.ends))
