"""What a backup of a controller is: one tar file whose first member says what the others must be.

Format 1, in this order: ``manifest.json``; ``manifest.sha256``, its digest; every file of the data directory that is no
blob; and, in a whole backup, ``blobs/HEX`` for every blob that the database names. The manifest gives name, size and
SHA-256 of each member, and the index of all those blobs whether they are inside or not. A backup holds private keys.

Pure: bytes in, a manifest or :class:`~vedette.controller.domain.errors.InvalidInput` out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.models.release import MAX_BLOB_BYTES, Blob

FORMAT = "vedette-controller-backup"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
DATABASE = "controller.db"
SETTINGS = "settings-at-backup.toml"
"""The settings file that was in force; ``restore`` puts it into the data directory to be compared, never into /etc."""

MAX_MANIFEST_BYTES = 256 << 20
MAX_FILE_BYTES = 1 << 20
MAX_DATABASE_BYTES = 1 << 40
MAX_MEMBERS = 1000
MAX_BLOBS = 2_000_000

REQUIRED = frozenset({
    DATABASE,
    "controller-id",
    "keys/assignment.pem",
    "keys/release.pem",
    "tls/ca.crt",
    "tls/ca.key",
    "tls/server.crt",
    "tls/server.key",
})  # fmt: skip
"""Without one of these there is no controller."""
_NAME = re.compile(
    r"controller\.db|controller-id|controller\.toml|admin\.toml|settings-at-backup\.toml"
    r"|keys/[A-Za-z0-9_-]{1,64}\.pem|tls/[A-Za-z0-9_-]{1,64}\.(?:key|crt)"
)
_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the data directory in a backup."""

    name: str
    size: int
    digest: str  # SHA-256, hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup holds."""

    made: datetime
    version: str  # of the controller that made it
    controller_id: str
    migrations: tuple[str, ...]
    with_blobs: bool
    members: tuple[Member, ...]
    blobs: tuple[Blob, ...]  # all that the database names and that were there

    @property
    def member_bytes(self) -> int:
        """Return the bytes of every file that is not a blob."""
        return sum(member.size for member in self.members)

    @property
    def blob_bytes(self) -> int:
        """Return the bytes of every blob of the index."""
        return sum(blob.size for blob in self.blobs)

    def to_bytes(self) -> bytes:
        """Return the document."""
        value = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "made": self.made.isoformat(),
            "version": self.version,
            "controller_id": self.controller_id,
            "migrations": list(self.migrations),
            "with_blobs": self.with_blobs,
            "members": [[member.name, member.size, member.digest] for member in self.members],
            "blobs": [[blob.digest, blob.size] for blob in self.blobs],
        }
        return json.dumps(value, indent=0).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Return the manifest of a document.

        Raises:
            Refused: A newer controller made the backup, in a format that this one does not know.
            InvalidInput: It is no manifest, or names something that no backup has.
        """
        try:
            value = json.loads(data)
            _check_format(value)
            return cls._from_value(value)
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise invalid_backup(f"its manifest: {type(exc).__name__}: {str(exc)[:200]}") from exc

    @classmethod
    def _from_value(cls, value: dict[str, Any]) -> Manifest:
        members, blobs = value["members"], value["blobs"]
        if len(members) > MAX_MEMBERS or len(blobs) > MAX_BLOBS:
            raise ValueError(f"{len(members)} members and {len(blobs)} blobs, limits {MAX_MEMBERS} and {MAX_BLOBS}")
        made = datetime.fromisoformat(value["made"])
        if made.tzinfo is None:
            raise ValueError("made has no zone")
        found = cls(
            made=made,
            version=_text(value["version"]),
            controller_id=_text(value["controller_id"]),
            migrations=tuple(_text(name) for name in value["migrations"]),
            with_blobs=value["with_blobs"] is True,
            members=tuple(_member(*item) for item in members),
            blobs=tuple(_blob(*item) for item in blobs),
        )
        _check_unique([member.name for member in found.members])
        _check_unique([blob.digest for blob in found.blobs])
        missing = REQUIRED - {member.name for member in found.members}
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} is missing")
        return found


def invalid_backup(why: str) -> InvalidInput:
    """Return the error of a file that is no whole backup."""
    return InvalidInput("backup-invalid", "this is no whole backup of a controller", why, "take another backup file")


def _check_format(value: Any) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError("it is not of a Vedette controller")
    version = value["format_version"]
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"format version {version!r}")
    if version > FORMAT_VERSION:
        why = f"it has format {version}, this one knows up to {FORMAT_VERSION}"
        raise Refused("backup-newer", "the backup was made by a newer controller", why, "install that version")


def _member(name: str, size: int, digest: str) -> Member:
    if not _NAME.fullmatch(name):
        raise ValueError(f"no backup has a member {name[:80]!r}")
    limit = MAX_DATABASE_BYTES if name == DATABASE else MAX_FILE_BYTES
    return Member(name, _size(size, limit), _matching(digest, _HEX))


def _blob(digest: str, size: int) -> Blob:
    return Blob(_matching(digest, _DIGEST), _size(size, MAX_BLOB_BYTES))


def _size(size: Any, limit: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= limit:
        raise ValueError(f"a size of {size!r}, limit {limit}")
    return size


def _matching(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no digest")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise TypeError(f"{str(value)[:80]!r} is not a short text")
    return value


def _check_unique(names: Iterable[str]) -> None:
    known: set[str] = set()
    for name in names:
        if name in known:
            raise ValueError(f"{name} is there twice")
        known.add(name)
