"""What a failed read or write of a file means to a caller."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vedette.controller.domain.errors import ControllerError, DiskFull, StoreFailed

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(exc: OSError) -> bool:
    """Return whether a write failed because space, or a quota, ran out."""
    return exc.errno in _FULL


def disk_full(where: str) -> DiskFull:
    """Return the error of a write that found no room."""
    remedy = "free space on the controller's disk; the request may be repeated"
    return DiskFull("disk-full", "the controller has no room to store this", where, remedy)


def typed_os_error(exc: OSError, path: Path) -> ControllerError:
    """Return our error for a failed write or read of a file."""
    if is_disk_full(exc) or exc.errno == errno.EFBIG:  # LimitFSIZE= of a service is a limit of room too
        return disk_full(f"{path}: {exc.strerror}")
    why = f"{exc.filename or path}: {exc.strerror or exc}"
    remedy = "run it as root, sudo …, or as who owns the file" if exc.errno == errno.EACCES else ""
    return StoreFailed("file-failed", "a file of the controller failed", why, remedy)


@contextmanager
def typed_os_errors(path: Path) -> Iterator[None]:
    """Turn every OSError of a block into ours.

    Raises:
        DiskFull: There was no room.
        StoreFailed: The file failed otherwise.
    """
    try:
        yield
    except OSError as exc:
        raise typed_os_error(exc, path) from exc
