"""Verdicts to a file, one JSON object a line.

Rules: lines are whole: what a full disk cut is taken back, and a file that a power cut left without its last newline
gets one first. The disk may be full or the folder gone: the sink says so once, counts what it loses and goes on by
itself when there is room again. A file that was renamed or deleted under it gets no further line: before each write
the sink looks whether its file still has its name, so no signal has to come in time. A file at its greatest size is
left as it is, and the sink says so and counts what it loses, until somebody rotates it: to rename it here would put one
of logrotate's own files out of the way, and no line that is kept is deleted for a newer one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vedette.agent.adapters.sinks.fanout import OnProblem, QueuedSink, Verdicts
from vedette.models.toml_settings import format_size

_FILE_MODE, _FOLDER_MODE = 0o640, 0o750


class JsonSink(QueuedSink):
    """A file of JSON lines.

    Args:
        path: The file; made with mode 0640, its folder too when absent.
        max_bytes: Its greatest size; None is none.
        emits_all: Whether verdicts that are not flagged are written too.
        queue_bytes: The most that may wait.
        on_problem: Called from the writing thread with what is wrong when that begins, and with None when it ends.
    """

    name = "json"
    lost_at = ("disk", "size")

    def __init__(
        self, path: Path, *, max_bytes: int | None, emits_all: bool, queue_bytes: int, on_problem: OnProblem
    ) -> None:
        super().__init__(emits_all=emits_all, queue_bytes=queue_bytes, on_problem=on_problem)
        self._path = path
        self._max_bytes = max_bytes
        self._file: int | None = None

    def _deliver(self, verdicts: Verdicts) -> None:
        lines = b"".join(verdicts.lines)
        try:
            file = self._opened()
            if self._max_bytes is not None and os.fstat(file).st_size + len(lines) > self._max_bytes:
                self._lose("size", len(verdicts), f"is at its limit of {format_size(self._max_bytes)}")
                return
            _append_whole(file, lines)
        except OSError as exc:
            self._lose("disk", len(verdicts), f"cannot be written: {exc.strerror}")
            self._let_go()
            return
        self.counters.written += len(verdicts)
        self.counters.bytes += len(lines)
        self._say(None)

    def _lose(self, where: str, count: int, why: str) -> None:
        self.counters.lost[where] += count
        remedy = "; rotate it, or raise sink.json.max_size" if where == "size" else ""
        self._say(f"{self._path} {why}; {self.counters.lost[where]} verdicts lost so far{remedy}")

    def _opened(self) -> int:
        if self._file is not None and not _has_name(self._file, self._path):
            self._let_go()
        if self._file is None:
            self._file = _open(self._path)
        return self._file

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


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
        with suppress(OSError):  # what the disk said first is the reason
            os.ftruncate(file, before)
        raise
