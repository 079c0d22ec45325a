"""What has still to be reported: durable, bounded in bytes, acknowledged batch by batch.

Rules: a batch is named by (boot epoch, sequence) once and for ever, from 1 without holes within a boot epoch, so that
the controller counts it exactly once however often it is sent. Over budget batches are merged: minutes to five minutes,
to hours, to days; no count is lost by that. A merged batch has the last one's name and stands for all from its first
sequence on. What was ever handed out to be sent is never merged, for it may have been counted: that is stored before it
is handed out. When nothing merges any more, the oldest becomes a gap of the same name, so that the loss itself arrives;
a batch that is being sent is left alone.

It has a file of its own: a damaged one costs telemetry, never the agent's state, and is set aside; one that cannot be
opened is tried again at every use, while the agent serves. Telemetry never takes a disk's last bytes: a batch for which
there is no room is lost and told as a gap. What waits can still be sent and deleted then, for which a reserve is kept.
Used from the event loop's thread.

While the disk takes no writes, batches wait in memory under a small budget of their own and are sent from there; what
lies on the disk waits for it. When it takes writes again both are one. Where there is a shelter, a file in a folder in
memory, they wait in that, and the next process finds them; a reboot takes them. What was acknowledged meanwhile may be
sent again, which counts nothing twice.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from google.protobuf.message import DecodeError

from vedette.agent.adapters.storage.blobs import storage_error
from vedette.agent.adapters.storage.images import is_refusal
from vedette.agent.adapters.storage.reserve import RESERVE_BYTES, Reserve, again_when_full, free_bytes, is_disk_full
from vedette.agent.adapters.storage.second_copy import kept_aside, set_aside
from vedette.agent.domain.coarsening import Piece, merged, next_run
from vedette.agent.domain.errors import DiskFull, StateError, StateReadOnly
from vedette.wire.convert import BATCH
from vedette.wire.errors import WireError
from vedette.wire.v1 import telemetry_pb2
from vedette.wire.values import Gap, TelemetryBatch, Window

logger = logging.getLogger(__name__)

MEMORY_BYTES = 4 * 1024 * 1024
"""Of all bodies together while they wait in memory: a day of windows of one model, at a minute each."""
MERGED_BYTES = 2 * 1024 * 1024
"""Of a merged batch at most: well within a message."""
_WORTH = 15 / 16  # what gets no smaller stays as it is, for a gap would then cost more windows at once
_MOST_MERGED = 288  # at once; a day of five minutes
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS batches (boot_epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,"
    " gap_from INTEGER, rows INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (boot_epoch, sequence))"
)
_FREE, _ALONE, _SENT = 0, 1, 2
"""How a batch is held: it may merge; it does not get smaller by it; it was handed out and may have been counted."""
# Agents before these columns wrote rows that may have been sent: the defaults say so of their rows.
_ADDED = {
    "first_sequence": "INTEGER",  # of all that it stands for
    "start": "INTEGER",  # of its first window, microseconds since 1970
    "hold": f"INTEGER NOT NULL DEFAULT {_SENT}",
}
_INDEX = (  # of all that a choice needs, so that no body is read for it
    "CREATE INDEX IF NOT EXISTS batches_by_name"
    " ON batches (boot_epoch, sequence, hold, gap_from, first_sequence, start)"
)
_COLUMNS = "boot_epoch, sequence, gap_from, rows, body, first_sequence, start, hold"
_OLDEST = f"SELECT {_COLUMNS} FROM batches"  # noqa: S608 - column names are ours
_ONE = f"{_OLDEST} WHERE boot_epoch = ? AND sequence = ?"
_NEXT_TO_GO = (
    f"{_OLDEST} WHERE (boot_epoch, sequence) != (?, ?) ORDER BY gap_from IS NOT NULL, boot_epoch, sequence LIMIT 1"
)
_MAY_MERGE = (
    "SELECT boot_epoch, first_sequence, sequence, start FROM batches INDEXED BY batches_by_name"
    " WHERE hold = 0 AND gap_from IS NULL ORDER BY boot_epoch, sequence"  # 0 is _FREE
)
_WAITING = (
    "SELECT count(*), sum(coalesce(sequence - first_sequence, 0)), min(start) FROM batches INDEXED BY batches_by_name"
)


@dataclass(frozen=True, slots=True)
class _Stored:
    boot_epoch: int
    sequence: int
    gap_from: int | None  # first sequence of the gap that this batch has become; None while it is whole
    rows: int
    body: bytes
    first_sequence: int | None = None  # of all that it stands for; None of an older agent's: itself
    start: int | None = None  # of its first window, microseconds since 1970; None of an older agent's
    hold: int = _FREE

    @property
    def first(self) -> int:
        return self.gap_from or self.first_sequence or self.sequence


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits.

    Attributes:
        batches: As they will be sent; gaps are some, too.
        merged: Batches that became part of one of these.
        oldest: Start of the oldest window; None when nothing waits, or nobody knows.
    """

    batches: int = 0
    merged: int = 0
    oldest: datetime | None = None


