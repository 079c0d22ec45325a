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
from vedette.controller.domain.errors import ControllerError, Refused, StoreFailed
from vedette.controller.settings import ControllerSettings

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
    yield _look("keys and certificates", lambda: _keys(data_dir))
    yield _look("admin's context file", lambda: _context(data_dir / CONTEXT))
    yield _look("database", lambda: _database(data_dir / DATABASE, migrations))
    yield _look("blobs", lambda: _blobs(data_dir / BLOBS))
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


def _space(data_dir: Path) -> str:
    free = shutil.disk_usage(data_dir).free
    if free < _LEAST_FREE_BYTES:
        why = f"{free} bytes are free, {_LEAST_FREE_BYTES} are wanted"
        raise Refused("disk-nearly-full", f"the disk of {data_dir} is nearly full", why, "free space")
    return f"{free} bytes"
