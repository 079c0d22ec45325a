"""Instants at which a power cut may come: each change of a file on a host's disk, as the kernel tells of it.

A program that keeps its promises stores what it is about to do, so its writes are the only instants that a cut can tell
apart. The kernel reports them (fanotify(7), for the whole file system) about when they happen: a cut "at change 7"
comes a fraction of a millisecond after it, which may be before or after the sync that follows. Hence many instants, and
no claim that one of them is exact.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.lab.host import Host
from tests.lab.volume import Volume

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
_CLOEXEC_WITH_NAMES = 0x1 | 0xC00  # FAN_CLOEXEC | FAN_REPORT_DFID_NAME
_ADD_FILE_SYSTEM = 0x1 | 0x100  # FAN_MARK_ADD | FAN_MARK_FILESYSTEM
_CHANGES = {0x2: "write", 0x80: "rename", 0x100: "create", 0x200: "delete"}
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  # fanotify(7), struct fanotify_event_metadata
_INFO_BYTES, _HANDLE = 12, struct.Struct("=Ii")  # struct fanotify_event_info_fid, then struct file_handle
_LOOK_S = 0.1


class Changes:
    """The changes on a disk from now on, in order.

    Args:
        volume: The disk.
        but: Beginnings of the names of files that do not count.
    """

    def __init__(self, volume: Volume, but: tuple[str, ...] = ()) -> None:
        self._but = but
        self._file = _call("fanotify_init", _CLOEXEC_WITH_NAMES, os.O_RDONLY)
        mounted = os.fsencode(volume.mounted)
        _call("fanotify_mark", self._file, _ADD_FILE_SYSTEM, sum(_CHANGES), _AT_FDCWD, mounted)

    def close(self) -> None:
        """Look no more; the disk may be unmounted then."""
        os.close(self._file)

    def next(self, timeout: float) -> list[str]:
        """Return what changed since the last call, such as ``write state.db-wal``; empty after ``timeout`` seconds."""
        if not select.select([self._file], [], [], timeout)[0]:
            return []
        return [said for said, name in _events(os.read(self._file, 1 << 16)) if not name.startswith(self._but)]


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_LIBC, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _events(data: bytes) -> Iterator[tuple[str, str]]:
    while data:
        size, _, _, header, mask, _, _ = _EVENT.unpack_from(data)
        info = data[header:size]
        handle, _ = _HANDLE.unpack_from(info, _INFO_BYTES)
        name = os.fsdecode(info[_INFO_BYTES + _HANDLE.size + handle :].split(b"\0")[0])
        for bit, what in _CHANGES.items():
            if mask & bit:
                yield f"{what} {name}", name
        data = data[size:]


@dataclass(frozen=True, slots=True)
class Instant:
    """When and how a host is cut off.

    Attributes:
        change: At the change of this number on its disk, from 1.
        is_power: A power cut, which loses what was not synced; else only the host's processes end.
    """

    change: int
    is_power: bool


@dataclass(slots=True)
class Told:
    """What was seen while a block ran: all changes, the last of them the one at which the cut came."""

    changes: list[str] = field(default_factory=list)
    came: bool = False

    def __str__(self) -> str:
        last = self.changes[-1] if self.changes else "no change"
        return f"cut at change {len(self.changes)}, {last}" if self.came else f"cut at the end, after {last}"


@contextmanager
def cut(host: Host, volume: Volume, instant: Instant, but: tuple[str, ...] = ()) -> Iterator[Told]:
    """Cut a host off at the n-th change on its disk while the block runs; at its end when there were not so many.

    Args:
        host: Which; it is down when the block has ended.
        volume: Whose changes count.
        instant: When and how.
        but: Beginnings of the names of files that do not count.
    """
    told, is_over, changes = Told(), threading.Event(), Changes(volume, but)

    def look() -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # of this thread: the cut comes at once under load
        while not told.came and not is_over.is_set():
            told.changes += changes.next(_LOOK_S)
            if len(told.changes) >= instant.change:
                told.came = True
                host.kill()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield told
    finally:
        is_over.set()
        thread.join()
        changes.close()
        if host.is_up:
            host.kill()
        if instant.is_power:
            for disk in host.volumes.values():
                disk.cut()


@contextmanager
def recorded(volume: Volume, but: tuple[str, ...] = ()) -> Iterator[Told]:
    """Note the changes on a disk while the block runs."""
    told, is_over, changes = Told(), threading.Event(), Changes(volume, but)

    def look() -> None:
        while not is_over.is_set():
            told.changes += changes.next(_LOOK_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield told
    finally:
        is_over.set()
        thread.join()
        changes.close()
