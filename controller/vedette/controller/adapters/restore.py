"""Puts a backup back.

Rules: everything is verified before anything of the data directory is changed; what is put back is made whole in a
folder of its own, ``restore.new``, and one rename, to ``restore.committed``, decides; from then on it is carried to its
end by whoever next holds the directory's lock, the server among them, so a cut at any point leaves the old controller
or the new one. What was there is moved aside into a named folder and never removed. Blobs are content: those that are
there stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from vedette.controller.adapters.backup import Told, copy_blob, read_manifest
from vedette.controller.adapters.blobs import BlobStore, make_folder, sync_folder
from vedette.controller.adapters.initialise import BLOBS, COMMITTED, DATABASE, delete
from vedette.controller.adapters.keys import KeyRing, write_file
from vedette.controller.adapters.service_user import as_who_asked
from vedette.controller.adapters.sqlite.copies import settle
from vedette.controller.adapters.sqlite.database import Database, Migration
from vedette.controller.adapters.sqlite.restores import Known, RestoreStore, known
from vedette.controller.adapters.tar import Entry, entries
from vedette.controller.domain.backup import Manifest, invalid_backup
from vedette.controller.domain.disk import disk_full, typed_os_errors
from vedette.controller.domain.errors import ControllerError, NotFound, Refused
from vedette.models.release import Blob

_STAGE = "restore.new"
_FILES = "files"
_ASIDE = "aside"
_CLEARED = "cleared"
_SPARE_BYTES = 16 << 20
_REPLACED = ("controller.db-wal", "controller.db-shm", "runs", "staging", ".initialising")
"""What goes aside though a backup has none of it."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A verified backup, ready to be put back."""

    data_dir: Path
    manifest: Manifest
    holds: Known
    lost: Known | None  # what is there now, if it is this controller and can be read
    is_occupied: bool  # whether anything is there now
    missing: tuple[Blob, ...]  # that are neither in the data directory nor found


@contextmanager
def staged(
    data_dir: Path, source: BinaryIO, migrations: tuple[Migration, ...], blobs_from: Path | None, told: Told
) -> Iterator[Staged]:
    """Verify a backup and make it ready beside what is there; leaving the block without :func:`commit` undoes it.

    The data directory's lock must be held.

    Raises:
        InvalidInput: It is no whole backup.
        Refused: It is of a newer controller.
        NotFound: There is no folder ``blobs_from``.
        StoreFailed, DiskFull: Something cannot be read or written.
    """
    stage = data_dir / _STAGE
    with typed_os_errors(stage):
        shutil.rmtree(stage, ignore_errors=True)
        (stage / _FILES).mkdir(mode=0o700, parents=True)
        try:
            archive = entries(source)
            manifest = read_manifest(archive)
            _check_room(data_dir, manifest)
            store = BlobStore(stage / BLOBS)
            _extract(archive, manifest, stage / _FILES, store, told)
            holds = _verified(stage / _FILES, manifest, migrations)
            missing = _fetch_blobs(data_dir, manifest, store, blobs_from, told)
            is_occupied, lost = _current(data_dir, manifest.controller_id)
            yield Staged(data_dir, manifest, holds, lost, is_occupied, missing)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def commit(ready: Staged, now: datetime) -> Path | None:
    """Put a staged backup back and return the folder where what was there lies now, None when there was nothing.

    Raises:
        StoreFailed, DiskFull: Before the decision nothing has changed; after it, the next start goes on.
    """
    stage = ready.data_dir / _STAGE
    with typed_os_errors(stage):
        path = stage / _FILES / DATABASE
        database = Database(path)
        try:
            made, version = ready.manifest.made, ready.manifest.version
            RestoreStore(database).mark(made=made, version=version, now=now, lost=ready.lost)
        finally:
            database.close()
        settle(path)
        aside = f"before-restore-{now:%Y-%m-%dT%H%M%SZ}"
        write_file(stage / _ASIDE, aside.encode(), mode=0o600)
        _sync(stage)
        stage.rename(ready.data_dir / COMMITTED)
        sync_folder(ready.data_dir)
    finish_restore(ready.data_dir)
    return ready.data_dir / aside if (ready.data_dir / aside).exists() else None