class Spool:
    """The spool of one agent.

    Args:
        path: The database file; a damaged one is set aside and begun anew.
        budget_bytes: Of all bodies together.
        boot_epoch: Of this run; another than any before.
        shelter: Where batches wait while the disk takes no writes; the memory of this process when None.
    """

    def __init__(self, path: Path, budget_bytes: int, boot_epoch: int, *, shelter: Path | None = None) -> None:
        self._path = path
        self._shelter = shelter
        self._budget_bytes = budget_bytes
        self._boot_epoch = boot_epoch
        self._sequence = 0
        self._unstored: Gap | None = None
        self._sending: tuple[int, int] | None = None
        self._unsure_from = (0, 0)  # names from here on may have been sent from memory
        self.batches_dropped = 0
        self.batches_merged = 0  # each became part of a longer one
        self.times_damaged = 0
        self.reserve = Reserve(path)
        self._bytes = 0
        self._connection: sqlite3.Connection | None = None
        self._is_detached = False
        self._had_file = path.exists()
        try:
            self._open()
        except StateReadOnly as exc:
            logger.warning("%s; telemetry waits in memory", exc)
            self._detach()
        except (DiskFull, StateError) as exc:  # the first use says so, too
            logger.debug("%s", exc)
        if shelter is not None and shelter.exists() and not self._is_detached:
            self._detach()
            self._attach()

    @property
    def is_read_only(self) -> bool:
        """Whether batches wait in memory, for the disk took no writes when it was last tried."""
        return self._is_detached

    @property
    def kept_aside(self) -> tuple[Path, ...]:
        """The damaged files that are kept, until somebody deletes them."""
        return kept_aside(self._path)

    @property
    def bytes_waiting(self) -> int:
        """The size of all that waits; of what is in memory while the disk takes no writes."""
        return self._bytes

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._bytes == 0

    def append(self, windows: Sequence[Window]) -> None:
        """Store windows as the next batch.

        Raises:
            DiskFull: There is no room; the batch is lost and told as a gap by the next one.
            StateError: SQLite failed otherwise; the same holds.
        """
        self._sequence += 1
        gaps = (self._unstored,) if self._unstored else ()
        batch = TelemetryBatch(boot_epoch=self._boot_epoch, sequence=self._sequence, windows=tuple(windows), gaps=gaps)
        rows, body = sum(window.rows for window in windows), _encoded(batch)
        self._attach()
        try:
            start = min((window.start for window in windows), default=None)
            at = None if start is None else _microseconds(start)
            hold = _ALONE if at is None else _FREE
            self._keep(_Stored(self._boot_epoch, self._sequence, None, rows, body, self._sequence, at, hold))
        except (DiskFull, StateError):
            self._lose(rows)
            raise
        self._unstored = None
        self._shrink()

    def _keep(self, stored: _Stored) -> None:
        """Store a batch, in memory where the disk takes no writes."""
        if not self._is_detached:
            _check_room(self._path, len(stored.body))
        try:
            try:
                self._add(stored)
            except _Damaged:
                self._add(stored)  # opens it once more, or begins anew
        except StateReadOnly as exc:
            logger.warning("%s; telemetry waits in memory", exc)
            self._detach()
            self._unsure_from = (stored.boot_epoch, stored.sequence)
            self._add(stored)

    def _add(self, stored: _Stored) -> None:
        with self._transaction() as connection:
            self._put(connection, stored)

    def _shrink(self) -> None:
        """Bring the spool within its budget: in a transaction of its own, for what failed is not known not to be done.

        A batch that was stored and merged at once might be on the disk, merged, and in memory under its own name.
        """
        try:
            with self._transaction() as connection:
                self._trim(connection)
        except (DiskFull, StateError) as exc:
            logger.debug("the spool is over its budget until the next batch: %s", exc)

    @again_when_full
    def oldest(self) -> TelemetryBatch | None:
        """Return the batch to send next and hold it until it is acknowledged or let go; None when nothing waits.

        Raises:
            StateError, DiskFull: The file failed.
        """
        with self._transaction() as connection:
            row = connection.execute(f"{_OLDEST} ORDER BY boot_epoch, sequence LIMIT 1").fetchone()
            if row is None:
                return None
            stored = _Stored(*row)
            batch = _decoded(stored)
            if batch is None:  # a flipped bit: tell it as a gap
                stored = self._drop(connection, stored, "damaged on disk")
                batch = BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(stored.body))
            self._hold(connection, stored, _SENT)
        self._sending = (stored.boot_epoch, stored.sequence)
        return batch

    @again_when_full
    def acknowledge(self, boot_epoch: int, sequence: int) -> None:
        """Delete a batch that the controller has committed."""
        with self._transaction() as connection:
            self._remove(connection, boot_epoch, sequence)
        self._sending = None

    @again_when_full
    def refuse(self, boot_epoch: int, sequence: int, reason: str) -> None:
        """Give up a batch that the controller will never take: it becomes a gap; a refused gap is deleted."""
        with self._transaction() as connection:
            row = connection.execute(_ONE, (boot_epoch, sequence)).fetchone()
            if row is not None and _Stored(*row).gap_from is None:
                self._drop(connection, _Stored(*row), reason)
            elif row is not None:
                self._remove(connection, boot_epoch, sequence)
        self._sending = None

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def _detach(self) -> None:
        """Let batches wait in memory."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection, self._bytes = self._sheltered()
        self._is_detached = True

    def _sheltered(self) -> tuple[sqlite3.Connection, int]:
        """Return what holds batches beside the disk, and how many bytes wait in it."""
        if self._shelter is not None:
            try:
                return _connect(self._shelter)
            except (DiskFull, StateError) as exc:
                logger.warning("%s; telemetry waits in the memory of this process", exc)
        return _made(":memory:"), 0

    def _leave_shelter(self) -> None:
        if self._shelter is not None:
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    self._shelter.with_name(self._shelter.name + suffix).unlink(missing_ok=True)

    def _attach(self) -> None:
        """Bring what waits in memory back to the disk, if it takes writes again."""
        memory = self._connection
        if not self._is_detached or memory is None or (self._had_file and not self._path.exists()):
            return  # a file that is gone lies on a disk that is not mounted
        waiting = [_Stored(*row) for row in memory.execute(_OLDEST).fetchall()]
        in_memory, self._connection, self._is_detached = self._bytes, None, False
        try:
            with self._transaction() as connection:
                for stored in waiting:
                    self._remove(connection, stored.boot_epoch, stored.sequence, stored.first)  # a gap's may be whole
                    self._put(connection, stored)
                query = "UPDATE batches SET hold = ? WHERE (boot_epoch, sequence) >= (?, ?)"
                connection.execute(query, (_SENT, *self._unsure_from))
        except (DiskFull, StateError) as exc:
            logger.debug("telemetry stays in memory: %s", exc)
            if self._connection is not None:
                self._connection.close()
            self._connection, self._bytes, self._is_detached = memory, in_memory, True
        else:
            memory.close()
            self._leave_shelter()

    def waiting(self) -> Waiting:
        """Return what waits; nothing when the file cannot be read now."""
        with suppress(DiskFull, StateError), self._transaction() as connection:
            batches, merged_away, oldest = connection.execute(_WAITING).fetchone()
            return Waiting(batches, merged_away or 0, None if oldest is None else _time_at(oldest))
        return Waiting()

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Merge until the budget holds; else the oldest whole batches become gaps; then the oldest gaps go."""
        while self._bytes > (min(MEMORY_BYTES, self._budget_bytes) if self._is_detached else self._budget_bytes):
            if self._coarsen(connection):
                continue
            row = connection.execute(_NEXT_TO_GO, self._sending or (0, 0)).fetchone()
            if row is None:
                return
            stored = _Stored(*row)
            if stored.gap_from is None:
                self._drop(connection, stored, "spool full")
            else:
                self._remove(connection, stored.boot_epoch, stored.sequence)

    def _coarsen(self, connection: sqlite3.Connection) -> bool:
        """Make one batch of the neighbours that are due, or find out that they do not merge; False when none are."""
        if self._is_detached:
            return False
        (newest,) = connection.execute("SELECT max(start) FROM batches INDEXED BY batches_by_name").fetchone()
        run = next_run((Piece(*row) for row in connection.execute(_MAY_MERGE)), newest or 0)[:_MOST_MERGED]
        if not run:
            return False
        parts = [self._one(connection, piece) for piece in run]
        bodies = [_decoded(part) for part in parts]
        for part, batch in zip(parts, bodies, strict=True):
            if batch is None:
                self._drop(connection, part, "damaged on disk")
        if None in bodies:
            return True
        self._merge(connection, parts, [batch for batch in bodies if batch is not None])
        return True

    def _one(self, connection: sqlite3.Connection, piece: Piece) -> _Stored:
        return _Stored(*connection.execute(_ONE, (piece.boot_epoch, piece.sequence)).fetchone())

    def _merge(self, connection: sqlite3.Connection, parts: list[_Stored], batches: list[TelemetryBatch]) -> None:
        """Replace neighbours by their sum; by those of their halves where that gains nothing or is too large."""
        if len(parts) == 1:
            self._hold(connection, parts[0], _ALONE)
            return
        last = parts[-1]
        body = _encoded(merged(batches))
        rows, start = sum(part.rows for part in parts), min(part.start or 0 for part in parts)
        made = _Stored(last.boot_epoch, last.sequence, None, rows, body, parts[0].first, start)
        before = sum(len(part.body) for part in parts)
        if len(body) > min(MERGED_BYTES, before * _WORTH) or _decoded(made) is None:
            half = len(parts) // 2
            self._merge(connection, parts[:half], batches[:half])
            self._merge(connection, parts[half:], batches[half:])
            return
        for part in parts:
            self._remove(connection, part.boot_epoch, part.sequence)
        self._put(connection, made)
        self.batches_merged += len(parts) - 1

    def _hold(self, connection: sqlite3.Connection, stored: _Stored, hold: int) -> None:
        """Have a batch never be merged any more."""
        if stored.hold < hold:
            query = "UPDATE batches SET hold = ? WHERE boot_epoch = ? AND sequence = ?"
            connection.execute(query, (hold, stored.boot_epoch, stored.sequence))

    def _drop(self, connection: sqlite3.Connection, stored: _Stored, reason: str) -> _Stored:
        """Replace a batch by a gap of the same name, joined with the gap before it.

        A gap that may have arrived is not joined, nor is another to it: its rows would be told as lost twice.
        """
        self.batches_dropped += stored.sequence - stored.first + 1
        first, rows = stored.first, stored.rows
        before = connection.execute(
            "SELECT gap_from, rows FROM batches"
            " WHERE boot_epoch = ? AND sequence = ? AND gap_from IS NOT NULL AND hold != ?",
            (stored.boot_epoch, first - 1, _SENT),
        ).fetchone()
        if before is not None and stored.hold != _SENT:
            self._remove(connection, stored.boot_epoch, first - 1)
            first, rows = before[0], rows + before[1]
        gap = Gap(first_sequence=first, last_sequence=stored.sequence, rows=rows, reason=reason)
        batch = TelemetryBatch(boot_epoch=stored.boot_epoch, sequence=stored.sequence, gaps=(gap,))
        made = replace(stored, gap_from=first, rows=rows, body=_encoded(batch), first_sequence=stored.sequence)
        self._remove(connection, stored.boot_epoch, stored.sequence)
        self._put(connection, made)
        return made

    def _put(self, connection: sqlite3.Connection, stored: _Stored) -> None:
        # The columns are named so that a file to which a newer agent added some is used, not taken for damaged.
        query = f"INSERT INTO batches ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - ours
        values = astuple(stored)
        connection.execute(query, values)
        self._bytes += len(stored.body)

    def _remove(self, connection: sqlite3.Connection, boot_epoch: int, sequence: int, first: int | None = None) -> None:
        """Delete a batch, or all from a first one to it."""
        query = "DELETE FROM batches WHERE boot_epoch = ? AND sequence BETWEEN ? AND ? RETURNING length(body)"
        for (size,) in connection.execute(query, (boot_epoch, first or sequence, sequence)).fetchall():
            self._bytes -= size

    def _lose(self, rows: int) -> None:
        first = self._unstored.first_sequence if self._unstored else self._sequence
        rows += self._unstored.rows if self._unstored else 0
        self._unstored = Gap(first_sequence=first, last_sequence=self._sequence, rows=rows, reason="disk failed")
        self.batches_dropped += 1

    @again_when_full
    def _open(self) -> sqlite3.Connection:
        """Open the file if that was not done yet; a damaged one is set aside."""
        if self._connection is None:
            try:
                self._connection, self._bytes = _connect(self._path)
            except _Damaged as exc:
                logger.warning("%s; telemetry that waited in it is lost", exc)
                self._clear_away()
                self._connection, self._bytes = _connect(self._path)
            self._had_file = True
        return self._connection

    def _clear_away(self) -> None:
        try:
            set_aside(self._path)
        except OSError as exc:
            raise storage_error(exc, self._path) from exc
        self.times_damaged += 1

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._open()
        before = self._bytes
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                self._bytes = before
                if connection.in_transaction:  # SQLite rolls back by itself on a full disk
                    connection.execute("ROLLBACK")
                raise
        except _FAILURES as exc:
            error = _translated(exc, self._path)
            if isinstance(error, _Damaged):  # the next use opens it anew, which mends or replaces it
                connection.close()
                self._connection = None
            raise error from exc


