"""Agents, what is wanted of them, and what they last said."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from vedette.controller.adapters.sqlite.database import Database, script
from vedette.controller.adapters.sqlite.floors import MIGRATIONS as FLOORS
from vedette.controller.adapters.sqlite.floors import raise_floor, version_kind
from vedette.controller.adapters.sqlite.rows import json_column, time_column, time_of
from vedette.controller.domain.agents import AgentRecord
from vedette.controller.domain.desired import Heard, Issued, Kept, StoredAgent
from vedette.models.assignment import SlotAssignment
from vedette.wire import convert
from vedette.wire.v1 import fleet_pb2
from vedette.wire.values import GenerationResult, Status

MIGRATIONS = (
    script(
        "agents-1",
        """
        CREATE TABLE agents (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            key_digest TEXT NOT NULL,
            certificate BLOB NOT NULL,
            labels TEXT NOT NULL,
            facts BLOB NOT NULL,
            enrolled TEXT NOT NULL,
            seen TEXT,
            revoked TEXT,
            address TEXT NOT NULL DEFAULT '',
            status BLOB,
            result BLOB,
            reported_sequence INTEGER NOT NULL DEFAULT 0
        );
        CREATE TABLE desired_slots (
            agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
            slot TEXT NOT NULL,
            model TEXT NOT NULL,
            version INTEGER NOT NULL,
            release_digest TEXT NOT NULL,
            build_digest TEXT NOT NULL,
            PRIMARY KEY (agent_id, slot)
        );
        CREATE TABLE assignments (
            agent_id TEXT NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
            sequence INTEGER NOT NULL,
            digest TEXT NOT NULL,
            envelope BLOB NOT NULL,
            issued TEXT NOT NULL,
            not_after TEXT NOT NULL,
            PRIMARY KEY (agent_id, sequence)
        );
        """,
    ),
    script(
        "agents-2",
        """
        ALTER TABLE agents ADD COLUMN restored_sequence INTEGER;
        ALTER TABLE agents ADD COLUMN moved_on TEXT;
        ALTER TABLE agents ADD COLUMN held TEXT NOT NULL DEFAULT '[]';
        """,
    ),
    *FLOORS,
)

KEPT_ASSIGNMENTS = 32
"""Of each agent; older ones are of no use to it and only show what was wanted when."""


class AgentStore:
    """The table of agents. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> list[StoredAgent]:
        """Return every agent, by name."""
        with self._database.transaction() as connection:
            slots = _slots(connection)
            newest = _newest(connection, slots)
            rows = connection.execute("SELECT * FROM agents ORDER BY name").fetchall()
        return [_stored(row, slots.get(row["id"], {}), newest.get(row["id"])) for row in rows]

    def save_heard(self, words: Sequence[Heard]) -> None:
        """Keep what agents said last; words of agents that are gone are dropped."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE agents SET seen = ?, address = ?, facts = ?, status = ?, "
                "reported_sequence = max(reported_sequence, ?) WHERE id = ?",
                [_heard_row(word) for word in words],
            )

    def save_result(self, agent_id: str, result: GenerationResult) -> None:
        """Keep how an agent judged an assignment."""
        with self._database.transaction() as connection:
            data = convert.RESULT.to_wire(result).SerializeToString()
            connection.execute("UPDATE agents SET result = ? WHERE id = ?", (data, agent_id))

    def save_desired(self, agent_id: str, issued: Issued, at: datetime) -> None:
        """Keep a new assignment, and its slots as what is desired."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO assignments VALUES (?, ?, ?, ?, ?, ?)",
                (
                    agent_id,
                    issued.sequence,
                    issued.digest,
                    issued.envelope,
                    time_column(at),
                    time_column(issued.not_after),
                ),
            )
            _replace_slots(connection, agent_id, issued.slots)
            connection.execute("UPDATE agents SET held = '[]' WHERE id = ?", (agent_id,))
            connection.execute(
                "DELETE FROM assignments WHERE agent_id = ? AND sequence <= (SELECT sequence FROM assignments "
                "WHERE agent_id = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
                (agent_id, agent_id, KEPT_ASSIGNMENTS),
            )

    def save_kept(self, agent_id: str, kept: Kept, status: Status, moved_on: datetime | None) -> None:
        """Keep what is wanted of an agent that was heard after a restore, and the numbers it shows to be used."""
        refs = [ref for slot in status.slots for ref in (slot.active, slot.previous, slot.candidate) if ref]
        with self._database.transaction() as connection:
            _replace_slots(connection, agent_id, kept.slots.values())
            connection.execute(
                "UPDATE agents SET restored_sequence = NULL, held = ?, moved_on = ? WHERE id = ?",
                (json.dumps(kept.unknown), time_column(moved_on), agent_id),
            )
            for ref in refs:
                raise_floor(connection, version_kind(ref.model), ref.version)

    def set_labels(self, agent_id: str, labels: Mapping[str, str]) -> None:
        """Replace an agent's labels."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE agents SET labels = ? WHERE id = ?", (json_column(labels), agent_id))

    def revoke(self, agent_id: str, at: datetime) -> None:
        """Mark an agent as revoked; the first time stays."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE agents SET revoked = coalesce(revoked, ?) WHERE id = ?", (time_column(at), agent_id)
            )

    def remove(self, agent_id: str) -> None:
        """Forget an agent and all that is kept of it."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM agents WHERE id = ?", (agent_id,))


def _replace_slots(connection: sqlite3.Connection, agent_id: str, slots: Iterable[SlotAssignment]) -> None:
    connection.execute("DELETE FROM desired_slots WHERE agent_id = ?", (agent_id,))
    connection.executemany(
        "INSERT INTO desired_slots VALUES (?, ?, ?, ?, ?, ?)",
        [(agent_id, s.slot, s.model, s.version, s.release, s.build) for s in slots],
    )


def insert_agent(connection: sqlite3.Connection, agent: AgentRecord, certificate: bytes) -> None:
    """Add an agent inside the transaction that spends its token."""
    connection.execute(
        "INSERT INTO agents (id, name, key_digest, certificate, labels, facts, enrolled) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            agent.id,
            agent.name,
            agent.key_digest,
            certificate,
            json_column(agent.labels),
            convert.FACTS.to_wire(agent.facts).SerializeToString(),
            time_column(agent.enrolled),
        ),
    )


def _heard_row(word: Heard) -> tuple[Any, ...]:
    return (
        time_column(word.seen),
        word.address,
        convert.FACTS.to_wire(word.facts).SerializeToString(),
        convert.STATUS.to_wire(word.status).SerializeToString(),
        word.reported_sequence,
        word.agent_id,
    )


def _slots(connection: sqlite3.Connection) -> dict[str, dict[str, SlotAssignment]]:
    found: dict[str, dict[str, SlotAssignment]] = defaultdict(dict)
    for row in connection.execute("SELECT * FROM desired_slots ORDER BY agent_id, slot"):
        target = SlotAssignment(row["slot"], row["model"], row["version"], row["release_digest"], row["build_digest"])
        found[row["agent_id"]][target.slot] = target
    return found


def _newest(connection: sqlite3.Connection, slots: Mapping[str, Mapping[str, SlotAssignment]]) -> dict[str, Issued]:
    rows = connection.execute(
        "SELECT * FROM assignments AS a WHERE sequence = "
        "(SELECT max(sequence) FROM assignments WHERE agent_id = a.agent_id)"
    )
    return {
        row["agent_id"]: Issued(
            sequence=row["sequence"],
            digest=row["digest"],
            envelope=row["envelope"],
            not_after=datetime.fromisoformat(row["not_after"]),
            slots=tuple(slots.get(row["agent_id"], {}).values()),
        )
        for row in rows
    }


def record_of(row: sqlite3.Row) -> AgentRecord:
    """Return the agent of a row, without what is desired of it."""
    status, result = row["status"], row["result"]
    return AgentRecord(
        id=row["id"],
        name=row["name"],
        key_digest=row["key_digest"],
        labels=json.loads(row["labels"]),
        facts=convert.FACTS.from_wire(fleet_pb2.Facts.FromString(row["facts"])),
        enrolled=datetime.fromisoformat(row["enrolled"]),
        seen=time_of(row["seen"]),
        revoked=time_of(row["revoked"]),
        moved_on=time_of(row["moved_on"]),
        held=tuple(json.loads(row["held"])),
        address=row["address"],
        status=convert.STATUS.from_wire(fleet_pb2.Status.FromString(status)) if status is not None else None,
        result=convert.RESULT.from_wire(fleet_pb2.GenerationResult.FromString(result)) if result is not None else None,
    )


def _stored(row: sqlite3.Row, slots: Mapping[str, SlotAssignment], newest: Issued | None) -> StoredAgent:
    return StoredAgent(record_of(row), dict(slots), newest, row["reported_sequence"], row["restored_sequence"])
