"""The lock of a data directory: one process serves it, or restores it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vedette.controller.adapters.initialise import check_initialised
from vedette.controller.domain.disk import typed_os_error
from vedette.controller.domain.errors import Refused

_LOCK = "controller.lock"


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the lock of a data directory.

    Raises:
        Refused: There is no such directory, or another process holds it.
        StoreFailed: The lock's file cannot be opened.
        DiskFull: There is no room for it.
    """
    path = data_dir / _LOCK
    try:
        lock = path.open("a")
    except FileNotFoundError:
        check_initialised(data_dir)
        raise
    except OSError as exc:
        raise typed_os_error(exc, path) from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go however this process ends
        except BlockingIOError as exc:
            what, remedy = f"another controller serves {data_dir}", "stop it first: systemctl stop vedette-controller"
            raise Refused("already-running", what, f"{path} is locked", remedy) from exc
        yield
