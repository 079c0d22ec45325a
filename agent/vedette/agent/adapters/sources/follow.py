"""Follow a file that another program writes, across what is done to log files.

What is told apart, and how: a file is known by its inode and by the digest of its first bytes, since an inode is used
again and a path is not a file.

- Renamed, and made anew: the old one is read to its end and given up when the new one has bytes and the old one has
  been quiet for :data:`GRACE_S`; log rotation makes the new file before the writer is told. Files that came and went
  between two looks are found beside it under their rotated names.
- Copied, and cut to nothing (logrotate's copytruncate): what was not read yet is read from the copy, when it lies
  beside the file under a rotated name; then the file from its beginning.
- Cut, replaced or gone while nobody looked: read from its beginning, and counted as a gap.
- Compressed before it was ever seen: a gap, known by a time that is later than that of the file that was read.
- Compressed: whoever compresses deletes the file, which is still read to its end while it is open; after a restart the
  rest is a gap. Compressed files are never opened.

Only regular files are followed: what is read from a pipe or a device cannot be read again after a crash. Reading is
polled: a look at a quiet file costs 3 us of processor time (measured), and no notification survives a rotation.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD_BYTES = 1024
"""What a file is known by. Zeek's header says in the third line when the file was opened, Suricata's lines the time."""

FIRST_BYTES = 16 << 20
"""Read of what lies there before the first start, so that context is warm and yesterday is not judged again."""

GRACE_S = 2.0
_ABSENT_S = 30.0  # a rotation leaves no file for a moment; that is nobody's trouble
_MOST_SIBLINGS = 4096
_MOST_OPEN = 32
_DIGITS = r"[.-]\d[\dT:._-]*"
_COMPRESSED = r"\.(?:gz|bz2|xz|zst|lz4)"


class PositionError(Exception):
    """A stored position is none."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in one file, which may have another name by now."""

    inode: int
    offset: int
    head_bytes: int
    head_digest: str

    def to_value(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_value(cls, value: object) -> Position:
        """Return the position of JSON values.

        Raises:
            PositionError: They are none.
        """
        if not isinstance(value, Mapping) or set(value) != set(cls.__slots__):
            raise PositionError("a stored position has other fields than inode, offset and head")
        made = cls(**value)
        numbers = (made.inode, made.offset, made.head_bytes)
        if any(type(n) is not int or n < 0 for n in numbers) or made.head_bytes > HEAD_BYTES:
            told = ", ".join(str(n)[:40] if isinstance(n, int | str) else type(n).__name__ for n in numbers)
            raise PositionError(f"a stored position has the numbers {told}")
        if not isinstance(made.head_digest, str) or len(made.head_digest) != 64:
            raise PositionError("a stored position has no digest")
        return made


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a file; ``begins`` says that they are the first of one, and that the one before has ended."""

    data: bytes
    begins: bool


@dataclass(slots=True)
class FollowCounters:
    """What a follower did since it was made."""

    bytes: int = 0
    rotations: int = 0
    truncations: int = 0
    gaps: int = 0  # times when lines may have been missed


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a file is not read; ``is_waiting`` when it may well come by itself."""

    text: str
    is_waiting: bool


class _File:
    """An open file and how much of it was read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self.is_done = False  # it is written no more
        self.begins = True
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self.head = b""
        self.learn()

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    @property
    def is_same(self) -> bool:
        """Whether the file still begins as it did, and has all that was read."""
        return self.size >= self.offset and os.pread(self.descriptor, len(self.head), 0) == self.head

    def learn(self) -> None:
        """Take the first bytes as they are now."""
        if len(self.head) < HEAD_BYTES:
            self.head = os.pread(self.descriptor, HEAD_BYTES, 0)

    def begin_anew(self) -> None:
        self.offset, self.head, self.begins = 0, b"", True
        self.learn()

    def read(self, most: int) -> bytes:
        """Return the next bytes; nothing at the end, and when the file is no more what it was."""
        data = os.pread(self.descriptor, most, self.offset)
        return data if data and self.is_same else b""

    def is_at(self, position: Position) -> bool:
        """Tell whether a position lies in this file."""
        if self.size < position.offset:
            return False
        head = os.pread(self.descriptor, position.head_bytes, 0)
        if len(head) != position.head_bytes or hashlib.sha256(head).hexdigest() != position.head_digest:
            return False
        return position.head_bytes > 0 or self.identity[1] == position.inode

    def position(self) -> Position:
        return Position(self.identity[1], self.offset, len(self.head), hashlib.sha256(self.head).hexdigest())

    def close(self) -> None:
        os.close(self.descriptor)


class Follower:
    """One file, by the path at which its writer makes it.

    Args:
        path: Of the file; a link is followed.
        stored: Where an earlier process stopped; None for the first one.
        monotonic: Seconds of a clock that never goes back.
    """

    def __init__(self, path: Path, stored: Position | None, monotonic: Callable[[], float]) -> None:
        self._path = path
        self._stored = stored
        self._is_first_look = True
        self._monotonic = monotonic
        self._files: deque[_File] = deque()
        self._read_at = monotonic()
        self._seen_at = monotonic()
        self._has_missed = False
        self.counters = FollowCounters()
        self.problem: Problem | None = None
        self.began_inside = False  # the first bytes may be in the middle of a line

    @property
    def position(self) -> Position | None:
        """Where reading goes on; None before a file was there."""
        return self._files[0].position() if self._files else self._stored

    @property
    def lag_bytes(self) -> int:
        """How much is written and not read yet."""
        return sum(max(file.size - file.offset, 0) for file in self._files)

    def head(self, most: int) -> bytes:
        """Return the first bytes of the file that is read now."""
        return os.pread(self._files[0].descriptor, most, 0) if self._files else b""

    def read(self, most: int) -> Piece | None:
        """Return the next bytes, at most so many; None when there are none now. Never raises for what a file does."""
        try:
            return self._read(most)
        except OSError as exc:
            self.problem = _problem(self._path, exc)
            return None

    def close(self) -> None:
        """Close what is open."""
        while self._files:
            self._files.popleft().close()

    def _read(self, most: int) -> Piece | None:
        if self._files:
            self._look_at_path()
        else:
            self._open_first()
        while self._files:
            file = self._files[0]
            if data := file.read(most):
                file.learn()
                file.offset += len(data)
                self.counters.bytes += len(data)
                self._read_at = self._monotonic()
                begins, file.begins = file.begins, False
                return Piece(data, begins)
            if not file.is_same:
                self._restart(file)
            elif self._is_finished(file):
                self._files.popleft().close()
            else:
                return None
        return None

    def _is_finished(self, file: _File) -> bool:
        """Tell whether there is a next file and nothing more to come in this one."""
        if len(self._files) == 1:
            return False
        return file.is_done or (self._files[1].size > 0 and self._monotonic() - self._read_at >= GRACE_S)

    def _look_at_path(self) -> None:
        """Open what another program put in the place of the newest file."""
        newest = self._files[-1]
        try:
            seen = self._path.stat()
            self._seen_at = self._monotonic()
            if (seen.st_dev, seen.st_ino) == newest.identity:
                self.problem = None
                return
            if len(self._files) >= _MOST_OPEN:
                self._has_missed = True
                return
            found = self._open(self._path)
        except OSError as exc:
            if exc.errno != errno.ENOENT or self._monotonic() - self._seen_at >= _ABSENT_S:
                self.problem = _problem(self._path, exc)
            return
        self.problem = None
        between = self._rotated_between(newest, found)
        self.counters.rotations += 1 + len(between)
        self.counters.gaps += self._has_missed
        self._has_missed = False
        self._read_at = self._monotonic()
        for file in between:
            self._files[-1].is_done = True  # its writer has begun, and ended, another since
            self._files.append(file)
        self._files.append(found)

    def _rotated_between(self, newest: _File, found: _File) -> list[_File]:
        """Return files that were made and rotated away between two looks, oldest first."""
        later = self._siblings(found)
        known = [file.identity for file in later]
        if newest.identity in known:
            later_ones = known.index(newest.identity) + 1
        else:  # it was moved elsewhere or compressed: time tells which of the others are younger
            ended_ns = os.fstat(newest.descriptor).st_mtime_ns
            later_ones = sum(os.fstat(file.descriptor).st_mtime_ns <= ended_ns for file in later)
            # What compresses a file gives the new one the time of the old one.
            self._has_missed |= any(time_ns > ended_ns for time_ns, _ in self._rotated(_COMPRESSED))
        _close(later[:later_ones])
        return later[later_ones:]

    def _restart(self, file: _File) -> None:
        """Begin a file anew that was cut, after what a copy of it still has."""
        self.counters.truncations += 1
        position = file.position()
        file.begin_anew()
        copies = self._siblings(file)
        copy = next((copy for copy in copies if copy.is_at(position)), None)
        _close(other for other in copies if other is not copy)
        if copy is None:
            self.counters.gaps += 1
            return
        copy.offset, copy.is_done, copy.begins = position.offset, True, False
        self._files.appendleft(copy)

    def _open_first(self) -> None:
        """Open the file, and before it what was written to earlier ones since the stored position."""
        stored, is_first_look = self._stored, self._is_first_look
        self._is_first_look = False
        current = self._open(self._path)
        self.problem, self._seen_at = None, self._monotonic()
        self._files.append(current)
        if stored is None:
            if is_first_look and current.size > FIRST_BYTES:
                current.offset, self.began_inside = current.size - FIRST_BYTES, True
        elif current.is_at(stored):
            current.offset, current.begins = stored.offset, False
        elif not self._resume(stored, current):
            self.counters.gaps += 1
        self._stored = None

    def _resume(self, stored: Position, current: _File) -> bool:
        """Put the rotated file of a position, and those that came after it, before the current one."""
        earlier = self._siblings(current)
        found = next((place for place, file in enumerate(earlier) if file.is_at(stored)), len(earlier))
        _close(earlier[:found])
        later = earlier[found:]
        for file in reversed(later):
            file.is_done = file is not later[-1]  # the last one's writer may not have been told yet
            self._files.appendleft(file)
            self.counters.rotations += 1
        if later:
            later[0].offset, later[0].begins = stored.offset, False
        return bool(later)

    def _siblings(self, apart_from: _File) -> list[_File]:
        """Open the files beside this one that have its name as log rotation changes it, oldest first."""
        opened = []
        for _, name in self._rotated()[-_MOST_OPEN:]:
            with suppress(OSError):  # gone meanwhile, or not ours to read
                opened.append(self._open(self._path.with_name(name)))
        _close(file for file in opened if file.identity == apart_from.identity)
        return [file for file in opened if file.identity != apart_from.identity]

    def _rotated(self, ending: str = "") -> list[tuple[int, str]]:
        """Return when they were changed, and names, of files that log rotation named after this one, oldest first."""
        stem, suffix = re.escape(self._path.stem), re.escape(self._path.suffix)
        rotated = re.compile(f"(?:{stem}{suffix}{_DIGITS}|{stem}{_DIGITS}{suffix}){ending}")
        found: list[tuple[int, str]] = []
        with os.scandir(self._path.parent) as entries:
            for entry in itertools.islice(entries, _MOST_SIBLINGS):
                if rotated.fullmatch(entry.name):
                    with suppress(OSError):  # gone meanwhile
                        found.append((entry.stat().st_mtime_ns, entry.name))
        return sorted(found)

    def _open(self, path: Path) -> _File:
        # Looked at before it is opened: to open a device may do something, to open a pipe may wait.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return _File(descriptor)
        except OSError:
            os.close(descriptor)
            raise


def _close(files: Iterable[_File]) -> None:
    for file in files:
        file.close()


def _problem(path: Path, exc: OSError) -> Problem:
    if exc.errno == errno.ENOENT:
        text = f"{path} is not there: start the program that writes it, or correct the path; it is looked for again"
        return Problem(text, True)
    if exc.errno in (errno.EACCES, errno.EPERM):
        text = (
            f"{path} may not be read by the agent: add its user to the group that owns the file and its folder "
            "(usermod -aG GROUP vedette-agent; systemctl restart vedette-agent), and have rotation keep that group"
        )
        return Problem(text, False)
    if exc.errno == errno.EINVAL:
        text = f"{path} is no regular file: pipes and devices cannot be read again after a crash; have a file written"
        return Problem(text, False)
    return Problem(f"{path} cannot be read ({exc.strerror or exc}): look at its disk; it is tried again", False)