def finish_restore(data_dir: Path) -> None:
    """Carry a restore that was decided to its end; nothing happens when there is none. The lock must be held.

    Raises:
        StoreFailed, DiskFull: The next call goes on where this one ended.
    """
    committed = data_dir / COMMITTED
    shutil.rmtree(data_dir / _STAGE, ignore_errors=True)  # a restore killed before it decided left keys there
    with typed_os_errors(committed):
        if not committed.exists():
            return
        if (committed / _ASIDE).exists():
            aside = data_dir / (committed / _ASIDE).read_text()
            _replace_all(data_dir, committed, aside)
            _adopt_blobs(committed / BLOBS, BlobStore(data_dir / BLOBS))
            (committed / _ASIDE).unlink()
            sync_folder(committed)
        shutil.rmtree(committed)
        sync_folder(data_dir)


def _replace_all(data_dir: Path, committed: Path, aside: Path) -> None:
    """Move what is there aside, then what is new in; a mark between the two says which a name found twice is.

    By POSIX a power cut may keep the old name of a file that was renamed into another folder.
    """
    files = committed / _FILES
    names = sorted(path.name for path in files.iterdir() if path.name != DATABASE)
    if not (committed / _CLEARED).exists():
        _clear(data_dir, names, aside)
        write_file(committed / _CLEARED, b"", mode=0o600)
    for name in names:
        if os.path.lexists(data_dir / name):
            delete(files / name)
        else:
            (files / name).rename(data_dir / name)
    sync_folder(data_dir)
    if (files / DATABASE).exists():  # last, and in one step: a unit starts only where there is a database
        (files / DATABASE).replace(data_dir / DATABASE)
    sync_folder(data_dir)


def _clear(data_dir: Path, names: list[str], aside: Path) -> None:
    present = [name for name in (*_REPLACED, *names, DATABASE) if os.path.lexists(data_dir / name)]
    if not present:
        return
    make_folder(aside)
    for name in present:
        if os.path.lexists(aside / name):
            if name != DATABASE:
                delete(data_dir / name)
        elif name == DATABASE:
            os.link(data_dir / name, aside / name)
        else:
            (data_dir / name).rename(aside / name)
    sync_folder(aside)
    sync_folder(data_dir)


def _adopt_blobs(source: Path, target: BlobStore) -> None:
    staged_blobs = BlobStore(source, is_owner=False)
    for digest in list(staged_blobs.digests()):
        target.adopt(staged_blobs.path(digest), digest)


def _check_room(data_dir: Path, manifest: Manifest) -> None:
    here = BlobStore(data_dir / BLOBS, is_owner=False)
    need = manifest.member_bytes + sum(blob.size for blob in manifest.blobs if not here.has(blob.digest))
    free = shutil.disk_usage(data_dir).free
    if free < need + _SPARE_BYTES:
        raise disk_full(f"{data_dir} has {free} bytes free, this restore needs up to {need + _SPARE_BYTES}")


def _extract(archive: Iterator[Entry], manifest: Manifest, folder: Path, store: BlobStore, told: Told) -> None:
    done = 0
    total = manifest.member_bytes + (manifest.blob_bytes if manifest.with_blobs else 0)
    for member in manifest.members:
        entry = _next(archive, member.name, member.size)
        _write(folder / member.name, entry)
        _check_digest(entry, member.digest)
        done += member.size
        told("reading the backup", done / total)
    for blob in manifest.blobs if manifest.with_blobs else ():
        hexadecimal = blob.digest.removeprefix("sha256:")
        entry = _next(archive, f"blobs/{hexadecimal}", blob.size)
        store.put(entry.pieces())
        _check_digest(entry, hexadecimal)
        done += blob.size
        told("reading the backup", done / total)
    if next(archive, None) is not None:
        raise invalid_backup("it has more than its manifest says")


