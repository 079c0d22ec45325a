"""The UDP collector: a thread that does nothing but empty the socket, so that a burst is lost neither by us nor unsaid.

Datagrams wait in a queue bounded in bytes for whoever decodes them; beyond it the newest are dropped and counted. What
the kernel itself dropped is read from the socket (SO_RXQ_OVFL). The thread decodes nothing: numpy and the event loop
may be busy for tens of milliseconds, while a default socket buffer holds a burst of two hundred packets.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vedette.agent.domain.advice import AdvisedError
from vedette.models.flows.datagrams import Datagram

logger = logging.getLogger(__name__)

_SO_RXQ_OVFL = 40  # <asm-generic/socket.h>; not in Python's socket module
_SO_RCVBUFFORCE = 33
_LARGEST = 65_535
_OVERHEAD_BYTES = 256  # of a queued datagram's objects, counted so that tiny packets cannot fill the memory
_ANCILLARY = socket.CMSG_SPACE(4)
_MAPPED = "::ffff:"


class CollectorFailed(AdvisedError):
    """Nothing can listen on the flow address: the operator must choose another or free it."""

    code = "collector-address"


@dataclass(slots=True)
class CollectorCounters:
    """What a collector did since it was made."""

    datagrams: int = 0
    bytes: int = 0
    dropped_queue: int = 0
    dropped_kernel: int = 0


class Collector:
    """One UDP socket and its thread.

    Args:
        address: Host and port; port 0 is any free one.
        receive_buffer_bytes: Asked of the kernel.
        queue_bytes: The most that may wait, overhead included.
        on_ready: Called from the thread when the queue is no longer empty.
    """

    def __init__(
        self, address: tuple[str, int], receive_buffer_bytes: int, queue_bytes: int, on_ready: Callable[[], None]
    ) -> None:
        self._address = address
        self._wanted_bytes = receive_buffer_bytes
        self._queue_bytes = queue_bytes
        self._on_ready = on_ready
        self._waiting: deque[Datagram] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._drain, name="collector", daemon=True)
        self.counters = CollectorCounters()
        self.buffer_bytes = 0
        self.port = 0

    def start(self) -> None:
        """Bind and start the thread; may be called again after it failed.

        Raises:
            CollectorFailed: The address is taken or not this machine's.
        """
        host, port = self._address
        try:
            self._socket = _bound(host, port)
        except OSError as exc:
            raise CollectorFailed(
                f"no flows can be taken on UDP {host}:{port}",
                exc.strerror or str(exc),
                "it is tried again; see who listens there: ss -ulpn; or choose another source.netflow.listen",
            ) from exc
        self.port = int(self._socket.getsockname()[1])
        self.buffer_bytes = _widen(self._socket, self._wanted_bytes)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        self._thread.start()

    def take(self, most: int) -> list[Datagram]:
        """Return what waits, oldest first, at most so many datagrams."""
        with self._lock:
            count = min(most, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            self._bytes -= sum(len(datagram.payload) + _OVERHEAD_BYTES for datagram in taken)
        return taken

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    @property
    def fill(self) -> float:
        """How much of what may wait waits, 0 to 1."""
        return self._bytes / self._queue_bytes

    @property
    def is_broken(self) -> bool:
        """Whether the thread was started and ended unasked."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def close(self) -> None:
        """End the thread and close the socket; what waits can still be taken. Without a start it does nothing."""
        os.eventfd_write(self._stop, 1)
        if self._thread.ident is not None:  # it was started
            self._thread.join()
            self._socket.close()
        os.close(self._stop)

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        buffer = bytearray(_LARGEST)
        view = memoryview(buffer)
        while self._stop not in (ready for ready, _ in poll.poll()):
            while self._receive(buffer, view):
                pass

    def _receive(self, buffer: bytearray, view: memoryview) -> bool:
        """Take one datagram off the socket; return False when there is none."""
        try:
            size, ancillary, _, sender = self._socket.recvmsg_into([buffer], _ANCILLARY)
        except BlockingIOError:
            return False
        except OSError as exc:  # an ICMP error of an earlier answer, or no memory: the socket goes on
            logger.debug("receiving flows: %s", exc)
            return False
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                self.counters.dropped_kernel = int.from_bytes(data[:4], "little")
        source = sender[0].removeprefix(_MAPPED) if "." in sender[0] else sender[0]  # IPv4 on an IPv6 socket
        self._queue(Datagram(time.time_ns(), source, sender[1], bytes(view[:size])))
        return True

    def _queue(self, datagram: Datagram) -> None:
        size = len(datagram.payload)
        with self._lock:  # around the counts too: whoever sees a datagram counted finds it queued or dropped
            self.counters.datagrams += 1
            self.counters.bytes += size
            if self._bytes + size + _OVERHEAD_BYTES > self._queue_bytes:
                self.counters.dropped_queue += 1
                return
            was_empty = not self._waiting
            self._waiting.append(datagram)
            self._bytes += size + _OVERHEAD_BYTES
        if was_empty:
            self._on_ready()


def _bound(host: str, port: int) -> socket.socket:
    flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)[0]
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:  # [::] is for both families, whatever net.ipv6.bindv6only says
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(where)
    except OSError:
        made.close()
        raise
    return made


def _widen(made: socket.socket, wanted: int) -> int:
    """Ask for a receive buffer, past the system's limit where that is allowed, and return what was granted."""
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted)
    except OSError:  # needs CAP_NET_ADMIN
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    # The kernel doubles what is asked for its own book-keeping and reports the doubled value (socket(7)).
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
