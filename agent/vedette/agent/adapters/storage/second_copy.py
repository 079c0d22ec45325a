"""The second copy of a small database, and where a damaged one goes.

Rules: the copy is the whole database as of its last commit, or of one that was being made, under its SHA-256: it is
written before each commit, so it never knows less than what was acted on. A damaged file is renamed, with its log, and
never deleted unsaid: ``NAME.damaged-1`` and so on, a few of them. A copy that is itself damaged is no copy.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from vedette.agent.adapters.storage.files import FileTooLarge, read_file, replace_file, sync_folder

logger = logging.getLogger(__name__)

MOST_KEPT = 3
"""Damaged files kept of one database: a disk that fails must not be filled by them."""
_MAX_BYTES = 256 * 1024 * 1024  # a state is about 100 KiB; its releases are a few hundred KiB each at the most
_MAGIC = b"vedette copy 1\n"
_DIGEST_BYTES = 32


class SecondCopy:
    """The copy of one database file."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(f"{database.name}.copy")

    def write(self, image: bytes) -> None:
        """Replace the copy, whole, or raise DiskFull or OSError and leave the old one."""
        replace_file(self.path, _MAGIC + hashlib.sha256(image).digest() + image, 0o600)

    def read(self) -> bytes | None:
        """Return the database; None when there is no copy or it is not what was written."""
        try:
            data = read_file(self.path, _MAX_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, FileTooLarge) as exc:
            logger.warning("the second copy %s cannot be read: %s", self.path, exc)
            return None
        digest, image = data[len(_MAGIC) :][:_DIGEST_BYTES], data[len(_MAGIC) + _DIGEST_BYTES :]
        if data.startswith(_MAGIC) and hashlib.sha256(image).digest() == digest:
            return image
        logger.warning("the second copy %s is damaged, too", self.path)
        return None


def set_aside(database: Path) -> Path | None:
    """Rename a damaged database, with its log, out of the way and return its new name; None when there was none.

    The file goes first: SQLite throws a log without its file away, but would replay one into what took its place.

    Raises:
        OSError: The disk takes no writes.
    """
    place = _free_place(database) if database.exists() else None
    if place is not None:
        database.rename(place)
        logger.warning("%s is set aside as %s", database, place.name)
    log = database.with_name(f"{database.name}-wal")
    if place is not None and log.exists():
        log.rename(place.with_name(f"{place.name}-wal"))
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    sync_folder(database.parent)
    return place


def kept_aside(database: Path) -> tuple[Path, ...]:
    """Return the damaged files of a database that are kept, oldest first."""
    places = (_place(database, number) for number in range(1, MOST_KEPT + 1))
    with suppress(OSError):
        return tuple(place for place in places if place.exists())
    return ()


def _place(database: Path, number: int) -> Path:
    return database.with_name(f"{database.name}.damaged-{number}")


def _free_place(database: Path) -> Path:
    """Return the first free name; when all are taken the last one's file goes, for the first tells most."""
    for number in range(1, MOST_KEPT + 1):
        if not (place := _place(database, number)).exists():
            return place
    logger.warning("%s is replaced: %d damaged files are kept at the most", place, MOST_KEPT)
    return place