def _next(archive: Iterator[Entry], name: str, size: int) -> Entry:
    entry = next(archive, None)
    if entry is None or entry.name != name or entry.size != size:
        raise invalid_backup(f"{name} is missing, out of place or not of {size} bytes")
    return entry


def _write(path: Path, entry: Entry) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    mode = 0o644 if path.suffix in (".crt", ".toml", "") and path.name != "admin.toml" else 0o600
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        for piece in entry.pieces():
            file.write(piece)


def _check_digest(entry: Entry, digest: str) -> None:
    if entry.digest != digest:
        raise invalid_backup(f"{entry.name} is damaged: its SHA-256 is {entry.digest}, not {digest}")


def _verified(folder: Path, manifest: Manifest, migrations: tuple[Migration, ...]) -> Known:
    """Return what the staged database holds, brought to this version, once keys and database are proven good."""
    try:
        found = KeyRing.load(folder).controller_id
    except ControllerError as exc:
        raise invalid_backup(f"its keys cannot be used: {exc.what} {exc.why}") from exc
    if found != manifest.controller_id:
        raise invalid_backup(f"it says it is of {manifest.controller_id}, and is of {found[:80]}")
    try:
        database = Database(folder / DATABASE)
        try:
            return _examined(database, migrations)
        finally:
            database.close()
    except Refused:
        raise
    except ControllerError as exc:
        raise invalid_backup(f"its database cannot be used: {exc.what} {exc.why}") from exc


def _examined(database: Database, migrations: tuple[Migration, ...]) -> Known:
    damage = database.damage()
    if damage:
        raise invalid_backup(f"its database is damaged: {damage}")
    unknown = database.unknown_migrations(migrations)
    if unknown:
        why = f"its database has {', '.join(unknown[:5])}"
        raise Refused("backup-newer", "the backup was made by a newer controller", why, "install that version")
    database.migrate(migrations)
    return known(database)


def _fetch_blobs(
    data_dir: Path, manifest: Manifest, store: BlobStore, blobs_from: Path | None, told: Told
) -> tuple[Blob, ...]:
    """Copy blobs that are missing from a folder and return those that are still missing."""
    here = BlobStore(data_dir / BLOBS, is_owner=False)
    missing = [blob for blob in manifest.blobs if not here.has(blob.digest) and not store.has(blob.digest)]
    if blobs_from is None or not missing:
        return tuple(missing)
    source = _Lent(blobs_from, is_owner=False)
    if not source.is_there():
        raise NotFound("folder-missing", f"there is no folder {blobs_from}", "", "name the folder blobs of the backups")
    for done, blob in enumerate(missing):
        if source.has(blob.digest):
            copy_blob(source, store, blob.digest)
        told("copying blobs", (done + 1) / len(missing))
    return tuple(blob for blob in missing if not store.has(blob.digest))


class _Lent(BlobStore):
    """The blobs beside a backup: a copy from another machine may be for root's eyes, or of a user of another number."""

    def is_there(self) -> bool:
        """Return whether the folder is there."""
        with as_who_asked():
            return self._root.is_dir()

    def has(self, digest: str) -> bool:
        """Return whether a blob is there."""
        with as_who_asked():
            return super().has(digest)

    def open(self, digest: str) -> BufferedReader:
        """Return a blob opened for reading; unverified, the reader checks it."""
        with as_who_asked():
            return super().open(digest)


def _current(data_dir: Path, controller_id: str) -> tuple[bool, Known | None]:
    """Return whether anything is there now, and what it knows if it is this controller and can be read."""
    if not (data_dir / DATABASE).exists():
        return False, None
    try:
        if (data_dir / "controller-id").read_text().strip() != controller_id:
            return True, None
        database = Database(data_dir / DATABASE)
        try:
            return True, known(database)
        finally:
            database.close()
    except (ControllerError, OSError, UnicodeDecodeError):  # damaged: a reason to restore, not an obstacle
        return True, None


def _sync(folder: Path) -> None:
    """Make every file below a folder durable: the rename that decides must find them whole."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))
