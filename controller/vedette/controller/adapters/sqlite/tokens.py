"""Enrolment tokens, their uses, and the admins whose certificates are good."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime

from vedette.controller.adapters.sqlite.agents import insert_agent, record_of
from vedette.controller.adapters.sqlite.database import Database, script
from vedette.controller.adapters.sqlite.rows import json_column, time_column, time_of
from vedette.controller.domain.agents import AgentRecord, unique_name
from vedette.controller.domain.errors import NotFound, Refused
from vedette.controller.domain.tokens import Applicant, Enrolled, TokenRecord, check_secret, check_usable

MIGRATIONS = (
    script(
        "tokens-1",
        """
        CREATE TABLE tokens (
            id TEXT PRIMARY KEY,
            secret_digest TEXT NOT NULL,
            labels TEXT NOT NULL,
            uses INTEGER NOT NULL,
            used INTEGER NOT NULL DEFAULT 0,
            created TEXT NOT NULL,
            expires TEXT NOT NULL,
            revoked TEXT
        );
        CREATE TABLE token_uses (
            token_id TEXT NOT NULL REFERENCES tokens (id),
            key_digest TEXT NOT NULL,
            agent_id TEXT REFERENCES agents (id) ON DELETE SET NULL,
            at TEXT NOT NULL,
            PRIMARY KEY (token_id, key_digest)
        );
        CREATE INDEX token_uses_by_agent ON token_uses (agent_id);
        CREATE TABLE admins (
            name TEXT PRIMARY KEY,
            key_digest TEXT NOT NULL,
            created TEXT NOT NULL
        );
        """,
    ),
)


class TokenStore:
    """The tables of tokens and their uses. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, token: TokenRecord) -> None:
        """Keep a new token."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO tokens (id, secret_digest, labels, uses, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    token.id,
                    token.secret_digest,
                    json_column(token.labels),
                    token.uses,
                    time_column(token.created),
                    time_column(token.expires),
                ),
            )

    def list_all(self) -> list[TokenRecord]:
        """Return every token, newest first."""
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT * FROM tokens ORDER BY created DESC, id").fetchall()
        return [_token(row) for row in rows]

    def revoke(self, token_id: str, at: datetime) -> TokenRecord:
        """Revoke a token; the first time stays.

        Raises:
            NotFound: There is no such token.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?", (time_column(at), token_id)
            )
            token = _find(connection, token_id)
        if token is None:
            raise NotFound("token-missing", f"there is no token {token_id[:80]}", remedy="vedette token ls shows all")
        return token

    def enrol(self, applicant: Applicant, *, at: datetime, certify: Callable[[str], bytes]) -> Enrolled:
        """Spend one use of a token for a public key and add its agent, or return what the same key got before.

        Args:
            applicant: Token, secret, key, wishes and facts.
            at: Now.
            certify: Signs the certificate of an agent id.

        Raises:
            Unauthenticated: The token is unknown or the secret wrong.
            Refused: The token is used, expired or revoked, or the agent of this key was revoked.
            InvalidInput: The wished name cannot be one.
        """
        with self._database.transaction() as connection:
            token = check_secret(_find(connection, applicant.token_id), applicant.secret)
            before = _earlier(connection, token.id, applicant.key_digest)
            if before is not None:
                return before
            check_usable(token, at)
            return _spend(connection, token, applicant, at, certify)


def _earlier(connection: sqlite3.Connection, token_id: str, key_digest: str) -> Enrolled | None:
    row = connection.execute(
        "SELECT agents.* FROM token_uses JOIN agents ON agents.id = token_uses.agent_id "
        "WHERE token_id = ? AND token_uses.key_digest = ?",
        (token_id, key_digest),
    ).fetchone()
    if row is None:
        return None
    agent = record_of(row)
    if agent.revoked:
        raise Refused("agent-revoked", f"agent {agent.name} was revoked", f"at {agent.revoked:%Y-%m-%d %H:%M:%S} UTC")
    return Enrolled(agent, row["certificate"], is_new=False)


def _spend(
    connection: sqlite3.Connection,
    token: TokenRecord,
    applicant: Applicant,
    at: datetime,
    certify: Callable[[str], bytes],
) -> Enrolled:
    def is_taken(name: str) -> bool:
        return connection.execute("SELECT 1 FROM agents WHERE name = ?", (name,)).fetchone() is not None

    agent = AgentRecord(
        id=applicant.agent_id,
        name=unique_name(applicant.name, applicant.facts.hostname, is_taken),
        key_digest=applicant.key_digest,
        labels=token.labels,
        facts=applicant.facts,
        enrolled=at,
    )
    certificate = certify(agent.id)
    insert_agent(connection, agent, certificate)
    # A use whose agent was removed since stays spent: the key may be on a disk that was thrown away.
    use = (token.id, applicant.key_digest, agent.id, time_column(at))
    connection.execute("INSERT OR REPLACE INTO token_uses VALUES (?, ?, ?, ?)", use)
    connection.execute("UPDATE tokens SET used = used + 1 WHERE id = ?", (token.id,))
    return Enrolled(agent, certificate, is_new=True)


def _find(connection: sqlite3.Connection, token_id: str) -> TokenRecord | None:
    row = connection.execute("SELECT * FROM tokens WHERE id = ?", (token_id,)).fetchone()
    return _token(row) if row else None


def _token(row: sqlite3.Row) -> TokenRecord:
    return TokenRecord(
        id=row["id"],
        secret_digest=row["secret_digest"],
        labels=json.loads(row["labels"]),
        uses=row["uses"],
        used=row["used"],
        created=datetime.fromisoformat(row["created"]),
        expires=datetime.fromisoformat(row["expires"]),
        revoked=time_of(row["revoked"]),
    )


class AdminStore:
    """The admins whose certificates are good."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, key_digest: str, at: datetime) -> None:
        """Keep an admin."""
        with self._database.transaction() as connection:
            connection.execute("INSERT INTO admins VALUES (?, ?, ?)", (name, key_digest, time_column(at)))

    def replace(self, name: str, key_digest: str, at: datetime) -> None:
        """Keep an admin whose former key, if there was one, is worth nothing from now on."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM admins WHERE name = ?", (name,))
            connection.execute("INSERT INTO admins VALUES (?, ?, ?)", (name, key_digest, time_column(at)))

    def key_digests(self) -> dict[str, str]:
        """Return the digest of each admin's public key, by name."""
        with self._database.transaction() as connection:
            return {row["name"]: row["key_digest"] for row in connection.execute("SELECT * FROM admins")}
