"""Room kept for what must still be stored when the disk is full.

SQLite on a disk without a byte left cannot even open a file: its log and its index file are made anew. So a reserve
lies beside each database, given up when there is no room and taken again when there is.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vedette.agent.domain.errors import DiskFull

RESERVE_BYTES = 1024 * 1024
"""Enough for SQLite's log and index of some hundred small transactions."""
_SHM_BYTES = 32 * 1024
"""Of SQLite's index file, which every opening makes anew."""

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Reserve:
    """The reserve of one database file."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + ".reserve")

    @property
    def is_there(self) -> bool:
        """Whether it is there to be given up."""
        return self._path.is_file()

    def take(self) -> None:
        """Keep the room if the disk has twice as much: it is not taken back from what it was given up for."""
        if not self._database.exists():  # in memory, or on a disk that is not mounted
            return
        if free_bytes(self._path.parent) < 2 * RESERVE_BYTES:
            return
        try:
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as exc:
            logger.warning("no reserve for a full disk: %s: %s", self._path, exc.strerror)
            self.give()

    def give(self) -> bool:
        """Give the room up; return whether there was any."""
        with suppress(OSError):
            self._path.unlink()
            return True
        return False


class _Keeper(Protocol):
    """Who has a reserve."""

    @property
    def reserve(self) -> Reserve: ...


K = TypeVar("K", bound=_Keeper)


def again_when_full(store: Callable[Concatenate[K, P], T]) -> Callable[Concatenate[K, P], T]:
    """Run a method that is one transaction once more when the disk was full and giving the reserve up made room."""

    def wrapped(self: K, /, *args: P.args, **kwargs: P.kwargs) -> T:
        had_reserve = self.reserve.is_there
        try:
            done = store(self, *args, **kwargs)
        except DiskFull:
            if not self.reserve.give():
                raise
            return store(self, *args, **kwargs)
        if not had_reserve:
            self.reserve.take()
        return done

    return update_wrapper(wrapped, store)


def is_disk_full(exc: sqlite3.Error, folder: Path) -> bool:
    """Return whether an error means a full disk; where SQLite grows its index file it says "I/O error"."""
    code = getattr(exc, "sqlite_errorcode", 0)
    if code & 0xFF != sqlite3.SQLITE_IOERR:
        return code == sqlite3.SQLITE_FULL
    return free_bytes(folder) < _SHM_BYTES


def free_bytes(folder: Path) -> int:
    """Return how much room a disk has."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
