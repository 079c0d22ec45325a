"""What a restored database knows of it: when, from a backup of when, and which numbers are not to be given out again.

What happened between the backup and the restore is lost here and not out there: agents hold higher assignment numbers,
people remember rollouts and versions by numbers. So numbers go on above everything that may have been used, agents are
listened to before anything is asked of them (``agents.restored_sequence``), and no token of before is good any more.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from vedette.controller.adapters.sqlite.database import Database, script
from vedette.controller.adapters.sqlite.floors import ROLLOUT, raise_floor, version_kind
from vedette.controller.adapters.sqlite.rows import time_column

MIGRATIONS = (
    script(
        "restores-1",
        """
        CREATE TABLE restores (restored TEXT PRIMARY KEY, made TEXT NOT NULL, version TEXT NOT NULL);
        """,
    ),
)

_LEAP = 100
"""Numbers passed over when nobody can say how many were used after the backup."""


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore that this database went through."""

    restored: datetime
    made: datetime  # the backup


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a database says of itself, for a person who is about to replace it, and of the numbers it has given out."""

    agents: dict[str, str]  # name -> id
    revoked: frozenset[str]  # ids
    versions: dict[str, int]  # model -> its newest
    rollout: int
    run: int


class RestoreStore:
    """The tables of restores. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> Restore | None:
        """Return the newest restore, None when there was none."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT * FROM restores ORDER BY restored DESC LIMIT 1").fetchone()
        if row is None:
            return None
        return Restore(datetime.fromisoformat(row["restored"]), datetime.fromisoformat(row["made"]))

    def mark(self, *, made: datetime, version: str, now: datetime, lost: Known | None) -> None:
        """Write down that this database was restored.

        Args:
            made: When the backup was made.
            version: Of the controller that made it.
            now: The time.
            lost: What is replaced, if it was this controller and can still be read; else numbers leap.
        """
        with self._database.transaction() as connection:
            values = (time_column(now), time_column(made), version)
            connection.execute("INSERT OR REPLACE INTO restores VALUES (?, ?, ?)", values)
            _keep_numbers(connection, _known(connection), lost)
            connection.execute(
                "UPDATE agents SET restored_sequence = coalesce("
                "(SELECT max(sequence) FROM assignments WHERE agent_id = agents.id), 0)"
            )
            connection.execute("UPDATE tokens SET revoked = ? WHERE revoked IS NULL", (time_column(now),))
            for agent_id in lost.revoked if lost else ():
                connection.execute(
                    "UPDATE agents SET revoked = coalesce(revoked, ?) WHERE id = ?", (time_column(now), agent_id)
                )


def known(database: Database) -> Known:
    """Return what a database says of itself.

    Raises:
        StoreFailed: It is damaged, or older than what this version can read.
    """
    with database.transaction() as connection:
        return _known(connection)


def _known(connection: sqlite3.Connection) -> Known:
    agents = connection.execute("SELECT id, name, revoked FROM agents").fetchall()
    versions = connection.execute("SELECT model, max(number) AS newest FROM versions GROUP BY model").fetchall()
    return Known(
        agents={row["name"]: row["id"] for row in agents},
        revoked=frozenset(row["id"] for row in agents if row["revoked"]),
        versions={row["model"]: row["newest"] for row in versions},
        rollout=connection.execute("SELECT coalesce(max(id), 0) FROM rollouts").fetchone()[0],
        run=connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'runs'").fetchone()[0],
    )


def _keep_numbers(connection: sqlite3.Connection, here: Known, lost: Known | None) -> None:
    leap = 0 if lost else _LEAP
    lost = lost or here
    used = {ROLLOUT: max(here.rollout, lost.rollout) + leap}
    for model in here.versions | lost.versions:
        used[version_kind(model)] = max(here.versions.get(model, 0), lost.versions.get(model, 0)) + leap
    for kind, number in used.items():
        raise_floor(connection, kind, number)
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'runs'")
    connection.execute("INSERT INTO sqlite_sequence VALUES ('runs', ?)", (max(here.run, lost.run) + leap,))
