"""The agent's durable state: one SQLite file that a power cut leaves either before or after each change.

Rules: WAL with ``synchronous=FULL``, because what is stored is acted on; one transaction per fact; nothing of
``sqlite3`` leaves ``adapters``. A migration is recorded in the transaction it runs in. Other adapters keep their tables
in the same file through :meth:`State.transaction` and bring their own migrations. Used from the event loop's thread
only: a commit takes about a millisecond and happens when something changes, never for a flow or a request.

Beside the file lies a reserve. When the disk is full it is given up, and what was being stored is tried once more, so
that a start, a fallback or a quarantine is still written down; it is taken again when there is room.

A file that cannot be read when the agent starts is set aside, and its second copy takes its place; without one all
begins anew, which is remembered until an assignment is applied: until then nobody knows which blobs are of use.

On a disk that takes no writes the state is read from its image in memory, which is kept as of the last commit, and each
write is refused with :class:`StateReadOnly` until the disk takes writes again; then the image is what lies there. A
start that cannot be counted, or whose count was lost, draws its boot epoch from the upper half of all numbers, 2**62 of
them, instead: telemetry counts once because an epoch never comes twice, and nobody asks which of two is the later.

An upgrade may be taken back, so a newer agent's file must open in an older one: a step only adds tables, or columns
with a default, and every statement names its columns. A step that an older agent cannot live with raises
:data:`FORMAT`; the older one then refuses with :class:`StateNewer` and changes nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vedette.agent.adapters.storage.blobs import storage_error
from vedette.agent.adapters.storage.files import replace_file
from vedette.agent.adapters.storage.images import image_of, image_on_disk, is_refusal, opened
from vedette.agent.adapters.storage.reserve import Reserve, again_when_full, is_disk_full
from vedette.agent.adapters.storage.second_copy import SecondCopy, kept_aside, set_aside
from vedette.agent.domain.advice import EXIT_REFUSED, AdvisedError
from vedette.agent.domain.errors import DiskFull, StateDamaged, StateError, StateReadOnly
from vedette.agent.domain.slots import SlotRecord
from vedette.models.assignment import SlotAssignment
from vedette.models.documents import time_text
from vedette.models.errors import ModelsError
from vedette.wire.values import SlotState

logger = logging.getLogger(__name__)

FORMAT = 1
"""Kept as ``PRAGMA user_version``: the least format a reader must know. Only what breaks older agents raises it."""
_UNCOUNTED_EPOCHS = 2**62  # from here on, up to the most of SQLite and of the protocol, 2**63 - 1
_MOST_BOOTS = 2**32  # counted from a drawn epoch without reaching the end of the numbers
# At a start; 0 is what Python itself says of text that is none. SQLITE_ERROR: a table or a column is missing.
_DAMAGE = (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DROP_UNNAMED_RELEASES = (
    "DELETE FROM releases WHERE digest NOT IN (SELECT json_extract(build, '$.release') FROM"
    " (SELECT active AS build FROM slots UNION SELECT previous FROM slots UNION SELECT candidate FROM slots)"
    " WHERE build IS NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class Migration:
    """A named step of the schema: statements that are run once, in order, in one transaction."""

    name: str
    statements: tuple[str, ...]


MIGRATIONS = (
    Migration(
        "state-1",
        (
            "CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL)",
            "CREATE TABLE slots (slot TEXT PRIMARY KEY, active TEXT, previous TEXT, candidate TEXT,"
            " stage TEXT NOT NULL, saves INTEGER NOT NULL, reason TEXT NOT NULL)",
            "CREATE TABLE releases (digest TEXT PRIMARY KEY, body BLOB NOT NULL)",
            "CREATE TABLE quarantine (build TEXT PRIMARY KEY, reason TEXT NOT NULL, since TEXT NOT NULL)",
            "CREATE TABLE documents (role TEXT PRIMARY KEY, sequence INTEGER NOT NULL, digest TEXT NOT NULL,"
            " assignment BLOB NOT NULL, releases BLOB NOT NULL)",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequence numbers of assignments: four facts, none derived from another, and the highest ever accepted."""

    highest: int = 0
    desired: int = 0
    attempted: int = 0
    failed: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class Documents:
    """A verified assignment and the releases it names, in the signed envelopes they came in."""

    sequence: int
    digest: str  # of the assignment's canonical bytes
    assignment: bytes
    releases: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A build that this appliance will not try again, and why."""

    build: str
    reason: str
    since: datetime


class StateNewer(AdvisedError):
    """The state has a form that this version cannot keep right."""

    code = "state-newer"
    exit_code = EXIT_REFUSED


class State:
    """The state database.

    Args:
        path: The file; made with mode 0600 when absent.
        migrations: Steps of other adapters' tables, run after this module's own.
        max_pages: The most pages of 4096 bytes the file may have; no limit when None.
        mends: Whether a file that is lost or damaged is replaced, or else done without, as the running agent does.
        is_first: Whether no agent ran here before; if one did, a state without a start is one that was lost.

    Raises:
        StateDamaged: The file is no database or is damaged; never when it ``mends``.
        StateNewer: A newer version wrote it in a form that this one does not know.
        StateError: The file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[Migration] = (),
        *,
        max_pages: int | None = None,
        mends: bool = False,
        is_first: bool = True,
    ) -> None:
        self.path = path
        self.reserve = Reserve(path)
        self.damage = ""  # what was found at this start and what it cost, for people
        self._copy = SecondCopy(path)
        self._is_copy_due = True
        self._mends = mends
        self._is_first = is_first
        self._is_file_damaged = False  # the file that lies there; it is set aside as soon as the disk allows it
        self._migrations = (*MIGRATIONS, *migrations)
        self._max_pages = max_pages
        self._image: bytes | None = None  # as of the last commit
        self._epoch = 0
        self._is_detached = False
        self._had_file = path.exists()
        try:
            if mends and not (self._had_file and path.stat().st_size) and self._copy.path.exists():
                raise StateDamaged(f"the agent's state {path} is gone")
            self._connection = self._begun()
        except StateDamaged as exc:
            if not mends:
                raise
            self._connection = self._begun_from_copy(exc)
        self._was_lost = not is_first and self._read_fact("boot_epoch", None) is None

    def _begun(self) -> sqlite3.Connection:
        """Return the database of the disk, looked through; in memory where the disk takes no writes or has no room."""
        try:
            connection = self._open()
            self._had_file = True
        except (StateReadOnly, DiskFull) as exc:
            logger.warning("%s; the last good state is used", exc)
            return self._in_memory(self._image_on_disk())
        try:
            self._image = self._looked_through(connection)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, StateReadOnly):
                raise self._unreadable(exc) from exc
            raise
        return connection

    def _image_on_disk(self) -> bytes:
        try:
            with self._translated():
                return image_on_disk(self.path)
        except StateReadOnly as exc:  # it was only read, so reading is what fails
            raise self._unreadable(exc) from exc

    def _unreadable(self, exc: StateReadOnly) -> StateDamaged:
        return StateDamaged(f"the agent's state {self.path} cannot be read: {exc.__cause__ or exc}")

    def _begun_from_copy(self, damaged: StateDamaged) -> sqlite3.Connection:
        """Return the database of the second copy, or an empty one; on the disk, if it takes writes."""
        image = self._copy.read()
        self.damage = f"{damaged}; " + (_LOST if image is None else "its second copy took its place, nothing is lost")
        logger.error("%s", self.damage)
        try:
            return self._replaced(image or b"")
        except (StateReadOnly, StateDamaged, DiskFull) as exc:  # damaged again: what is written there is not read
            logger.warning("%s; the state is kept in memory", exc)
        self._is_file_damaged = True
        try:
            return self._in_memory(image or b"")
        except StateDamaged as exc:  # a copy that is whole and yet no state
            logger.warning("%s", exc)
            return self._in_memory(b"")

    @again_when_full
    def _replaced(self, image: bytes) -> sqlite3.Connection:
        """Set the damaged file aside and begin with an image in its place."""
        with self._translated():
            _check_writable(self.path)
            set_aside(self.path)
            if image:
                replace_file(self.path, image, 0o600)
        try:
            return self._begun()
        except StateDamaged:
            if not image:
                raise
            return self._replaced(b"")

    def _looked_through(self, connection: sqlite3.Connection) -> bytes:
        """Return the image of a database after all of it was read.

        Raises:
            StateDamaged: Some of it is not what was stored.
        """
        self._connection = connection
        with self._translated():
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise StateDamaged(f"the agent's state {self.path} is damaged: {found}")
            image = image_of(connection)
        try:
            floor = self.time_floor
            _ = (self.slots, self.quarantine, self.sequences, self.desired, self.applied, self.boot_epoch)
        except (ValueError, TypeError, StateError) as exc:
            raise StateDamaged(f"the agent's state {self.path} is damaged: {exc}") from exc
        if floor is not None and floor.tzinfo is None:
            raise StateDamaged(f"the agent's state {self.path} is damaged: its time floor is {floor}")
        return image

    @again_when_full
    def _open(self) -> sqlite3.Connection:
        with self._translated():
            _check_writable(self.path)
            self.path.touch(mode=0o600, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None)
            try:
                _configure(connection, self._max_pages)
                self._migrate(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        for migration in self._migrations:
            _migrate(connection, migration)

    # A disk that takes no writes

    @property
    def is_read_only(self) -> bool:
        """Whether the disk took no writes when it was last tried."""
        return self._is_detached

    def look(self) -> bool:
        """Try a disk that took no writes; return whether it takes some. Raises nothing."""
        try:
            self._attach()
            if self._is_copy_due and self._image is not None:
                self._keep_copy(self._image)
            if os.statvfs(self.path.parent).f_flag & os.ST_RDONLY:
                self._detach()
        except (OSError, DiskFull, StateError) as exc:
            logger.debug("%s", exc)
        return not self._is_detached

    @property
    def kept_aside(self) -> tuple[Path, ...]:
        """The damaged files that are kept, until somebody deletes them."""
        return kept_aside(self.path)

    def _in_memory(self, image: bytes) -> sqlite3.Connection:
        """Return a database in memory that begins as an image; an empty one when that is empty."""
        with self._translated():
            connection = opened(image)
            connection.row_factory = sqlite3.Row
            _checked_format(connection)
            connection.execute(_MIGRATIONS_TABLE)
            self._migrate(connection)
        self._image = self._looked_through(connection)
        self._is_detached = True
        return connection

    def _detach(self) -> None:
        """Go on with the image in memory."""
        if self._image is None or self._is_detached:
            return
        with suppress(sqlite3.Error):
            self._connection.close()
        self._connection = opened(self._image)
        self._connection.row_factory = sqlite3.Row
        self._is_detached = True

    def _attach(self) -> None:
        """Go back to the disk if it was left.

        Raises:
            StateReadOnly: It takes no writes yet.
            StateError, DiskFull: It fails otherwise.
        """
        if not self._is_detached:
            return
        if self._had_file and not self.path.exists():
            # A mount point without its disk takes writes, too, and would hide them when the disk comes back.
            raise StateReadOnly(f"{self.path} is gone: mount its disk, or restart the agent to begin on an empty one")
        if self._is_file_damaged:
            with self._translated():
                _check_writable(self.path)
                set_aside(self.path)
            self._is_file_damaged = False
        connection = self._open()
        try:
            with self._translated():
                if image_of(connection) != self._image:  # a file system that was mended may have lost the last commits
                    self._connection.backup(connection)
                    _configure(connection, self._max_pages)
        except BaseException:
            connection.close()
            raise
        self._connection.close()
        self._connection, self._is_detached, self._had_file = connection, False, True
        logger.warning("the disk of %s takes writes again", self.path)

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold a write transaction: committed when the block ends, rolled back when it raises. Not nestable.

        Raises:
            DiskFull: There is no room to write.
            StateReadOnly: The disk takes no writes.
            StateError: SQLite failed otherwise.
        """
        self._attach()
        try:
            with self._translated(), _transaction(self._connection) as connection:
                yield connection
                image = image_of(connection)
                self._keep_copy(image)
        except StateReadOnly:
            self._detach()
            raise
        self._image = image

    def _keep_copy(self, image: bytes) -> None:
        """Write the second copy; one that cannot be written now is due, and holds up nothing."""
        try:
            self._copy.write(image)
            self._is_copy_due = False
        except (DiskFull, OSError) as exc:
            log = logger.debug if self._is_copy_due else logger.warning
            log("the second copy of the state is not written: %s", exc)
            self._is_copy_due = True

    def begin_boot(self) -> int:
        """Return the boot epoch of one more start of the agent; it never repeats.

        It is counted from 1; where that cannot be stored, or the count was lost, it is drawn from 2**62 numbers that
        no count reaches, and in the second case counted on from there.
        """
        try:
            self._epoch = self._count_boot()
        except (StateReadOnly, DiskFull):
            self._epoch = _drawn_epoch()
        return self._epoch

    @again_when_full
    def _count_boot(self) -> int:
        with self.transaction() as connection:
            known = _fact(connection, "boot_epoch", None)
            if known is None and self._was_lost:
                _set_fact(connection, "begun_anew", 1)
                known = _drawn_epoch()
            epoch = int(known or 0) + 1
            _set_fact(connection, "boot_epoch", epoch)
        return epoch

    @property
    def is_anew(self) -> bool:
        """Whether the state was lost and no assignment was applied since: then it does not say what is needed."""
        return self._was_lost or self._read_fact("begun_anew", None) is not None

    @property
    def boot_epoch(self) -> int:
        """The number of this start, else of the newest one counted; 0 before the first."""
        return self._epoch or int(self._read_fact("boot_epoch", 0))

    @property
    def time_floor(self) -> datetime | None:
        """The newest time a verified signature vouched for."""
        text = self._read_fact("time_floor", None)
        return None if text is None else datetime.fromisoformat(text)

    @again_when_full
    def raise_time_floor(self, to: datetime) -> None:
        """Store a later time floor; an earlier one changes nothing."""
        with self.transaction() as connection:
            text = _fact(connection, "time_floor", None)
            if text is None or datetime.fromisoformat(text) < to:
                _set_fact(connection, "time_floor", time_text(to))

    @property
    def sequences(self) -> Sequences:
        """Where assignments stand."""
        return Sequences(**{name: int(self._read_fact(f"sequence_{name}", 0)) for name in Sequences.__slots__})

    @again_when_full
    def accept(self, documents: Documents) -> None:
        """Store a verified assignment as desired and raise the highest sequence to it, in one transaction."""
        with self.transaction() as connection:
            highest = max(int(_fact(connection, "sequence_highest", 0)), documents.sequence)
            _set_fact(connection, "sequence_highest", highest)
            _set_fact(connection, "sequence_desired", documents.sequence)
            _put_documents(connection, "desired", documents)

    @again_when_full
    def attempt(self, sequence: int) -> None:
        """Store that applying an assignment has begun."""
        with self.transaction() as connection:
            _set_fact(connection, "sequence_attempted", sequence)

    @again_when_full
    def fail(self, sequence: int) -> None:
        """Store that applying an assignment failed; what ran before still runs."""
        with self.transaction() as connection:
            _set_fact(connection, "sequence_failed", sequence)

    @again_when_full
    def apply(self, documents: Documents) -> None:
        """Store that all an assignment says is so."""
        with self.transaction() as connection:
            _set_fact(connection, "sequence_running", documents.sequence)
            _put_documents(connection, "applied", documents)
            connection.execute("DELETE FROM facts WHERE name = 'begun_anew'")
        self._was_lost = False

    @property
    def desired(self) -> Documents | None:
        """The newest assignment accepted."""
        return self._documents("desired")

    @property
    def applied(self) -> Documents | None:
        """The assignment applied last."""
        return self._documents("applied")

    def _documents(self, role: str) -> Documents | None:
        row = self._one("SELECT sequence, digest, assignment, releases FROM documents WHERE role = ?", role)
        if row is None:
            return None
        return Documents(row["sequence"], row["digest"], row["assignment"], tuple(_split(row["releases"])))

    @property
    def slots(self) -> dict[str, SlotRecord]:
        """Every slot that ever had a build, by name."""
        rows = self._rows("SELECT * FROM slots ORDER BY slot")
        return {row["slot"]: _record(row) for row in rows}

    def slot(self, name: str) -> SlotRecord:
        """Return a slot's record; an empty one when it never had a build."""
        row = self._one("SELECT * FROM slots WHERE slot = ?", name)
        return SlotRecord(name) if row is None else _record(row)

    @again_when_full
    def save_slot(self, record: SlotRecord, release: bytes | None = None) -> None:
        """Store a slot's record, with the canonical bytes of its candidate's release when that is new.

        Releases that no slot names any more go in the same transaction.
        """
        with self.transaction() as connection:
            if release is not None and record.candidate is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO releases (digest, body) VALUES (?, ?)", (record.candidate.release, release)
                )
            _save_slot(connection, record)

    @again_when_full
    def save_slot_and_quarantine(self, record: SlotRecord, build: str, reason: str, since: datetime) -> None:
        """Store a slot's record and that one of its builds is bad here, as one fact."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO quarantine (build, reason, since) VALUES (?, ?, ?)",
                (build, reason, time_text(since)),
            )
            _save_slot(connection, record)

    @again_when_full
    def remove_slot(self, name: str) -> None:
        """Forget a slot, there or not; what is quarantined stays so."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM slots WHERE slot = ?", (name,))
            connection.execute(_DROP_UNNAMED_RELEASES)

    def release(self, digest: str) -> bytes | None:
        """Return the canonical bytes of a release that a slot names."""
        row = self._one("SELECT body FROM releases WHERE digest = ?", digest)
        return None if row is None else bytes(row["body"])

    @property
    def quarantine(self) -> dict[str, Quarantined]:
        """Builds that this appliance will not try again, by digest."""
        rows = self._rows("SELECT build, reason, since FROM quarantine ORDER BY build")
        return {r["build"]: Quarantined(r["build"], r["reason"], datetime.fromisoformat(r["since"])) for r in rows}

    def _read_fact(self, name: str, default: Any) -> Any:
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        return default if row is None else row["value"]

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self._rows(query, *values)), None)

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        try:
            with self._translated():
                return self._connection.execute(query, values).fetchall()
        except StateReadOnly:
            if self._is_detached or self._image is None:
                raise
            self._detach()
            return self._rows(query, *values)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if is_disk_full(exc, self.path.parent):
                raise DiskFull(f"no room to store the agent's state in {self.path}: {exc}") from exc
            name = getattr(exc, "sqlite_errorname", type(exc).__name__)
            if self._image is None and getattr(exc, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
                raise StateDamaged(f"the agent's state {self.path} is damaged: {name}: {exc}") from exc
            if is_refusal(exc, was_open=self._image is not None):
                raise StateReadOnly(
                    f"the disk of the agent's state {self.path} takes no writes ({name}: {exc}); "
                    "mount it writable, or replace it"
                ) from exc
            raise StateError(f"the agent's state {self.path} failed: {name}: {exc}") from exc
        except UnicodeDecodeError as exc:  # sqlite3 raises it itself where SQLite's words quote a damaged schema
            kind = StateDamaged if self._image is None else StateError
            raise kind(f"the agent's state {self.path} is damaged: {exc}") from exc
        except OSError as exc:
            raise storage_error(exc, self.path) from exc


_LOST = (
    "there is no second copy: sequence numbers, time floor and quarantine are lost, nothing is served until the "
    "controller answers"
)


def _drawn_epoch() -> int:
    return _UNCOUNTED_EPOCHS + secrets.randbelow(_UNCOUNTED_EPOCHS - _MOST_BOOTS)


_MIGRATIONS_TABLE = "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied TEXT NOT NULL)"


def _check_writable(path: Path) -> None:
    """Raise the error of a read-only disk before SQLite looks: it opens one that has no log without a word."""
    if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def _configure(connection: sqlite3.Connection, max_pages: int | None) -> None:
    connection.row_factory = sqlite3.Row
    found = _checked_format(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL, not NORMAL: in WAL mode NORMAL may lose the last commits at a power cut, after they were acted on.
    connection.execute("PRAGMA synchronous = FULL")
    if max_pages is not None:
        connection.execute(f"PRAGMA max_page_count = {int(max_pages)}")
    connection.execute(_MIGRATIONS_TABLE)
    if found < FORMAT:
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _checked_format(connection: sqlite3.Connection) -> int:
    """Return the format of a file that this version can read.

    Raises:
        StateNewer: It is not one.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > FORMAT:
        raise StateNewer(
            "the agent's state was written by a newer agent",
            f"its format is {found}, this version reads {FORMAT}",
            "install that version again; or move state.db* away, and the controller sends the models once more",
        )
    return found


def _migrate(connection: sqlite3.Connection, migration: Migration) -> None:
    with _transaction(connection):
        if connection.execute("SELECT 1 FROM migrations WHERE name = ?", (migration.name,)).fetchone():
            return
        for statement in migration.statements:
            connection.execute(statement)
        connection.execute("INSERT INTO migrations (name, applied) VALUES (?, ?)", (migration.name, _now_text()))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # on some errors, a full disk among them, SQLite rolled back
            connection.execute("ROLLBACK")
        raise


def _now_text() -> str:
    return time_text(datetime.now(UTC))


def _fact(connection: sqlite3.Connection, name: str, default: Any) -> Any:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return default if row is None else row[0]


def _set_fact(connection: sqlite3.Connection, name: str, value: Any) -> None:
    connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))


def _put_documents(connection: sqlite3.Connection, role: str, documents: Documents) -> None:
    values = (role, documents.sequence, documents.digest, documents.assignment, _join(documents.releases))
    query = "INSERT OR REPLACE INTO documents (role, sequence, digest, assignment, releases) VALUES (?, ?, ?, ?, ?)"
    connection.execute(query, values)


def _join(parts: Sequence[bytes]) -> bytes:
    """Return byte strings as one, each after its length (8 bytes, big-endian)."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _split(joined: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(joined):
        size = int.from_bytes(joined[at : at + 8], "big")
        yield joined[at + 8 : at + 8 + size]
        at += 8 + size


def _save_slot(connection: sqlite3.Connection, record: SlotRecord) -> None:
    builds = [_build_text(build) for build in (record.active, record.previous, record.candidate)]
    values = (record.slot, *builds, record.stage.value, record.saves, record.reason)
    connection.execute(
        "INSERT OR REPLACE INTO slots (slot, active, previous, candidate, stage, saves, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    connection.execute(_DROP_UNNAMED_RELEASES)


def _build_text(build: SlotAssignment | None) -> str | None:
    return None if build is None else json.dumps(asdict(build), sort_keys=True)


def _build(text: str | None) -> SlotAssignment | None:
    if text is None:
        return None
    value = json.loads(text)
    # What a newer agent added is left: after a downgrade this one serves what that one installed.
    return SlotAssignment(**{field.name: value[field.name] for field in fields(SlotAssignment) if field.name in value})


def _record(row: sqlite3.Row) -> SlotRecord:
    try:
        return SlotRecord(
            row["slot"],
            active=_build(row["active"]),
            previous=_build(row["previous"]),
            candidate=_build(row["candidate"]),
            stage=SlotState(row["stage"]),
            saves=row["saves"],
            reason=row["reason"],
        )
    except (ValueError, TypeError, ModelsError) as exc:
        raise StateError(f"the agent's state holds an unreadable record of slot {row['slot']!r}: {exc}") from exc
