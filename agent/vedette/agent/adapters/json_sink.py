"""Verdicts to a file, one JSON object a line.

Rules: ``write`` only queues and never waits for the disk; a thread of its own writes. The queue is bounded in bytes:
what does not fit is counted, never waited for. Lines are whole: what a full disk cut is taken back, and a file that a
power cut left without its last newline gets one first. The disk may be full or the folder gone: the sink says so once,
counts what it loses and goes on by itself when there is room again. A file that was renamed or deleted under it gets no
further line: before each write the sink looks whether its file still has its name, so no signal has to come in time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_FILE_MODE, _FOLDER_MODE = 0o640, 0o750
_WRITE_BYTES = 1024 * 1024


@dataclass(slots=True)
class SinkCounters:
    """What a sink did since it was made."""

    lines: int = 0
    bytes: int = 0
    lost_queue: int = 0  # lines that found the queue full
    lost_disk: int = 0  # lines the disk did not take


class JsonSink:
    """A file of JSON lines.

    Args:
        path: The file; made with mode 0640, its folder too when absent.
        queue_bytes: The most that may wait.
        on_problem: Called from the writing thread with what is wrong when that begins, and with None when it ends.
    """

    def __init__(self, path: Path, queue_bytes: int, on_problem: Callable[[str | None], None]) -> None:
        self._path = path
        self._queue_bytes = queue_bytes
        self._on_problem = on_problem
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._is_writing = False
        self._must_reopen = False
        self._must_end = False
        self._changed = threading.Condition()
        self._file: int | None = None
        self._problem: str | None = None
        self.counters = SinkCounters()
        self._thread = threading.Thread(target=self._run, name="json-sink", daemon=True)

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def write(self, lines: bytes, count: int) -> None:
        """Queue whole lines.

        Args:
            lines: Ending with a newline.
            count: How many they are.
        """
        with self._changed:
            if self._bytes + len(lines) > self._queue_bytes:
                self.counters.lost_queue += count
                return
            self._waiting.append((lines, count))
            self._bytes += len(lines)
            self._changed.notify_all()

    def reopen(self) -> None:
        """Close the file and open the one that now has its name, for a log rotation."""
        with self._changed:
            self._must_reopen = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was queued is written or lost; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_writing, timeout_s)

    @property
    def is_broken(self) -> bool:
        """Whether the thread was started and ended unasked."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """Write what waits, as long as that takes no longer than ``timeout_s``, and end the thread."""
        self.flush(timeout_s)
        with self._changed:
            self._must_end = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._must_reopen or self._must_end)
                must_reopen, self._must_reopen = self._must_reopen, False
                lines, count = self._taken()
                self._is_writing = True
                must_end = self._must_end
            if must_reopen or must_end:
                self._close_file()
            if lines:
                self._put(lines, count)
            elif must_end:
                return

    def _taken(self) -> tuple[bytes, int]:
        parts, count, size = [], 0, 0
        while self._waiting and size < _WRITE_BYTES:
            lines, lines_count = self._waiting.popleft()
            parts.append(lines)
            count += lines_count
            size += len(lines)
        self._bytes -= size
        return b"".join(parts), count

    def _put(self, lines: bytes, count: int) -> None:
        try:
            if self._file is not None and not _has_name(self._file, self._path):
                self._close_file()
            if self._file is None:
                self._file = _open(self._path)
            _append_whole(self._file, lines)
        except OSError as exc:
            self.counters.lost_disk += count
            self._close_file()
            self._say(f"{self._path} cannot be written: {exc.strerror}; {self.counters.lost_disk} verdicts lost so far")
            return
        self.counters.lines += count
        self.counters.bytes += len(lines)
        self._say(None)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _say(self, problem: str | None) -> None:
        if (problem is None) != (self._problem is None):
            self._on_problem(problem)
        self._problem = problem


def _open(path: Path) -> int:
    path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")
    return file


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _append_whole(file: int, lines: bytes) -> None:
    """Append all of it or nothing.

    Raises:
        OSError: The disk did not take it.
    """
    before = os.fstat(file).st_size
    view = memoryview(lines)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        os.ftruncate(file, before)
        raise
