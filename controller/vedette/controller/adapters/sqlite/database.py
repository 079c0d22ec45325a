"""The controller's one SQLite database: its connection, its thread, its migrations.

Rules: one connection; one transaction per fact; WAL with ``synchronous=FULL``, so what was answered survives a power
cut; nothing of ``sqlite3`` leaves this package. A store is a plain synchronous class over :meth:`Database.transaction`;
asynchronous callers run its methods with :meth:`Database.run`, which keeps the event loop free.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from vedette.controller.domain.disk import disk_full, typed_os_error
from vedette.controller.domain.errors import ControllerError, StoreFailed

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_SHM_BYTES = 32 * 1024
"""Of SQLite's index file, which every opening makes anew."""
_MIGRATIONS_TABLE = "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied TEXT NOT NULL)"


@dataclass(frozen=True)
class Migration:
    """A named step of the schema. ``apply`` must not commit: its record is written in the same transaction."""

    name: str
    apply: Callable[[sqlite3.Connection], None]


def script(name: str, text: str) -> Migration:
    """Return a migration that executes the statements of ``text``, one by one.

    ``executescript`` would commit first and so break the rule of :class:`Migration`.
    """
    return Migration(name, partial(_execute_all, text=text))


def _execute_all(connection: sqlite3.Connection, *, text: str) -> None:
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            connection.execute(pending)
            pending = ""
    if pending.strip():
        raise ValueError(f"migration ends inside a statement: {pending.strip()[:80]!r}")


class Database:
    """One SQLite file.

    Usable from any thread; transactions of several threads wait for each other. :meth:`run` uses one thread of its
    own, so that the order in which coroutines ask is the order in which their transactions happen.

    Args:
        path: The file; made with mode 0600 when absent.
        busy_s: How long to wait for another process (``check``, ``backup``) that holds the write lock.
        max_pages: The most pages the file may have, 4096 bytes each; no limit when None.

    Raises:
        StoreFailed: The file cannot be opened or is not a database.
        DiskFull: There is no room to open it.
    """

    def __init__(self, path: Path, *, busy_s: float = 10.0, max_pages: int | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._owner: int | None = None
        self.failures: Counter[str] = Counter()  # by code, since this object was made
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        with self._translated():
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            try:
                self._configure(max_pages)
            except BaseException:
                self._connection.close()
                raise

    def _configure(self, max_pages: int | None) -> None:
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        # FULL, not NORMAL: in WAL mode NORMAL may lose the last commits at a power cut, after they were acknowledged.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if max_pages is not None:
            self._connection.execute(f"PRAGMA max_page_count = {int(max_pages)}")
        self._connection.execute(_MIGRATIONS_TABLE)

    def migrate(self, migrations: Sequence[Migration]) -> None:
        """Apply, in order, each migration that is not recorded yet, each in a transaction of its own."""
        for migration in migrations:
            with self.transaction() as connection:
                known = connection.execute("SELECT 1 FROM migrations WHERE name = ?", (migration.name,)).fetchone()
                if known is None:
                    logger.info("migrating database: %s", migration.name)
                    migration.apply(connection)
                    at = datetime.now(UTC).isoformat()
                    connection.execute("INSERT INTO migrations VALUES (?, ?)", (migration.name, at))

    def applied_migrations(self) -> tuple[str, ...]:
        """Return the recorded migrations, in the order in which they were applied."""
        with self.transaction() as connection:
            rows = connection.execute("SELECT name FROM migrations ORDER BY applied, name").fetchall()
        return tuple(row["name"] for row in rows)

    def make_durable(self) -> None:
        """Sync what can be read now, before anything is done because of it.

        A process that was killed while it committed leaves the transaction in the kernel's memory: this one reads it,
        a power cut still loses it.

        Raises:
            DiskFull: There is no room.
            StoreFailed: SQLite failed otherwise.
        """
        with self._lock, self._translated():
            self._connection.execute(
                "PRAGMA wal_checkpoint(PASSIVE)"
            ).fetchone()  # syncs the log first, waits for nobody

    def unknown_migrations(self, migrations: Sequence[Migration]) -> tuple[str, ...]:
        """Return recorded migrations that are not among ``migrations``: a newer controller wrote this file."""
        known = {migration.name for migration in migrations}
        return tuple(name for name in self.applied_migrations() if name not in known)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold a write transaction: committed when the block ends, rolled back when it raises.

        Rows come as :class:`sqlite3.Row`.

        Raises:
            RuntimeError: This thread is already inside a transaction. Pass the connection on instead.
            DiskFull: There is no room to write.
            StoreFailed: SQLite failed otherwise.
        """
        me = threading.get_ident()
        if self._owner == me:
            raise RuntimeError("a transaction is already open in this thread; pass its connection on")
        with self._lock, self._translated():
            self._owner = me
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    self._roll_back()
                    raise
            finally:
                self._owner = None

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite rolls back by itself on some errors, a full disk among them
            self._connection.execute("ROLLBACK")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run synchronous store work in the database's thread and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *args, **kwargs))

    def damage(self) -> str | None:
        """Return what SQLite's own integrity check and the foreign keys find wrong, or None.

        Only reads: a server in another process goes on writing meanwhile.
        """
        with self._lock, self._translated():
            found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                return str(found)
            orphan = self._connection.execute("PRAGMA foreign_key_check").fetchone()
        return f"a row of {orphan[0]} refers to a missing row of {orphan[2]}" if orphan is not None else None

    def close(self) -> None:
        """Finish what was asked for and close the file. Closing twice is harmless."""
        self._executor.shutdown(wait=True)
        with self._lock:
            self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # the second where SQLite's words quote a damaged schema
            error = self._typed(exc)
            self.failures[error.code] += 1
            raise error from exc
        except OSError as exc:
            raise typed_os_error(exc, self.path) from exc

    def _is_full(self, exc: Exception) -> bool:
        """Return whether an error means a full disk; where SQLite grows its index file it says "I/O error"."""
        code = getattr(exc, "sqlite_errorcode", 0)
        if code & 0xFF != sqlite3.SQLITE_IOERR:
            return bool(code == sqlite3.SQLITE_FULL)
        return shutil.disk_usage(self.path.parent).free < _SHM_BYTES

    def _typed(self, exc: Exception) -> ControllerError:
        if self._is_full(exc):
            return disk_full(f"database {self.path}: {exc}")
        return StoreFailed(
            "store-failed",
            "the controller's database failed",
            f"{self.path}: {getattr(exc, 'sqlite_errorname', type(exc).__name__)}: {exc}",
            "vedette-controller check --config FILE examines it",
        )
