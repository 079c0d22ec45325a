"""Numbers that are used though no row says so: they were given out after the backup that a restored database is of."""

from __future__ import annotations

import sqlite3

from vedette.controller.adapters.sqlite.database import script

MIGRATIONS = (script("number-floors-1", "CREATE TABLE number_floors (kind TEXT PRIMARY KEY, used INTEGER NOT NULL);"),)
"""Part of every store that gives out numbers; it is applied once."""

ROLLOUT = "rollout"


def version_kind(model: str) -> str:
    """Return the kind of a model's version numbers."""
    return f"version:{model}"


def raise_floor(connection: sqlite3.Connection, kind: str, used: int) -> None:
    """Write down that a number of a kind is used, and every lower one."""
    connection.execute(
        "INSERT INTO number_floors VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET used = max(used, excluded.used)",
        (kind, used),
    )


def used_number(connection: sqlite3.Connection, kind: str) -> int:
    """Return the highest number of a kind that is known to be used, 0 when none."""
    row = connection.execute("SELECT used FROM number_floors WHERE kind = ?", (kind,)).fetchone()
    return int(row["used"]) if row else 0
