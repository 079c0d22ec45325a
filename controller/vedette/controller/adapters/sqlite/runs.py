"""Where training runs are kept: one row a run, written before each step."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime

from vedette.controller.adapters.sqlite.database import Database, Migration, script
from vedette.controller.domain.errors import NotFound
from vedette.controller.domain.runs import ENDS, NewRun, RunRecord
from vedette.wire.views import RunState

MIGRATIONS: tuple[Migration, ...] = (
    script(
        "runs-1",
        """
        CREATE TABLE runs (
            id INTEGER PRIMARY KEY AUTOINCREMENT, recipe TEXT NOT NULL, snapshot TEXT NOT NULL, model TEXT NOT NULL,
            parameters TEXT NOT NULL, state TEXT NOT NULL, created TEXT NOT NULL, starts INTEGER NOT NULL,
            version TEXT NOT NULL, metrics TEXT NOT NULL, error TEXT NOT NULL, ended TEXT
        );
        """,
    ),
)
_SHOWN = 500


class RunStore:
    """Runs over one :class:`Database`; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, new: NewRun, now: datetime) -> RunRecord:
        """Store a new run, queued, and return it with its name: r1, r2, …."""
        parameters = json.dumps(dict(new.parameters))
        values = (new.recipe, new.snapshot, new.model, parameters, RunState.QUEUED.value, now.isoformat())
        with self._database.transaction() as connection:
            number = connection.execute(
                "INSERT INTO runs"
                " (recipe, snapshot, model, parameters, state, created, starts, version, metrics, error)"
                " VALUES (?, ?, ?, ?, ?, ?, 0, '', '{}', '')",
                values,
            ).lastrowid
        return RunRecord(f"r{number}", new.recipe, new.snapshot, new.model, new.parameters, RunState.QUEUED, now)

    def save(self, record: RunRecord) -> None:
        """Store what may change of a run."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE runs SET state = ?, starts = ?, version = ?, metrics = ?, error = ?, ended = ? WHERE id = ?",
                (
                    *(record.state.value, record.starts, record.version, json.dumps(dict(record.metrics))),
                    *(record.error, record.ended.isoformat() if record.ended else None, int(record.run[1:])),
                ),
            )

    def get(self, run: str) -> RunRecord:
        """Return a run by name.

        Raises:
            NotFound: There is none of that name.
        """
        number = int(run[1:]) if run[:1] == "r" and run[1:].isascii() and run[1:].isdigit() and len(run) < 16 else 0
        with self._database.transaction() as connection:
            row = connection.execute("SELECT * FROM runs WHERE id = ?", (number,)).fetchone()
            if row is None:
                newest = connection.execute("SELECT max(id) FROM runs").fetchone()[0]
                why = f"the newest is r{newest}" if newest else "nothing was trained yet"
                raise NotFound("run-unknown", f"there is no run {run[:40]}", why, "vedette run ls")
        return _record(row)

    def all(self) -> tuple[RunRecord, ...]:
        """Return the newest runs, newest first."""
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT * FROM runs ORDER BY id DESC LIMIT ?", (_SHOWN,)).fetchall()
        return tuple(_record(row) for row in rows)

    def unfinished(self) -> tuple[RunRecord, ...]:
        """Return the runs that have not ended, oldest first."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM runs WHERE state NOT IN (?, ?) ORDER BY id", tuple(sorted(end.value for end in ENDS))
            ).fetchall()
        return tuple(_record(row) for row in rows)


def _record(row: sqlite3.Row) -> RunRecord:
    return RunRecord(
        run=f"r{row['id']}",
        recipe=row["recipe"],
        snapshot=row["snapshot"],
        model=row["model"],
        parameters=json.loads(row["parameters"]),
        state=RunState(row["state"]),
        created=datetime.fromisoformat(row["created"]),
        starts=row["starts"],
        version=row["version"],
        metrics=json.loads(row["metrics"]),
        error=row["error"],
        ended=datetime.fromisoformat(row["ended"]) if row["ended"] else None,
    )
