"""Makes the data directory of a new controller.

Rules: a directory that holds a controller is never touched; one whose initialisation was cut (its marker is still
there) is swept and made anew, nothing was handed out from it yet; the marker goes last.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from vedette.controller.adapters.blobs import BlobStore, make_folder, sync_folder
from vedette.controller.adapters.clock import SystemClock
from vedette.controller.adapters.keys import create_keys, write_file
from vedette.controller.adapters.pki import identity_of
from vedette.controller.adapters.sqlite.database import Database, Migration
from vedette.controller.adapters.sqlite.tokens import AdminStore
from vedette.controller.context import AdminContext
from vedette.controller.domain.disk import typed_os_error, typed_os_errors
from vedette.controller.domain.errors import AlreadyThere, Refused
from vedette.controller.settings import LEARNT

MARKER = ".initialising"
COMMITTED = "restore.committed"
"""There while a restore that was decided is carried to its end."""
CONFIG = LEARNT
CONTEXT = "admin.toml"
DATABASE = "controller.db"
BLOBS = "blobs"
FIRST_ADMIN = "admin"
_VOLUMES_OWN = "lost+found"
"""In the root folder of an ext4 volume, which a data directory may well be."""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was made."""

    data_dir: Path
    controller_id: str
    config: Path
    context: Path
    ca_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a new controller shall be."""

    data_dir: Path
    listen: str
    enrol_listen: str
    addresses: tuple[str, ...]  # told to agents
    admin_address: str  # in the first admin's context
    names: tuple[str, ...] = ()  # further ones in the server certificate


def initialise(plan: Plan, migrations: tuple[Migration, ...]) -> Initialised:
    """Make keys, certificates, database, blob store, settings and the first admin's context.

    Raises:
        AlreadyThere: The directory holds a controller, or anything else.
        InvalidInput: A name cannot be in a certificate.
        DiskFull: There is no room; the next call starts over.
        StoreFailed: Something cannot be written.
    """
    data_dir = plan.data_dir
    try:
        _claim(data_dir)
        controller_id = "c-" + secrets.token_hex(8)
        authority = create_keys(data_dir, controller_id, list(plan.names))
        BlobStore(data_dir / BLOBS)
        credential = authority.issue_admin(FIRST_ADMIN)
        _create_database(data_dir / DATABASE, identity_of(credential.certificate).key_digest, migrations)
        context = AdminContext(
            name=FIRST_ADMIN,
            address=plan.admin_address,
            ca=authority.pem.decode(),
            certificate=credential.certificate.decode(),
            key=credential.key.decode(),
        )
        write_file(data_dir / CONTEXT, context.to_toml().encode(), mode=0o600)
        write_file(data_dir / CONFIG, _config(plan).encode(), mode=0o644)
        (data_dir / MARKER).unlink()
        sync_folder(data_dir)
    except OSError as exc:
        raise typed_os_error(exc, data_dir) from exc
    return Initialised(data_dir, controller_id, data_dir / CONFIG, data_dir / CONTEXT, authority.digest)


def check_initialised(data_dir: Path) -> None:
    """Check that a data directory holds a whole controller.

    Raises:
        Refused: It holds none, or one whose initialisation was cut.
        StoreFailed: It cannot be looked at.
    """
    remedy = f"vedette-controller init --data-dir {data_dir}"
    with typed_os_errors(data_dir):
        _check_initialised(data_dir, remedy)


def _check_initialised(data_dir: Path, remedy: str) -> None:
    if (data_dir / MARKER).exists():
        raise Refused("init-cut", f"{data_dir} was not initialised to the end", "init was interrupted", remedy)
    if (data_dir / COMMITTED).exists():
        remedy = "systemctl start vedette-controller, or vedette-controller serve, finishes it"
        raise Refused("restore-cut", f"a restore of {data_dir} has not ended", "it was interrupted", remedy)
    if not (data_dir / DATABASE).exists():
        raise Refused("not-initialised", f"{data_dir} holds no controller", f"{DATABASE} is missing", remedy)


def _claim(data_dir: Path) -> None:
    make_folder(data_dir)
    present = sorted(path.name for path in data_dir.iterdir() if path.name != _VOLUMES_OWN)
    if MARKER in present:
        for name in present:
            if name != MARKER:
                delete(data_dir / name)
    elif DATABASE in present:
        remedy = f"vedette-controller serve --config {data_dir / CONFIG} runs it"
        raise AlreadyThere("already-initialised", f"{data_dir} holds a controller already", remedy=remedy)
    elif present:
        why = f"it contains {', '.join(present[:5])}{' …' if len(present) > 5 else ''}"
        raise AlreadyThere("directory-not-empty", f"{data_dir} is not empty", why, "choose an empty or new directory")
    data_dir.chmod(0o700)
    (data_dir / MARKER).touch(mode=0o600)
    sync_folder(data_dir)


def delete(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _create_database(path: Path, admin_key_digest: str, migrations: tuple[Migration, ...]) -> None:
    database = Database(path)
    try:
        database.migrate(migrations)
        AdminStore(database).add(FIRST_ADMIN, admin_key_digest, SystemClock().now())
    finally:
        database.close()


def _config(plan: Plan) -> str:
    addresses = ", ".join(f'"{address}"' for address in plan.addresses)
    return (
        "# Settings of this controller; vedette-controller serve --help lists every key.\n"
        'data_dir = "."\n'
        f'listen = "{plan.listen}"\n'
        f'enrol_listen = "{plan.enrol_listen}"\n'
        'http = "127.0.0.1:7480"\n'
        f"addresses = [{addresses}]\n"
    )
