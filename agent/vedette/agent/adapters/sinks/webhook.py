"""Verdicts to a webhook: batches of JSON lines by POST, signed, tried again, with a key against doubles.

Rules: a batch leaves when it is full or its first verdict is old enough. One that was not taken is tried again with the
same body and the same ``Idempotency-Key``, signed anew, after a wait with full jitter or what ``Retry-After`` asks,
whichever is longer; a refused one (4xx) is counted and forgotten, and so is one that was tried for too long, since what
comes after it would be lost instead. No answer makes this sink read more than a limit or wait longer than another.
Redirects are not followed and proxies not used: verdicts go where the settings say or nowhere.
"""

from __future__ import annotations

import http.client
import stat
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from socket import SHUT_RDWR

from vedette.agent.adapters.fleet.tls import client_context
from vedette.agent.adapters.sinks.fanout import OnProblem, QueuedSink, Verdicts
from vedette.agent.adapters.storage.files import FileTooLarge, read_file
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.webhook import (
    SIGNATURE_HEADER,
    Outcome,
    bodies,
    judged,
    retry_after_s,
    signature,
)
from vedette.agent.settings import WebhookSettings
from vedette.models.version import __version__

MAX_BODY_BYTES = 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024
_MAX_SECRET_BYTES = 4096
_MOST_RETRY_AFTER_S = 3600.0


class _NotTaken(Exception):
    """A batch was not taken by this try; ``wait_s`` is what the receiver asks for."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class WebhookSink(QueuedSink):
    """A webhook."""

    name = "webhook"
    lost_at = ("refused", "late", "end")

    def __init__(self, settings: WebhookSettings, on_problem: OnProblem) -> None:
        super().__init__(emits_all=settings.emit_all, queue_bytes=settings.queue_bytes, on_problem=on_problem)
        self._settings = settings
        self._backoff = Backoff(cap_s=settings.retry_cap_s)
        self._connection: http.client.HTTPConnection | None = None
        self._gathered: list[bytes] = []
        self._due_at = 0.0

    @property
    def gathered(self) -> int:
        """Verdicts that wait for others to leave with."""
        return len(self._gathered)

    def _deliver(self, verdicts: Verdicts) -> None:
        if not self._gathered:
            self._due_at = time.monotonic() + self._settings.batch_age_s
        self._gathered += verdicts.lines
        if len(self._gathered) >= self._settings.batch_rows or time.monotonic() >= self._due_at:
            self._post_gathered()

    def _patience_s(self) -> float | None:
        return max(0.0, self._due_at - time.monotonic()) if self._gathered else None

    def _grow_impatient(self) -> None:
        self._post_gathered()

    def _finish(self) -> None:
        self._post_gathered()
        self._let_go()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post_gathered(self) -> None:
        lines, self._gathered = self._gathered, []
        for batch in bodies(lines, self._settings.batch_rows, MAX_BODY_BYTES):
            self._post_at_last(batch)

    def _post_at_last(self, batch: list[bytes]) -> None:
        """Post until it is taken, refused or given up; each is counted."""
        body, key, gives_up_at = b"".join(batch), uuid.uuid4().hex, time.monotonic() + self._settings.give_up_s
        while not self._is_over():
            try:
                outcome = self._post(body, key)
            except _NotTaken as exc:
                self._say(f"{self._settings.endpoint} takes no verdicts: {exc}; it is tried again by itself")
                if time.monotonic() >= gives_up_at:
                    self.counters.lost["late"] += len(batch)
                    return
                self._pause(max(self._backoff.failed(), exc.wait_s))
            else:
                self._count(outcome, len(batch), len(body))
                return
        self.counters.lost["end"] += len(batch)

    def _count(self, outcome: Outcome, rows: int, size: int) -> None:
        self._backoff.succeeded()
        if outcome is Outcome.REFUSED:
            self.counters.lost["refused"] += rows
            return
        self.counters.written += rows
        self.counters.bytes += size
        self._say(None)

    def _post(self, body: bytes, key: str) -> Outcome:
        """Post once and return what came of it.

        Raises:
            _NotTaken: Another try may have more luck.
        """
        try:
            status, retry_after = self._asked(body, self._headers(body, key))
        except (OSError, http.client.HTTPException, ValueError, FileTooLarge) as exc:
            self._let_go()
            raise _NotTaken(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__) from exc
        outcome = judged(status)
        if outcome is Outcome.REFUSED:
            self._say(
                f"{self._settings.endpoint} refuses verdicts with {status}, those it refuses are lost; see its log"
            )
        if outcome is Outcome.AGAIN:
            wait_s = retry_after_s(retry_after, datetime.now(UTC))
            raise _NotTaken(f"it answers {status}", min(wait_s, _MOST_RETRY_AFTER_S))
        return outcome

    def _headers(self, body: bytes, key: str) -> dict[str, str]:
        headers = {
            "Content-Type": "application/x-ndjson",
            "User-Agent": f"vedette-agent/{__version__}",
            "Idempotency-Key": key,
        }
        if self._settings.secret_file is not None:
            secret = _read_secret(self._settings.secret_file)
            headers[SIGNATURE_HEADER] = signature(secret, int(time.time()), body)
        return headers

    def _asked(self, body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
        """Return status and ``Retry-After`` of the answer."""
        if self._connection is not None:
            try:
                return self._exchanged(self._connection, body, headers)
            except ConnectionError:  # the receiver closed a connection that was idle: that is no failure
                self._let_go()
        self._connection = self._made()
        return self._exchanged(self._connection, body, headers)

    def _exchanged(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> tuple[int, str | None]:
        # The socket's own time-out is of a single read: a receiver that sends a byte a second would never meet it.
        is_cut = threading.Event()
        deadline = threading.Timer(self._settings.timeout_s, _cut, [connection, is_cut])
        deadline.daemon = True
        deadline.start()
        try:
            connection.request("POST", self._settings.endpoint.path, body, headers)
            answer = connection.getresponse()
            if len(answer.read(MAX_ANSWER_BYTES + 1)) > MAX_ANSWER_BYTES or answer.will_close:
                self._let_go()
        except (OSError, http.client.HTTPException) as exc:
            if not is_cut.is_set():
                raise
            raise self._too_slow() from exc
        finally:
            deadline.cancel()
        if is_cut.is_set():  # http.client takes a head that was cut off for a whole one
            raise self._too_slow()
        return answer.status, answer.headers.get("Retry-After")

    def _too_slow(self) -> TimeoutError:
        return TimeoutError(f"no whole answer within {self._settings.timeout_s:g} s")

    def _made(self) -> http.client.HTTPConnection:
        at, timeout_s = self._settings.endpoint, self._settings.timeout_s
        if not at.is_tls:
            return http.client.HTTPConnection(at.host, at.port, timeout=timeout_s)
        context = client_context(self._settings.tls)
        return http.client.HTTPSConnection(at.host, at.port, timeout=timeout_s, context=context)


def _cut(connection: http.client.HTTPConnection, is_cut: threading.Event) -> None:
    """End a request that takes too long, whatever it waits for."""
    is_cut.set()
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(SHUT_RDWR)


def _read_secret(path: Path) -> bytes:
    """Return the secret, without the newline that an editor puts at its end.

    Raises:
        OSError: It cannot be read.
        ValueError: Others may read it, or it is empty.
    """
    if path.stat().st_mode & stat.S_IROTH:
        raise ValueError(f"everybody may read {path}: chmod 640 {path}")
    secret = read_file(path, _MAX_SECRET_BYTES).rstrip(b"\r\n")
    if not secret:
        raise ValueError(f"{path} is empty")
    return secret
