"""A SQLite database in memory, for as long as the disk it lies on takes no writes.

Rules: an image is the whole database as one string of bytes, what its log holds included; reading one from a disk that
is read-only changes nothing there. Measured on ext4 of Linux 6.18: after an error that makes it read-only
(``errors=remount-ro``) a write gives SQLITE_IOERR_WRITE and reads go on; after one that shuts it down the first write
gives SQLITE_IOERR_WRITE and every read from then on SQLITE_CORRUPT. ``statvfs`` shows neither.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_REFUSALS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_LATER_REFUSALS = (*_REFUSALS, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ROLLBACK_FORMAT = b"\x01\x01"  # read and write version, https://www.sqlite.org/fileformat2.html section 1.3


def is_refusal(exc: sqlite3.Error, *, was_open: bool) -> bool:
    """Return whether an error means that the disk takes no writes, or gives none of what it took.

    Args:
        exc: The error; that the disk is full was asked before.
        was_open: Whether the database was read well before; then damage is the disk's, too.
    """
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    return code in (_LATER_REFUSALS if was_open else _REFUSALS)


def image_of(connection: sqlite3.Connection) -> bytes:
    """Return the database, with what the open transaction has changed.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    image = connection.serialize()
    # A database in memory has no log, and one that says so in its header cannot be opened.
    return image[:18] + _ROLLBACK_FORMAT + image[20:] if image else b""


def opened(image: bytes) -> sqlite3.Connection:
    """Return a connection to a database in memory that begins as an image."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    if image:
        connection.deserialize(image)
    return connection


def image_on_disk(path: Path) -> bytes:
    """Return the database of a file on a disk that takes no writes, with what its log holds; b"" when there is none.

    SQLite cannot open a database with a log where it may not write, so it is copied to where it may.

    Raises:
        OSError: It cannot be read, or there is no place for the copy.
        sqlite3.Error: It is no database.
    """
    if not path.exists():
        return b""
    with copied(path) as copy, closing(sqlite3.connect(copy)) as connection:
        return image_of(connection)


@contextmanager
def copied(path: Path) -> Iterator[Path]:
    """Lend a copy of a database with its log: SQLite changes even what it only reads.

    Raises:
        OSError: It cannot be read, or there is no place for the copy.
    """
    with tempfile.TemporaryDirectory(prefix="vedette-state-", dir=os.environ.get("RUNTIME_DIRECTORY")) as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        log = path.with_name(path.name + "-wal")
        if log.exists():
            shutil.copyfile(log, copy.with_name(log.name))
        yield copy
