"""What ``vedette-controller check`` looks at. Changes nothing and works beside a controller that serves."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.adapters.initialise import BLOBS, CONTEXT, DATABASE, check_initialised
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.sqlite.database import Database, Migration
from vedette.controller.adapters.sqlite.datasets import DatasetStore
from vedette.controller.adapters.sqlite.registry import RegistryStore
from vedette.controller.domain.errors import ControllerError, Refused, StoreFailed
from vedette.controller.settings import ControllerSettings
from vedette.models.release import Release

_LEAST_FREE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    is_good: bool
    text: str


def examine(settings: ControllerSettings, migrations: tuple[Migration, ...]) -> Iterator[Finding]:
    """Yield what is found, one thing after another; later ones do not depend on earlier ones but for the directory."""
    data_dir = settings.data_dir
    yield Finding(is_good=True, text=f"settings: {_settings(settings)}")
    start = _look("data directory", lambda: _data_dir(data_dir))
    yield start
    if not start.is_good:
        return
    keys = _look("keys and certificates", lambda: _keys(data_dir))
    yield keys
    yield _look("admin's context file", lambda: _context(data_dir / CONTEXT))
    database = _look("database", lambda: _database(data_dir / DATABASE, migrations))
    yield database
    yield _look("blobs", lambda: _blobs(data_dir / BLOBS))
    if keys.is_good and database.is_good:  # it is read with both
        yield _look("versions and data", lambda: _contents(data_dir))
    yield _look("free space", lambda: _space(data_dir))


def _look(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(is_good=True, text=f"{name}: {look()}")
    except ControllerError as exc:
        return Finding(is_good=False, text=f"{name}: " + "; ".join(t for t in (exc.what, exc.why, exc.remedy) if t))
    except OSError as exc:
        return Finding(is_good=False, text=f"{name}: {exc}")


def _settings(settings: ControllerSettings) -> str:
    """Return what is in force of what an operator sets, and from which files."""
    said = {
        "listen": settings.listen,
        "enrol_listen": settings.enrol_listen or "the next port",
        "http": settings.http or "off",
        "addresses": ", ".join(settings.addresses) or "from listen",
    }
    origin = " over ".join(str(file) for file in settings.files) or "the defaults"
    return "; ".join(f"{key} {value}" for key, value in said.items()) + f"; from {origin}"


def _data_dir(data_dir: Path) -> str:
    check_initialised(data_dir)
    mode = stat.S_IMODE(data_dir.stat().st_mode)
    if mode & 0o022:
        raise Refused("directory-exposed", f"others can write {data_dir}", f"its mode is {mode:o}", "chmod go-w it")
    return str(data_dir)


def _keys(data_dir: Path) -> str:
    keys = KeyRing.load(data_dir)
    return (
        f"controller {keys.controller_id}, release key {keys.release.key_id}, assignment key {keys.assignment.key_id}"
    )


def _context(path: Path) -> str:
    if not path.exists():
        return "not here, as it should be once it was handed out"
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Refused("key-exposed", f"others can read {path}", f"its mode is {mode:o}, limit 600", f"chmod 600 {path}")
    return f"{path.name} is here; move it to whoever administers"


def _database(path: Path, migrations: tuple[Migration, ...]) -> str:
    database = Database(path)
    try:
        damage = database.damage()
        if damage:
            raise StoreFailed("database-damaged", f"{path} is damaged", damage, "restore a backup")
        unknown = database.unknown_migrations(migrations)
        if unknown:
            raise Refused("database-newer", f"{path} was written by a newer controller", ", ".join(unknown[:5]))
    finally:
        database.close()
    return f"{path.name}, {path.stat().st_size} bytes, whole"


def _blobs(root: Path) -> str:
    blobs = BlobStore(root, is_owner=False)
    count = size = 0
    for digest in blobs.digests():
        blobs.verify(digest)
        count, size = count + 1, size + blobs.size(digest)
    return f"{count}, {size} bytes, every digest right"


def _contents(data_dir: Path) -> str:
    missing = lacking(data_dir)
    if missing:
        why = "; ".join(f"{name} lacks {what}" for name, what in list(missing.items())[:10])
        remedy = "vedette-controller restore BACKUP --blobs-from FOLDER, or train, register or import again"
        raise StoreFailed("blobs-missing", f"{len(missing)} versions or datasets are not whole", why, remedy)
    return "whole"


def lacking(data_dir: Path) -> dict[str, str]:
    """Return what versions and datasets lack in the blob store: ``MODEL:N`` or ``dataset NAME``, and what of it.

    Raises:
        ControllerError: Keys or database cannot be used.
    """
    blobs = BlobStore(data_dir / BLOBS, is_owner=False)
    database = Database(data_dir / DATABASE)
    try:
        versions, tables = RegistryStore(database, KeyRing.load(data_dir).release), DatasetStore(database)
        wanted = {version.version: _blobs_of(versions.release(version.version)) for version in versions.versions()}
        for dataset in tables.datasets():
            wanted[f"dataset {dataset.name}"] = {
                f"the rows of {part.file_name}": part.digest for part in tables.contents(dataset.name).parts
            }
    finally:
        database.close()
    found = {
        name: ", ".join(what for what, digest in parts.items() if not blobs.has(digest))
        for name, parts in wanted.items()
    }
    return {name: text for name, text in found.items() if text}


def _blobs_of(release: Release) -> dict[str, str]:
    others = {"its golden samples": release.golden, "its reference profile": release.reference}
    named = {what: blob.digest for what, blob in others.items() if blob}
    return {f"build {build.kind}": build.digest for build in release.builds} | named


def _space(data_dir: Path) -> str:
    free = shutil.disk_usage(data_dir).free
    if free < _LEAST_FREE_BYTES:
        why = f"{free} bytes are free, {_LEAST_FREE_BYTES} are wanted"
        raise Refused("disk-nearly-full", f"the disk of {data_dir} is nearly full", why, "free space")
    return f"{free} bytes"
