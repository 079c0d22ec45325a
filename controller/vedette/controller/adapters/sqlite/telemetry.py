"""Telemetry windows, and which batches they came in."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from vedette.controller.adapters.sqlite.database import Database, script
from vedette.controller.adapters.sqlite.rows import json_column, microseconds, time_at
from vedette.controller.domain.telemetry import Place, Range, Tally, Totals, admit, recent
from vedette.wire.values import Gap, TelemetryBatch, Window

MIGRATIONS = (
    script(
        "telemetry-1",
        """
        CREATE TABLE telemetry_batches (
            agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
            boot_epoch INTEGER NOT NULL,
            counted TEXT NOT NULL,
            PRIMARY KEY (agent_id, boot_epoch)
        );
        CREATE TABLE telemetry_gaps (
            agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
            boot_epoch INTEGER NOT NULL,
            first_sequence INTEGER NOT NULL,
            last_sequence INTEGER NOT NULL,
            rows INTEGER NOT NULL,
            reason TEXT NOT NULL,
            at INTEGER NOT NULL
        );
        CREATE INDEX telemetry_gaps_by_agent ON telemetry_gaps (agent_id);
        CREATE TABLE telemetry_totals (
            agent_id TEXT PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
            rows INTEGER NOT NULL,
            flagged INTEGER NOT NULL
        );
        CREATE TABLE telemetry_windows (
            id INTEGER PRIMARY KEY,
            agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
            at INTEGER NOT NULL,
            start INTEGER NOT NULL,
            end INTEGER NOT NULL,
            slot TEXT NOT NULL,
            model TEXT NOT NULL,
            version INTEGER NOT NULL,
            build TEXT NOT NULL,
            rows INTEGER NOT NULL,
            flagged INTEGER NOT NULL,
            errors INTEGER NOT NULL,
            worker_restarts INTEGER NOT NULL,
            verdicts TEXT NOT NULL,
            latency BLOB NOT NULL,
            counters TEXT NOT NULL,
            cpu_seconds REAL NOT NULL,
            memory_bytes INTEGER NOT NULL,
            profile BLOB NOT NULL
        );
        CREATE INDEX telemetry_windows_by_model ON telemetry_windows (model, at);
        CREATE INDEX telemetry_windows_by_agent ON telemetry_windows (agent_id, slot, at);
        CREATE INDEX telemetry_windows_by_time ON telemetry_windows (at);
        """,
    ),
)

# profile last and only on demand: SQLite reads a row's columns in order, and a profile spills onto further pages
_COLUMNS = (
    "agent_id, start, end, slot, model, version, build, rows, flagged, errors, worker_restarts, verdicts, latency, "
    "counters, cpu_seconds, memory_bytes"
)
_INSERT = f"INSERT INTO telemetry_windows ({_COLUMNS}, profile, at) VALUES ({', '.join('?' * 18)})"  # noqa: S608 - ours
PIECE_ROWS = 5000
"""Windows read or deleted in one transaction: 0.16 s of the database's thread, measured on 2 busy cores."""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """The data profile of one window."""

    id: int
    agent_id: str
    version: int
    rows: int
    flagged: int
    profile: bytes


