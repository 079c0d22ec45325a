"""Makes backups, while the controller serves or not.

Rules: the database is copied as it was at one instant; a blob is written before the row that names it and never removed
while a row names it, so the blobs that the copy names are there; a backup has its name only when it is whole, and mode
0600 from its first byte; room is looked for before anything is written. In a folder of backups blobs lie beside the
tar files once for all of them, by digest, and go when no backup that is kept names them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vedette.controller.adapters.blobs import BlobStore, sync_folder
from vedette.controller.adapters.initialise import BLOBS, CONFIG, CONTEXT, DATABASE, check_initialised
from vedette.controller.adapters.sqlite.copies import copy_database, database_bytes, settle
from vedette.controller.adapters.sqlite.database import Database, Migration
from vedette.controller.adapters.sqlite.datasets import DatasetStore
from vedette.controller.adapters.sqlite.registry import named_blobs
from vedette.controller.adapters.tar import Entry, add_member, end_archive, entries
from vedette.controller.domain.backup import (
    MANIFEST,
    MANIFEST_DIGEST,
    MAX_MANIFEST_BYTES,
    SETTINGS,
    Manifest,
    Member,
    invalid_backup,
)
from vedette.controller.domain.disk import disk_full, typed_os_errors
from vedette.controller.domain.errors import ControllerError, NotFound, Refused, StoreFailed
from vedette.controller.settings import ControllerSettings
from vedette.models.release import Blob
from vedette.models.version import __version__

logger = logging.getLogger(__name__)

Told = Callable[[str, float], None]
"""Told what is done now and the fraction of it that is done."""

MIRROR = "blobs"
_SPARE_BYTES = 16 << 20
_ORPHAN_LIFE = timedelta(days=1)
_NAME = re.compile(r"vedette-\d{4}-\d{2}-\d{2}T\d{6}Z\.tar")
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.(?:db|db-wal|db-shm|db-journal|partial)")


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made."""

    file: Path
    size: int
    manifest: Manifest
    mirrored: int = 0  # blobs that are new beside it
    removed: tuple[str, ...] = ()  # older backups that went


def back_up(
    settings: ControllerSettings,
    migrations: tuple[Migration, ...],
    target: Path,
    *,
    with_blobs: bool,
    now: datetime,
    told: Told,
) -> Made:
    """Write one backup file.

    Raises:
        Refused: There is no controller, or the target lies inside it.
        StoreFailed: The database is damaged, or something cannot be read or written.
        DiskFull: There is no room.
    """
    with _copied(settings, migrations, target, told) as copy:
        _check_room(target.parent, copy.size + (sum(blob.size for blob in copy.blobs) if with_blobs else 0))
        manifest = _manifest(settings, copy, with_blobs=with_blobs, now=now)
        return _written(settings, target, copy, manifest, told)


def back_up_into(
    settings: ControllerSettings,
    migrations: tuple[Migration, ...],
    folder: Path,
    *,
    keep: int,
    now: datetime,
    told: Told,
) -> Made:
    """Write a backup file named for this second into a folder, new blobs beside it, and remove what is older than kept.

    One of the same second is replaced by this one, in one step: it is no older.

    Args:
        settings: Of the controller.
        migrations: All that this version knows.
        folder: Existing.
        keep: How many backup files stay; 0 keeps all.
        now: The time.
        told: Told of progress.

    Raises:
        Refused: There is no controller, the folder lies inside it, or another backup is being written there.
        StoreFailed: The database or a blob is damaged, or something cannot be read or written.
        DiskFull: There is no room.
    """
    target = folder / f"vedette-{now:%Y-%m-%dT%H%M%SZ}.tar"
    with _alone(folder), _copied(settings, migrations, target, told) as copy:
        mirror, store = BlobStore(folder / MIRROR), BlobStore(settings.data_dir / BLOBS, is_owner=False)
        new = [blob for blob in copy.blobs if not mirror.has(blob.digest)]
        _check_room(folder, copy.size + sum(blob.size for blob in new))
        for done, blob in enumerate(new):  # before the file that needs them
            copy_blob(store, mirror, blob.digest)
            told("copying blobs", (done + 1) / len(new))
        manifest = _manifest(settings, copy, with_blobs=False, now=now)
        made = _written(settings, target, copy, manifest, told)
        removed = _prune(folder, keep)
        _collect(mirror, folder, now)
    return Made(made.file, made.size, made.manifest, len(new), removed)


