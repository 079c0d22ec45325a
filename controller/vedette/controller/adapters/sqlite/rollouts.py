"""Where rollouts are kept: each decision in one transaction, and of it only what has changed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from vedette.controller.adapters.sqlite.database import Database, script
from vedette.controller.adapters.sqlite.floors import MIGRATIONS as FLOORS
from vedette.controller.adapters.sqlite.floors import ROLLOUT, used_number
from vedette.controller.domain.rollout import (
    Event,
    Member,
    Pending,
    Rollout,
    Standing,
    Wave,
    WaveState,
)
from vedette.models.assignment import SlotAssignment
from vedette.wire.views import MemberState, RolloutState

MIGRATIONS = (
    script(
        "rollouts-1",
        """
        CREATE TABLE rollouts (
            id INTEGER PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, release TEXT NOT NULL,
            selector TEXT NOT NULL, soak_s INTEGER NOT NULL, timeout_s INTEGER NOT NULL, started TEXT NOT NULL,
            started_by TEXT NOT NULL, state TEXT NOT NULL, ended TEXT, reason TEXT NOT NULL, events TEXT NOT NULL
        ) STRICT;
        CREATE TABLE rollout_waves (
            rollout INTEGER NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE, place INTEGER NOT NULL,
            size TEXT NOT NULL, state TEXT NOT NULL, soak_until TEXT, PRIMARY KEY (rollout, place)
        ) STRICT;
        CREATE TABLE rollout_members (
            rollout INTEGER NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE, agent_id TEXT NOT NULL,
            wave INTEGER NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL, build TEXT NOT NULL,
            before TEXT, state TEXT NOT NULL, reason TEXT NOT NULL, pending TEXT NOT NULL, sequence INTEGER NOT NULL,
            deadline TEXT, stage INTEGER NOT NULL, bytes_done INTEGER NOT NULL, interrupted INTEGER NOT NULL,
            online INTEGER NOT NULL, known_errors TEXT NOT NULL, PRIMARY KEY (rollout, agent_id)
        ) STRICT;
        CREATE INDEX rollout_members_by_agent ON rollout_members (agent_id, rollout);
        CREATE INDEX rollout_members_pending ON rollout_members (rollout) WHERE pending != '';
        """,
    ),
    *FLOORS,
    script(
        "rollouts-2",
        """
        CREATE TABLE decided_by_file (
            agent_id TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, newest_rollout INTEGER NOT NULL,
            at TEXT NOT NULL, by TEXT NOT NULL, PRIMARY KEY (agent_id, model)
        ) STRICT;
        """,
    ),
)

_MEMBER_COLUMNS = (
    "rollout, agent_id, wave, place, name, build, before, state, reason, pending, sequence, deadline, stage,"
    " bytes_done, interrupted, online, known_errors"
)


class SqliteRollouts:
    """The rollouts of one database. Methods run in the database's thread; each is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next_id(self) -> str:
        """Return the id of the next rollout: a number, one above every earlier one."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT COALESCE(MAX(id), 0) AS id FROM rollouts").fetchone()
            return str(max(row["id"], used_number(connection, ROLLOUT)) + 1)

    def save(self, rollout: Rollout, before: Rollout | None) -> None:
        """Keep a rollout. ``before`` is its form kept last, whose unchanged members need no writing; None: it is new.

        Raises:
            DiskFull: Nothing was written.
        """
        with self._database.transaction() as connection:
            _save_head(connection, rollout)
            _save_waves(connection, rollout, before)
            _save_members(connection, rollout, before)

    def load(self, rollout_id: str) -> Rollout | None:
        """Return a rollout, or None when there is none of that id."""
        if not rollout_id.isascii() or not rollout_id.isdigit() or len(rollout_id) > 18:
            return None
        with self._database.transaction() as connection:
            return next(iter(_loaded(connection, "WHERE id = ?", (int(rollout_id),))), None)

    def unfinished(self) -> list[Rollout]:
        """Return, oldest first, the rollouts that have not ended or in which something is still to be done."""
        where = "WHERE ended IS NULL OR id IN (SELECT rollout FROM rollout_members WHERE pending != '')"
        with self._database.transaction() as connection:
            return _loaded(connection, where, ())

    def newest(self, limit: int) -> list[Rollout]:
        """Return at most ``limit`` rollouts, newest first."""
        where = "WHERE id IN (SELECT id FROM rollouts ORDER BY id DESC LIMIT ?)"
        with self._database.transaction() as connection:
            return _loaded(connection, where, (limit,))[::-1]

    def standing_for(self, agent_id: str) -> list[Standing]:
        """Return, newest first, the successes younger than what decided last of the agent's slot of the same model.

        That is the newest rollout that had it as a member, or :meth:`save_by_file`.
        """
        query = """
            SELECT model, version, selector, ended FROM rollouts AS done
            WHERE state = ? AND id > COALESCE((
                SELECT MAX(other.id) FROM rollout_members AS member JOIN rollouts AS other ON other.id = member.rollout
                WHERE member.agent_id = ? AND other.model = done.model), 0)
            AND id > COALESCE((
                SELECT newest_rollout FROM decided_by_file AS decided
                WHERE decided.agent_id = ? AND decided.model = done.model), 0)
            ORDER BY id DESC
        """
        with self._database.transaction() as connection:
            rows = connection.execute(query, (RolloutState.SUCCEEDED, agent_id, agent_id)).fetchall()
        return [Standing(row["model"], row["version"], row["selector"], _time(row["ended"])) for row in rows]

    def save_by_file(self, agent_ids: Iterable[str], version: str, at: datetime, by: str) -> None:
        """Keep that a person decided by file what agents run of a model: no rollout of before owes them another."""
        model = version.partition(":")[0]
        with self._database.transaction() as connection:
            newest = connection.execute("SELECT COALESCE(MAX(id), 0) FROM rollouts").fetchone()[0]
            connection.executemany(
                "INSERT OR REPLACE INTO decided_by_file VALUES (?, ?, ?, ?, ?, ?)",
                [(agent_id, model, version, newest, _text(at), by) for agent_id in agent_ids],
            )


def _save_head(connection: sqlite3.Connection, rollout: Rollout) -> None:
    events = json.dumps([[_text(event.at), event.text] for event in rollout.events])
    values = (
        int(rollout.id), rollout.model, rollout.version, rollout.release, rollout.selector, rollout.soak_s,
        rollout.timeout_s, _text(rollout.started), rollout.started_by, rollout.state, _text(rollout.ended),
        rollout.reason, events,
    )  # fmt: skip
    connection.execute(
        "INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " state = excluded.state, ended = excluded.ended, reason = excluded.reason, events = excluded.events",
        values,
    )


def _save_waves(connection: sqlite3.Connection, rollout: Rollout, before: Rollout | None) -> None:
    known = before.waves if before else (None,) * len(rollout.waves)
    rows = [
        (int(rollout.id), place, wave.size, wave.state, _text(wave.soak_until))
        for place, (wave, old) in enumerate(zip(rollout.waves, known, strict=True))
        if wave is not old
    ]
    connection.executemany("INSERT OR REPLACE INTO rollout_waves VALUES (?, ?, ?, ?, ?)", rows)


def _save_members(connection: sqlite3.Connection, rollout: Rollout, before: Rollout | None) -> None:
    known = before.members if before else (None,) * len(rollout.members)
    places = ((number, place, member) for number, wave in enumerate(rollout.waves) for place, member in _placed(wave))
    rows = [
        _member_row(rollout.id, number, place, member)
        for (number, place, member), old in zip(places, known, strict=True)
        if member is not old
    ]
    marks = ", ".join("?" for _ in _MEMBER_COLUMNS.split(","))
    connection.executemany(f"INSERT OR REPLACE INTO rollout_members ({_MEMBER_COLUMNS}) VALUES ({marks})", rows)  # noqa: S608 (our own column names)


def _placed(wave: Wave) -> Iterable[tuple[int, Member]]:
    return enumerate(wave.members)


def _member_row(rollout_id: str, wave: int, place: int, member: Member) -> tuple[object, ...]:
    return (
        int(rollout_id), member.agent_id, wave, place, member.name, member.build, _slot_text(member.before),
        member.state, member.reason, member.pending, member.sequence, _text(member.deadline), member.stage,
        member.bytes_done, member.interrupted, member.online, json.dumps(member.known_errors),
    )  # fmt: skip


def _loaded(connection: sqlite3.Connection, where: str, values: Sequence[object]) -> list[Rollout]:
    """Return rollouts by id; ``where`` is one of the texts above and speaks of table ``rollouts`` only."""
    heads = connection.execute(f"SELECT * FROM rollouts {where} ORDER BY id", values).fetchall()  # noqa: S608
    return [_rollout(connection, head) for head in heads]


def _rollout(connection: sqlite3.Connection, head: sqlite3.Row) -> Rollout:
    found = connection.execute(
        f"SELECT {_MEMBER_COLUMNS} FROM rollout_members WHERE rollout = ? ORDER BY wave, place",  # noqa: S608
        (head["id"],),
    ).fetchall()
    members = {number: tuple(map(_member, rows)) for number, rows in groupby(found, key=lambda row: int(row["wave"]))}
    waves = connection.execute("SELECT * FROM rollout_waves WHERE rollout = ? ORDER BY place", (head["id"],)).fetchall()
    return Rollout(
        id=str(head["id"]),
        model=head["model"],
        version=head["version"],
        release=head["release"],
        selector=head["selector"],
        waves=tuple(_wave(row, members[row["place"]]) for row in waves),
        soak_s=head["soak_s"],
        timeout_s=head["timeout_s"],
        started=datetime.fromisoformat(head["started"]),
        started_by=head["started_by"],
        state=RolloutState(head["state"]),
        ended=_time(head["ended"]),
        reason=head["reason"],
        events=tuple(Event(datetime.fromisoformat(at), text) for at, text in json.loads(head["events"])),
    )


def _wave(row: sqlite3.Row, members: tuple[Member, ...]) -> Wave:
    return Wave(size=row["size"], members=members, state=WaveState(row["state"]), soak_until=_time(row["soak_until"]))


def _member(row: sqlite3.Row) -> Member:
    return Member(
        agent_id=row["agent_id"],
        name=row["name"],
        build=row["build"],
        before=_slot(row["before"]),
        state=MemberState(row["state"]),
        reason=row["reason"],
        pending=Pending(row["pending"]),
        sequence=row["sequence"],
        deadline=_time(row["deadline"]),
        stage=row["stage"],
        bytes_done=row["bytes_done"],
        interrupted=bool(row["interrupted"]),
        online=bool(row["online"]),
        known_errors=tuple(json.loads(row["known_errors"])),
    )


def _slot_text(slot: SlotAssignment | None) -> str | None:
    return json.dumps([slot.slot, slot.model, slot.version, slot.release, slot.build]) if slot else None


def _slot(text: str | None) -> SlotAssignment | None:
    return SlotAssignment(*json.loads(text)) if text else None


def _text(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