class TelemetryStore:
    """The tables of telemetry. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, agent_id: str, batch: TelemetryBatch, received: datetime) -> bool:
        """Count a batch unless it was counted before; return whether it was new. Committed when it returns."""
        with self._database.transaction() as connection:
            admission = admit(_counted(connection, agent_id, batch.boot_epoch), batch)
            if not admission.is_new and not admission.lost:
                return False
            connection.execute(
                "INSERT OR REPLACE INTO telemetry_batches VALUES (?, ?, ?)",
                (agent_id, batch.boot_epoch, json.dumps(admission.counted)),
            )
            _insert_gaps(connection, agent_id, batch.boot_epoch, admission.lost, received)
            if admission.is_new:
                _insert_windows(connection, agent_id, batch, received)
        return admission.is_new

    def totals(self) -> dict[str, Totals]:
        """Return all that each agent ever reported, purged windows included."""
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT * FROM telemetry_totals").fetchall()
        return {row["agent_id"]: Totals(row["rows"], row["flagged"]) for row in rows}

    def recent(self, since: datetime) -> dict[str, tuple[Window, ...]]:
        """Return the windows since a time that each agent's pulse is made of."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM telemetry_windows WHERE at >= ? ORDER BY id",  # noqa: S608 - column names are ours
                (microseconds(since),),
            ).fetchall()
        found: dict[str, list[Window]] = {}
        for row in rows:
            found.setdefault(row["agent_id"], []).append(_window(row))
        return {agent_id: recent(windows) for agent_id, windows in found.items()}

    def tallies(self, since: datetime, after: Place | None = None) -> tuple[list[Tally], Place | None]:
        """Return what a bounded number of windows since a time add up to, and where to go on; None at the end.

        A piece at a time, so that reports get in between: a fleet's hour is some hundred thousand windows.

        Args:
            since: Windows of this time and later.
            after: What the call before returned.
        """
        query = (
            f"SELECT id, at, {_COLUMNS} FROM telemetry_windows "  # noqa: S608 - column names are ours
            "WHERE (at, id) > (?, ?) ORDER BY at, id LIMIT ?"
        )
        arguments = after or (microseconds(since), 0)
        with self._database.transaction() as connection:
            rows = connection.execute(query, (*arguments, PIECE_ROWS)).fetchall()
        place = (rows[-1]["at"], rows[-1]["id"]) if len(rows) == PIECE_ROWS else None
        return _tallied(rows), place

    def profiles(self, model: str, since: datetime, *, after: int = 0, limit: int = 1_000) -> list[ProfileRow]:
        """Return the data profiles of a model's windows since a time, in the order they came, where they have one.

        A page at a time: a fleet's day of profiles does not fit in memory.

        Args:
            model: Its name.
            since: The oldest time of a window.
            after: Pass the ``id`` of the last row seen to get the next page.
            limit: Rows of a page at most.
        """
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT id, agent_id, version, rows, flagged, profile FROM telemetry_windows "
                "WHERE model = ? AND at >= ? AND id > ? AND length(profile) > 0 ORDER BY id LIMIT ?",
                (model, microseconds(since), after, limit),
            )
            return [ProfileRow(*row) for row in rows]

    def gaps(self, agent_id: str) -> list[Gap]:
        """Return what an agent could not deliver, oldest first."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT first_sequence, last_sequence, rows, reason FROM telemetry_gaps "
                "WHERE agent_id = ? ORDER BY boot_epoch, first_sequence",
                (agent_id,),
            ).fetchall()
        return [Gap(**dict(row)) for row in rows]

    def purge(self, before: datetime) -> int:
        """Delete some windows older than a time and return how many; totals stay. Repeat while it returns any.

        A bounded piece at a time: one large delete would hold up every report behind it.
        """
        with self._database.transaction() as connection:
            return connection.execute(
                "DELETE FROM telemetry_windows WHERE id IN (SELECT id FROM telemetry_windows WHERE at < ? LIMIT ?)",
                (microseconds(before), PIECE_ROWS),
            ).rowcount


def _tallied(rows: Iterable[sqlite3.Row]) -> list[Tally]:
    sums: dict[tuple[str, str, int], Tally] = {}
    for row in rows:
        key = (row["agent_id"], row["model"], row["version"])
        if key not in sums:
            sums[key] = Tally(*key)
        sums[key].add_counts(
            rows=row["rows"],
            flagged=row["flagged"],
            errors=row["errors"],
            start=time_at(row["start"]),
            end=time_at(row["end"]),
            cpu_seconds=row["cpu_seconds"],
            memory_bytes=row["memory_bytes"],
            verdicts=json.loads(row["verdicts"]),
            counters=json.loads(row["counters"]),
            latency=np.frombuffer(row["latency"], "<u8"),
        )
    return list(sums.values())


def _counted(connection: sqlite3.Connection, agent_id: str, boot_epoch: int) -> list[Range]:
    row = connection.execute(
        "SELECT counted FROM telemetry_batches WHERE agent_id = ? AND boot_epoch = ?", (agent_id, boot_epoch)
    ).fetchone()
    return [(first, last) for first, last in json.loads(row["counted"])] if row else []


def _insert_gaps(
    connection: sqlite3.Connection, agent_id: str, boot_epoch: int, gaps: tuple[Gap, ...], at: datetime
) -> None:
    connection.executemany(
        "INSERT INTO telemetry_gaps VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (agent_id, boot_epoch, gap.first_sequence, gap.last_sequence, gap.rows, gap.reason, microseconds(at))
            for gap in gaps
        ],
    )


def _insert_windows(connection: sqlite3.Connection, agent_id: str, batch: TelemetryBatch, received: datetime) -> None:
    connection.executemany(_INSERT, list(_window_rows(agent_id, batch, received)))
    rows = sum(window.rows for window in batch.windows)
    flagged = sum(window.flagged for window in batch.windows)
    connection.execute(
        "INSERT INTO telemetry_totals VALUES (?, ?, ?) ON CONFLICT (agent_id) DO UPDATE SET "
        "rows = rows + excluded.rows, flagged = flagged + excluded.flagged",
        (agent_id, rows, flagged),
    )


def _window_rows(agent_id: str, batch: TelemetryBatch, received: datetime) -> Iterator[tuple[object, ...]]:
    for window in batch.windows:
        # An appliance's clock may be years ahead: its window belongs no later than when it came.
        at = microseconds(min(window.end, received))
        yield (
            agent_id,
            microseconds(window.start),
            microseconds(window.end),
            window.slot,
            window.model,
            window.version,
            window.build,
            window.rows,
            window.flagged,
            window.errors,
            window.worker_restarts,
            json_column(window.verdicts),
            np.array(window.latency_counts, "<u8").tobytes(),
            json_column(window.counters),
            window.cpu_seconds,
            window.memory_bytes,
            window.profile,
            at,
        )


def _window(row: sqlite3.Row) -> Window:
    plain = {name: row[name] for name in row.keys() if name not in _TRANSLATED}  # noqa: SIM118 - a Row iterates values
    return replace(
        Window(start=time_at(row["start"]), end=time_at(row["end"]), **plain),
        verdicts=json.loads(row["verdicts"]),
        latency_counts=tuple(np.frombuffer(row["latency"], "<u8").tolist()),
        counters=json.loads(row["counters"]),
    )


_TRANSLATED = frozenset({"agent_id", "start", "end", "verdicts", "latency", "counters"})