def copy_blob(source: BlobStore, target: BlobStore, digest: str) -> None:
    """Copy a blob, verified on its way.

    Raises:
        NotFound: The source has none.
        StoreFailed: Its bytes are not those that its name says.
        DiskFull: There is no room.
    """
    with source.open(digest) as file, target.writer() as writer:
        for piece in iter(lambda: file.read(1 << 20), b""):
            writer.write(piece)
        if writer.digest != digest:
            why = f"the bytes of {digest} are not those that were stored"
            raise StoreFailed("blob-damaged", "a blob is damaged", why, "vedette-controller check lists all")
        writer.commit()


def read_manifest(archive: Iterator[Entry]) -> Manifest:
    """Return the manifest of an archive from its first two entries.

    Raises:
        InvalidInput: It is no backup, or damaged.
        Refused: A newer controller made it.
    """
    data = _small(archive, MANIFEST, MAX_MANIFEST_BYTES)
    said = _small(archive, MANIFEST_DIGEST, 64)
    if said.data.decode("ascii", "replace") != data.digest:
        raise invalid_backup("the manifest is not the one that was written")
    return Manifest.from_bytes(data.data)


@dataclass(frozen=True, slots=True)
class _Read:
    data: bytes
    digest: str


def _small(archive: Iterator[Entry], name: str, limit: int) -> _Read:
    entry = next(archive, None)
    if entry is None or entry.name != name or entry.size > limit:
        raise invalid_backup(f"{name} is missing, out of place or over {limit} bytes")
    return _Read(b"".join(entry.pieces()), entry.digest)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A database as it was at one instant."""

    path: Path
    size: int
    migrations: tuple[str, ...]
    blobs: tuple[Blob, ...]  # that it names and that are there


@contextlib.contextmanager
def _copied(
    settings: ControllerSettings, migrations: tuple[Migration, ...], target: Path, told: Told
) -> Iterator[_Copy]:
    """Yield a copy of the database beside the target; it goes afterwards."""
    check_initialised(settings.data_dir)
    _check_outside(settings.data_dir, target)
    copy = target.with_name(f".{target.name}.db")
    with typed_os_errors(copy):
        copy.unlink(missing_ok=True)  # of a backup that was cut
        _check_room(target.parent, database_bytes(settings.data_dir / DATABASE))
        try:
            copy_database(settings.data_dir / DATABASE, copy, lambda done: told("copying the database", done))
            taken, named = _looked_into(copy, migrations)
            store = BlobStore(settings.data_dir / BLOBS, is_owner=False)
            blobs = tuple(Blob(digest, store.size(digest)) for digest in sorted(named) if store.has(digest))
            yield _Copy(copy, copy.stat().st_size, taken, blobs)
        finally:
            for suffix in ("", "-wal", "-shm", "-journal"):
                copy.with_name(copy.name + suffix).unlink(missing_ok=True)


def _looked_into(copy: Path, migrations: tuple[Migration, ...]) -> tuple[tuple[str, ...], set[str]]:
    """Return the migrations of a copied database and the digests it names; a damaged one is no backup."""
    database = Database(copy)
    try:
        damage = database.damage()
        if damage:
            raise StoreFailed("database-damaged", "the database is damaged", damage, "restore an earlier backup")
        unknown = database.unknown_migrations(migrations)
        if unknown:
            raise Refused("database-newer", "the database was written by a newer controller", ", ".join(unknown[:5]))
        found = database.applied_migrations(), named_blobs(database) | DatasetStore(database).named_blobs()
    finally:
        database.close()
    settle(copy)
    return found


def _manifest(settings: ControllerSettings, copy: _Copy, *, with_blobs: bool, now: datetime) -> Manifest:
    return Manifest(
        made=now,
        version=__version__,
        controller_id=(settings.data_dir / "controller-id").read_text().strip(),
        migrations=copy.migrations,
        with_blobs=with_blobs,
        members=tuple(_member(name, path) for name, path in _files(settings, copy.path)),
        blobs=copy.blobs,
    )


def _written(settings: ControllerSettings, target: Path, copy: _Copy, manifest: Manifest, told: Told) -> Made:
    store = BlobStore(settings.data_dir / BLOBS, is_owner=False)
    with _appearing(target) as file:
        _write(file, manifest, dict(_files(settings, copy.path)), store, told)
    return Made(target, target.stat().st_size, manifest)


def _write(file: BinaryIO, manifest: Manifest, files: dict[str, Path], store: BlobStore, told: Told) -> None:
    total = manifest.member_bytes + (manifest.blob_bytes if manifest.with_blobs else 0)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        told("writing", done / total)

    def skip(size: int) -> None:
        """Count nothing: the manifest is no part of what it tells of."""

    raw = manifest.to_bytes()
    digest = add_member(file, MANIFEST, len(raw), BytesIO(raw), skip)
    add_member(file, MANIFEST_DIGEST, 64, BytesIO(digest.encode()), skip)
    for member in manifest.members:
        with files[member.name].open("rb") as source:
            _add(file, member, source, count)
    for blob in manifest.blobs if manifest.with_blobs else ():
        hexadecimal = blob.digest.removeprefix("sha256:")
        with store.open(blob.digest) as source:
            _add(file, Member(f"blobs/{hexadecimal}", blob.size, hexadecimal), source, count)
    end_archive(file)


def _add(file: BinaryIO, member: Member, source: BinaryIO, told: Callable[[int], None]) -> None:
    try:
        found = add_member(file, member.name, member.size, source, told)
    except ValueError as exc:
        raise StoreFailed("file-failed", "a file changed while it was backed up", str(exc), "repeat it") from exc
    if found != member.digest:
        what = f"{member.name} is damaged, or changed while it was backed up"
        raise StoreFailed("blob-damaged", what, f"its SHA-256 is {found}, expected {member.digest}")


def _files(settings: ControllerSettings, database: Path) -> list[tuple[str, Path]]:
    data_dir = settings.data_dir
    names = ["controller-id", CONFIG, CONTEXT]
    names += sorted(f"keys/{path.name}" for path in (data_dir / "keys").glob("*.pem"))
    names += sorted(f"tls/{path.name}" for path in (data_dir / "tls").iterdir() if path.suffix in (".key", ".crt"))
    found = [(name, data_dir / name) for name in names if (data_dir / name).is_file()]
    outside = [file for file in settings.files[:1] if file.parent != data_dir]
    return [*found, *((SETTINGS, file) for file in outside), (DATABASE, database)]


def _member(name: str, path: Path) -> Member:
    with path.open("rb") as file:
        return Member(name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the block ends well, and is no more when it does not."""
    partial = target.with_name(f".{target.name}.partial")
    with typed_os_errors(target):
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.rename(target)
            sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with typed_os_errors(folder), (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Refused("already-running", f"another backup is being written into {folder}", "", "wait") from exc
        _sweep(folder)  # what killed ones have left
        yield


def _sweep(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


def _check_outside(data_dir: Path, target: Path) -> None:
    if not target.parent.is_dir():
        raise NotFound("folder-missing", f"there is no folder {target.parent}", "", f"mkdir -m 700 {target.parent}")
    if target.resolve().is_relative_to(data_dir.resolve()):
        why = f"{target} lies in {data_dir}"
        raise Refused("backup-inside", "a backup cannot lie in what it is a backup of", why, "choose another disk")


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need + _SPARE_BYTES:
        raise disk_full(f"{folder} has {free} bytes free, a backup needs {need + _SPARE_BYTES}")


def _prune(folder: Path, keep: int) -> tuple[str, ...]:
    found = sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))
    old = tuple(found[:-keep]) if keep else ()
    for name in old:
        (folder / name).unlink()
    return old


def _collect(mirror: BlobStore, folder: Path, now: datetime) -> None:
    """Remove blobs that no backup here names; none while a backup cannot be read: nobody knows what it needs."""
    keep: set[str] = set()
    for path in sorted(folder.glob("*.tar")):
        try:
            with path.open("rb") as file:
                keep |= {blob.digest for blob in read_manifest(entries(file)).blobs}
        except (ControllerError, OSError) as exc:
            logger.warning("blobs of old backups stay: %s cannot be read: %s", path, exc)
            return
    mirror.collect(keep, older_than=(now - _ORPHAN_LIFE).timestamp())
