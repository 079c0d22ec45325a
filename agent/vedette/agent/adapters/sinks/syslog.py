"""Verdicts to a syslog receiver: RFC 5424 messages over UDP, TCP or TLS.

Rules: what TCP or TLS carried when the connection broke is sent again in the next one, so that a receiver may see a few
lines twice; what the kernel had taken and the receiver never read is lost unseen, as syslog has no acknowledgement. UDP
tells of nothing but a port where nobody listens: a datagram counts as written when the next one left without a word of
it, or after a moment. A message too long for the receiver leaves out its evidence, and is counted as lost if that is
not enough.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress

from vedette.agent.adapters.fleet.tls import client_context
from vedette.agent.adapters.sinks.fanout import OnProblem, QueuedSink, Verdicts
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.syslog import Said, Target, framed, syslog_message
from vedette.agent.settings import SyslogSettings
from vedette.models.verdict import time_text

_TIMEOUT_S = 10.0
_FAREWELL_S = 1.0
_USER_TIMEOUT_MS = 20_000  # of sent and unacknowledged bytes, after which the kernel gives a half-open connection up
_CHUNK_BYTES = 64 * 1024
_AGAIN = "it is tried again by itself"
_ICMP_S = 0.2  # how long a refusal of a datagram may take to come back before a port counts as open again


class SyslogSink(QueuedSink):
    """A syslog receiver."""

    name = "syslog"
    lost_at = ("size", "network", "end")

    def __init__(self, settings: SyslogSettings, on_problem: OnProblem) -> None:
        super().__init__(emits_all=settings.emit_all, queue_bytes=settings.queue_bytes, on_problem=on_problem)
        self._settings = settings
        self._is_stream = settings.target.transport != "udp"
        self._backoff = Backoff(cap_s=settings.retry_cap_s)
        self._socket: socket.socket | None = None
        self._on_trial: int | None = None  # size of the last datagram, which may still come back

    def _deliver(self, verdicts: Verdicts) -> None:
        messages = list(self._messages(verdicts))
        self.counters.lost["size"] += len(verdicts) - len(messages)
        done = 0
        for count, chunk in self._chunks(messages):
            if not self._send_at_last(chunk):
                self.counters.lost["end"] += len(messages) - done
                return
            done += count
            self._settle()
            if self._is_stream:
                self._count(count, len(chunk))
            else:
                self._on_trial = len(chunk)

    def _is_unsure(self) -> bool:
        return self._on_trial is not None

    def _patience_s(self) -> float | None:
        return _ICMP_S if self._is_unsure() else None

    def _grow_impatient(self) -> None:
        if self._is_refused():
            self._say(f"{self._settings.target} takes no messages: {os.strerror(errno.ECONNREFUSED)}; {_AGAIN}")
            self._let_go()
        self._settle()

    def _is_refused(self) -> bool:
        """Return whether the datagram that is on trial came back, and count it as lost if so."""
        if self._on_trial is None or self._socket is None or not _error(self._socket):
            return False
        self._settle(is_lost=True)
        return True

    def _settle(self, *, is_lost: bool = False) -> None:
        """Count the datagram that is on trial: each is written or lost, and none is both."""
        if self._on_trial is None:
            return
        if is_lost:
            self.counters.lost["network"] += 1
        else:
            self._count(1, self._on_trial)
        self._on_trial = None

    def _count(self, verdicts: int, size: int) -> None:
        self.counters.written += verdicts
        self.counters.bytes += size

    def _messages(self, verdicts: Verdicts) -> Iterator[bytes]:
        at, process, by = time_text(verdicts.at_ms), os.getpid(), verdicts.by
        rows = zip(verdicts.lines, verdicts.labels, verdicts.flagged.tolist(), verdicts.scores.tolist(), strict=True)
        for line, label, is_flagged, score in rows:
            said = Said(at, by.host, process, by.model, by.version, label, is_flagged, score)
            facility, most = self._settings.facility, self._settings.max_message
            message = syslog_message(line, said, facility=facility, most=most)
            if message is not None:
                yield message

    def _chunks(self, messages: list[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield what is sent at once and how many messages it is: one a datagram, many in a stream."""
        if not self._is_stream:
            yield from ((1, message) for message in messages)
            return
        parts: list[bytes] = []
        size = 0
        for message in messages:
            parts.append(framed(message))
            size += len(parts[-1])
            if size >= _CHUNK_BYTES:
                yield len(parts), b"".join(parts)
                parts, size = [], 0
        if parts:
            yield len(parts), b"".join(parts)

    def _send_at_last(self, chunk: bytes) -> bool:
        """Send until it is sent; return False when the sink must end before."""
        while not self._is_over():
            try:
                self._send(chunk)
            except (OSError, UnicodeError) as exc:  # UnicodeError: a host name that IDNA has no form for
                self._let_go()
                self._say(f"{self._settings.target} takes no messages: {_why(exc)}; {_AGAIN}")
                self._pause(self._backoff.failed())
            else:
                self._backoff.succeeded()
                self._say(None)
                return True
        return False

    def _send(self, chunk: bytes) -> None:
        if self._socket is not None and self._is_stream and _has_ended(self._socket):
            self._let_go()
        if self._socket is None:
            self._socket = self._connected()
        try:
            self._socket.sendall(chunk)
            if self.problem is not None and not self._is_stream:
                self._await_refusal(self._socket)
        except ConnectionRefusedError:  # of the datagram before; this one is sent again
            self._settle(is_lost=True)
            raise

    def _await_refusal(self, udp: socket.socket) -> None:
        """Raise ConnectionRefusedError if the last datagram comes back: sending one proves nothing."""
        time.sleep(_ICMP_S)
        if error := _error(udp):
            raise OSError(error, os.strerror(error))

    def _connected(self) -> socket.socket:
        target = self._settings.target
        if target.transport == "udp":
            return _connected_udp(target)
        plain = socket.create_connection((target.host, target.port), _TIMEOUT_S)
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
            if target.transport == "tcp":
                return plain
            name = self._settings.server_name or target.host
            return client_context(self._settings.tls).wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise

    def _let_go(self) -> None:
        if self._socket is None:
            return
        self._is_refused()
        with suppress(OSError):
            self._socket.settimeout(_FAREWELL_S)
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.unwrap()  # RFC 5425 section 4.4: a sender MUST send close_notify
        self._socket.close()
        self._socket = None


def _error(made: socket.socket) -> int:
    """Return and forget what came back from the network."""
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _connected_udp(target: Target) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.settimeout(_TIMEOUT_S)
        made.connect(address)
    except OSError:
        made.close()
        raise
    return made


def _has_ended(stream: socket.socket) -> bool:
    """Return whether the receiver has closed: what is written after that would be lost unseen."""
    stream.settimeout(0.0)
    try:
        return stream.recv(4096) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        stream.settimeout(_TIMEOUT_S)


def _why(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not believed ({exc.verify_message})"
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