def _connect(path: Path) -> tuple[sqlite3.Connection, int]:
    """Return an open spool and how many bytes wait in it; reading them all finds most damage."""
    try:
        path.touch(mode=0o600, exist_ok=True)
        connection = _made(str(path))
        try:
            connection.execute(f"{_OLDEST} LIMIT 1").fetchone()
            (waiting,) = connection.execute("SELECT coalesce(sum(length(body)), 0) FROM batches").fetchone()
        except _FAILURES:
            connection.close()
            raise
    except _FAILURES as exc:
        raise _translated(exc, path) from exc
    except OSError as exc:
        raise storage_error(exc, path) from exc
    return connection, int(waiting)


def _made(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=5.0, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: an acknowledged batch must stay deleted and a numbered one must stay stored across a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        # Small, so that a log which only takes deletions fits into the reserve and is used again from its start.
        connection.execute("PRAGMA wal_autocheckpoint = 64")
        connection.execute(_SCHEMA)
        there = {row[1] for row in connection.execute("PRAGMA table_info(batches)")}
        for column in _ADDED.keys() - there:
            connection.execute(f"ALTER TABLE batches ADD COLUMN {column} {_ADDED[column]}")
        connection.execute(_INDEX)
    except _FAILURES:
        connection.close()
        raise
    return connection


def _check_room(path: Path, needed: int) -> None:
    free = free_bytes(path.parent)
    if free < needed + RESERVE_BYTES:
        raise DiskFull(
            f"no room for telemetry in {path}: {free} bytes free, {needed} and {RESERVE_BYTES} to spare wanted"
        )


class _Damaged(StateError):
    """The file is no spool."""


_FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""What sqlite3 raises; the second where SQLite's own words quote a damaged schema or text."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: other tables or columns
_UNREADABLE = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


def _translated(exc: sqlite3.Error | UnicodeDecodeError, path: Path) -> DiskFull | StateError:
    if isinstance(exc, UnicodeDecodeError):
        return _Damaged(f"the spool {path} failed: {exc}")
    if is_disk_full(exc, path.parent):
        return DiskFull(f"no room for telemetry in {path}: {exc}")
    if getattr(exc, "sqlite_errorcode", 0) in _UNREADABLE:  # of a disk that takes no writes it cannot be set aside
        return _Damaged(f"the spool {path} cannot be read: {exc}")
    if is_refusal(exc, was_open=False):
        return StateReadOnly(f"the disk of the spool {path} takes no writes: {exc}")
    is_damaged = getattr(exc, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
    kind = _Damaged if is_damaged else StateError
    return kind(f"the spool {path} failed: {getattr(exc, 'sqlite_errorname', '')}: {exc}")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _time_at(count: int) -> datetime:
    return _EPOCH + timedelta(microseconds=count)


def _encoded(batch: TelemetryBatch) -> bytes:
    return BATCH.to_wire(batch).SerializeToString()


def _decoded(stored: _Stored) -> TelemetryBatch | None:
    try:
        batch = BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(stored.body))
    except (DecodeError, WireError):
        return None
    return batch if (batch.boot_epoch, batch.sequence) == (stored.boot_epoch, stored.sequence) else None


_MARKED_AT_ONCE = 16  # rows, some hundred kilobytes: the running agent's own writes wait for no more than that


@contextmanager
def handed_out(path: Path) -> Iterator[Callable[[], Iterator[bytes]]]:
    """Hold what waits on the disk for a file, which may be counted long before anything is acknowledged.

    May be used beside a running agent. What is handed out is marked as what was sent is, so that it keeps its name and
    what is in it; nothing is deleted. The value is a function that yields the bodies by name, each time the same.

    Raises:
        DiskFull: There is no room for the marks.
        StateReadOnly, StateError: The file cannot be opened, written or read.
    """
    with _translating(path):
        connection = _made(str(path))
        try:
            _mark_all(connection)
            connection.execute("BEGIN")  # the first reading fixes what all of them see
            query = "SELECT body FROM batches WHERE hold = ? ORDER BY boot_epoch, sequence"
            yield lambda: (body for (body,) in connection.execute(query, (_SENT,)))
        finally:
            connection.close()


def _mark_all(connection: sqlite3.Connection) -> None:
    query = "UPDATE batches SET hold = ? WHERE rowid IN (SELECT rowid FROM batches WHERE hold != ? LIMIT ?)"
    while connection.execute(query, (_SENT, _SENT, _MARKED_AT_ONCE)).rowcount:
        pass


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    try:
        yield
    except _FAILURES as exc:
        raise _translated(exc, path) from exc
