"""Copies of a database that others go on writing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from vedette.controller.domain.disk import disk_full
from vedette.controller.domain.errors import ControllerError, StoreFailed

_PAGES_AT_ONCE = 1024


def database_bytes(path: Path) -> int:
    """Return how large a copy of a database will be.

    Raises:
        StoreFailed: It cannot be read.
    """
    try:
        with closing(_reader(path)) as source:
            pages, page_bytes = (source.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
            return int(pages) * int(page_bytes)
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        raise _typed(path, exc) from exc


def copy_database(path: Path, target: Path, told: Callable[[float], None]) -> None:
    """Copy a database as it is at one instant into a file of its own; a server may go on writing meanwhile.

    Source: https://www.sqlite.org/backup.html. The read transaction pins the instant: without it every commit of
    another process would start the copy over.

    Args:
        path: The database.
        target: A file that does not exist yet; left behind, not whole, when this fails.
        told: Told of the fraction that is done.

    Raises:
        StoreFailed: It cannot be read.
        DiskFull: There is no room for the copy.
    """
    target.touch(mode=0o600)
    try:
        with closing(_reader(path)) as source, closing(sqlite3.connect(target, isolation_level=None)) as copy:
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            source.backup(
                copy, pages=_PAGES_AT_ONCE, progress=lambda _, left, total: told(1 - left / total if total else 1.0)
            )
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing of it beside
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        raise _typed(target, exc) from exc


def settle(path: Path) -> None:
    """Make a database that nobody has open one file, with no log beside it.

    Raises:
        StoreFailed: It cannot be written.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        raise _typed(path, exc) from exc


def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0, isolation_level=None)


def _typed(path: Path, exc: Exception) -> ControllerError:
    if getattr(exc, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        return disk_full(f"{path}: {exc}")
    return StoreFailed("store-failed", "the controller's database cannot be copied", f"{path}: {exc}")
