"""The system user that a packaged controller runs as.

Rules: what root does to a controller's files it does as the user they belong to, from before the first write, so that
nothing of root's is ever left among them. The change is for a program with one verb to do and cannot be undone, except
where that was asked for: to open what only root may read, :func:`as_who_asked`.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vedette.controller.adapters.blobs import make_folder
from vedette.controller.domain.disk import typed_os_error
from vedette.controller.domain.errors import Refused

SERVICE_USER = "vedette-controller"


def service_user() -> pwd.struct_passwd | None:
    """Return the service user of a packaged host, None on any other."""
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None


def become_service_user(data_dir: Path, *, may_return: bool = False) -> None:
    """Act as the service user from now on; its data directory is made if it is missing.

    Args:
        data_dir: The directory.
        may_return: Whether :func:`as_who_asked` shall work.

    Raises:
        Refused: Neither root nor the service user asks, or there is no such user.
        StoreFailed: The directory cannot be made.
    """
    user = service_user()
    if user is None:
        raise Refused("user-missing", f"there is no user {SERVICE_USER}", "the package makes it", "install the package")
    if os.geteuid() == user.pw_uid:
        return
    if os.geteuid() != 0:
        why = f"you are user {os.geteuid()}"
        raise Refused("not-permitted", f"{data_dir} belongs to {SERVICE_USER}", why, "run it as root: sudo …")
    try:
        if not data_dir.exists():
            make_folder(data_dir)
            os.chown(data_dir, user.pw_uid, user.pw_gid)
    except OSError as exc:
        raise typed_os_error(exc, data_dir) from exc
    _become(user.pw_uid, user.pw_gid, may_return=may_return)


def become_owner(data_dir: Path, *, may_return: bool = False) -> None:
    """Let root act as the owner of a data directory from now on; anybody else stays who they are.

    Args:
        data_dir: The directory.
        may_return: Whether :func:`as_who_asked` shall work.

    Raises:
        StoreFailed: The directory cannot be looked at.
    """
    try:
        found = data_dir.stat()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise typed_os_error(exc, data_dir) from exc
    if os.geteuid() == 0 and found.st_uid != 0:
        _become(found.st_uid, found.st_gid, may_return=may_return)


@contextmanager
def as_who_asked() -> Iterator[None]:
    """Be root again inside the block, where root asked and there is a way back; else nothing happens."""
    _, acting, saved = os.getresuid()
    if saved == acting:
        yield
        return
    os.seteuid(saved)
    try:
        yield
    finally:
        os.seteuid(acting)


def _become(uid: int, gid: int, *, may_return: bool) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, os.geteuid() if may_return else uid)
    os.umask(0o077)
