"""Where versions are kept: the signed release document of each, as it was signed."""

from __future__ import annotations

import base64
import difflib
import json
import sqlite3
from datetime import datetime

from vedette.controller.adapters.sqlite.database import Database, Migration, script
from vedette.controller.adapters.sqlite.floors import MIGRATIONS as FLOORS
from vedette.controller.adapters.sqlite.floors import used_number, version_kind
from vedette.controller.adapters.sqlite.rows import digests_in
from vedette.controller.domain.errors import NotFound, Refused
from vedette.controller.domain.registry import Draft, parse_version_name, view
from vedette.models.documents import DocumentError
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import SignatureError, SigningKey, seal, signers, unseal
from vedette.wire.values import BuildRef
from vedette.wire.views import Version

MIGRATIONS: tuple[Migration, ...] = (
    script(
        "registry-1",
        """
        CREATE TABLE versions (
            model TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
            source TEXT NOT NULL UNIQUE, envelope BLOB NOT NULL, created TEXT NOT NULL, PRIMARY KEY (model, number)
        );
        """,
    ),
    *FLOORS,
)


class RegistryStore:
    """Versions over one :class:`Database`; every method is one transaction.

    Args:
        database: With :data:`MIGRATIONS`.
        key: Signs releases, and proves those read back.
    """

    def __init__(self, database: Database, key: SigningKey) -> None:
        self._database = database
        self._key = key

    def add(self, draft: Draft, source: str, now: datetime) -> Version:
        """Give a draft its number, sign it and store it; a source that is registered returns what it became.

        Raises:
            Refused: The model has versions of another kind.
            DocumentError: The draft is no release.
        """
        with self._database.transaction() as connection:
            row = connection.execute("SELECT * FROM versions WHERE source = ?", (source,)).fetchone()
            if row is not None:
                return self._view(row)
            newest = connection.execute(
                "SELECT number, kind FROM versions WHERE model = ? ORDER BY number DESC LIMIT 1", (draft.model,)
            ).fetchone()
            if newest is not None and newest["kind"] != draft.kind:
                why = f"{draft.model}:{newest['number']} is a {newest['kind']} model, this is a {draft.kind} model"
                raise Refused("other-kind", "the version does not fit its model", why, "register it under another name")
            highest = newest["number"] if newest is not None else 0
            number = max(highest, used_number(connection, version_kind(draft.model))) + 1
            release = draft.release(number, now)
            envelope = seal(RELEASE_TYPE, release.to_bytes(), self._key)
            values = (release.model, number, release.kind, release.digest, source, envelope, now.isoformat())
            connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            return view(release, (self._key.key_id,))

    def version(self, name: str) -> Version:
        """Return a version by ``MODEL:N``.

        Raises:
            InvalidInput: The name has another form.
            NotFound: There is none of that name; the message names the nearest.
        """
        with self._database.transaction() as connection:
            return self._view(_require(connection, name))

    def release(self, name: str) -> Release:
        """Return the release of a version by ``MODEL:N``, its signature proven.

        Raises:
            InvalidInput: The name has another form.
            NotFound: There is none of that name.
            Refused: Its signature is not that of this controller's release key.
        """
        with self._database.transaction() as connection:
            return self._proven(_require(connection, name))

    def envelope(self, release_digest: str) -> bytes | None:
        """Return the signed envelope of a release by its digest, or None when there is no such release."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT envelope FROM versions WHERE digest = ?", (release_digest,)).fetchone()
        return None if row is None else bytes(row["envelope"])

    def release_of(self, running: BuildRef) -> str | None:
        """Return the digest of the release that has a build, None when no version here has it."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT * FROM versions WHERE model = ? AND number = ?", (running.model, running.version)
            ).fetchone()
            if row is None or running.build not in {build.digest for build in self._proven(row).builds}:
                return None
            return str(row["digest"])

    def versions(self, model: str = "") -> tuple[Version, ...]:
        """Return the versions of a model, or of all, newest first within each.

        Raises:
            NotFound: There is no model of that name.
        """
        with self._database.transaction() as connection:
            if model:
                _require_model(connection, model)
            rows = connection.execute(
                "SELECT * FROM versions WHERE ? IN ('', model) ORDER BY model, number DESC", (model,)
            ).fetchall()
        return tuple(self._view(row) for row in rows)

    def newest(self) -> dict[str, int]:
        """Return the newest version number of every model."""
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT model, max(number) AS newest FROM versions GROUP BY model ORDER BY model")
            return {row["model"]: row["newest"] for row in rows}

    def named_blobs(self) -> set[str]:
        """Return every digest that a version's document names, trusted or not."""
        return named_blobs(self._database)

    def releases(self, model: str) -> tuple[Release, ...]:
        """Return the releases of a model, newest first.

        Raises:
            NotFound: There is no model of that name.
        """
        with self._database.transaction() as connection:
            _require_model(connection, model)
            rows = connection.execute(
                "SELECT * FROM versions WHERE model = ? ORDER BY number DESC", (model,)
            ).fetchall()
        return tuple(self._proven(row) for row in rows)

    def _proven(self, row: sqlite3.Row) -> Release:
        try:
            return Release.from_bytes(unseal(bytes(row["envelope"]), RELEASE_TYPE, (self._key.public,)))
        except (SignatureError, DocumentError) as exc:
            name = f"{row['model']}:{row['number']}"
            raise Refused("release-unsigned", f"the release of {name} is not to be trusted", str(exc)) from exc

    def _view(self, row: sqlite3.Row) -> Version:
        return view(self._proven(row), signers(bytes(row["envelope"])))


def named_blobs(database: Database) -> set[str]:
    """Return every digest that a version's document names, trusted or not."""
    with database.transaction() as connection:
        rows = connection.execute("SELECT envelope FROM versions").fetchall()
    payloads = (base64.b64decode(json.loads(bytes(row["envelope"]))["payload"]) for row in rows)
    return {digest for payload in payloads for digest in digests_in(payload)}


def _require(connection: sqlite3.Connection, name: str) -> sqlite3.Row:
    model, number = parse_version_name(name)
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM versions WHERE model = ? AND number = ?", (model, number)
    ).fetchone()
    if row is None:
        _require_model(connection, model)
        newest = connection.execute("SELECT max(number) FROM versions WHERE model = ?", (model,)).fetchone()[0]
        why, remedy = f"the newest is {model}:{newest}", f"vedette model ls {model}"
        raise NotFound("version-unknown", f"there is no version {name}", why, remedy)
    return row


def _require_model(connection: sqlite3.Connection, model: str) -> None:
    known = [row["model"] for row in connection.execute("SELECT DISTINCT model FROM versions ORDER BY model")]
    if model in known:
        return
    near = difflib.get_close_matches(model, known, n=1)
    why = f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:5])}" if known else "none is registered"
    raise NotFound("model-unknown", f"there is no model {model[:80]}", why, "vedette model ls")
