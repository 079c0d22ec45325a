"""``vedette-controller admin``: a way back in when the admin's context is lost, and out for whoever else has it.

Whoever may read the data directory may do this, and nobody else: it needs the key of the certificate authority. The
controller must be stopped, so that the former certificate is worth nothing from the first call of its next start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vedette.controller.adapters.blobs import sync_folder
from vedette.controller.adapters.clock import SystemClock
from vedette.controller.adapters.initialise import CONTEXT, DATABASE, FIRST_ADMIN, check_initialised
from vedette.controller.adapters.keys import KeyRing, write_file
from vedette.controller.adapters.lock import locked
from vedette.controller.adapters.pki import identity_of
from vedette.controller.adapters.restore import finish_restore
from vedette.controller.adapters.service_user import become_owner
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.sqlite.tokens import AdminStore
from vedette.controller.context import AdminContext
from vedette.controller.domain.disk import typed_os_errors
from vedette.controller.domain.errors import Refused
from vedette.controller.recovery import confirm
from vedette.controller.settings import ControllerSettings, advertised, is_wildcard
from vedette.models.toml_settings import SettingsError, parse_address


def renew_admin(settings: ControllerSettings, *, is_sure: bool) -> Iterator[str]:
    """Make the first admin's certificate anew and yield the words to print.

    Raises:
        ControllerError: The former certificate counts on, unless it says that the database holds the new one; the
            same command again finishes it.
    """
    data_dir = settings.data_dir
    become_owner(data_dir)
    if data_dir.exists() and not os.access(data_dir, os.W_OK | os.X_OK):
        why = f"you are user {os.geteuid()}"
        raise Refused("not-permitted", f"{data_dir} is not yours to change", why, "run it as root: sudo …")
    with locked(data_dir), typed_os_errors(data_dir):
        finish_restore(data_dir)
        check_initialised(data_dir)
        yield f"It makes a new certificate for the admin of {data_dir}; every copy of the former context is void then."
        confirm("Make it anew?", is_sure=is_sure)
        context = _issued(settings)
    yield (
        f"{context} is the admin's context now.\n\nNext:\n"
        f"  systemctl start vedette-controller\n  vedette login {context}\n"
        f"An admin who is not root gets a copy in place of the former one:\n"
        f"  install -m 600 -o USER {context} ~USER/admin.toml"
    )


def _issued(settings: ControllerSettings) -> Path:
    data_dir, path = settings.data_dir, settings.data_dir / CONTEXT
    keys = KeyRing.load(data_dir)
    credential = keys.authority.issue_admin(FIRST_ADMIN)
    context = AdminContext(
        name=FIRST_ADMIN,
        address=_address(settings),
        ca=keys.authority.pem.decode(),
        certificate=credential.certificate.decode(),
        key=credential.key.decode(),
    )
    # In this order: a power cut between the steps leaves the former context, or the command to be repeated.
    waiting = path.with_name(f"{CONTEXT}.new")
    waiting.unlink(missing_ok=True)
    write_file(waiting, context.to_toml().encode(), mode=0o600)
    database = Database(data_dir / DATABASE)
    try:
        digest = identity_of(credential.certificate).key_digest
        AdminStore(database).replace(FIRST_ADMIN, digest, SystemClock().now())
    finally:
        database.close()
    waiting.rename(path)
    sync_folder(data_dir)
    return path


def _address(settings: ControllerSettings) -> str:
    """Return where the admin connects to: as the former context says, else as agents do."""
    try:
        return AdminContext.load(settings.data_dir / CONTEXT).address
    except SettingsError:
        host, port = parse_address(settings.listen)
        usual = f"127.0.0.1:{port}" if is_wildcard(host) else advertised(settings.listen)[0]
        return next(iter(settings.addresses), usual)
