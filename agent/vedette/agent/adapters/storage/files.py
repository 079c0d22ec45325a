"""Files that are whole or absent, also after a power cut, and never read beyond a limit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vedette.agent.domain.errors import AgentError, DiskFull


class FileTooLarge(AgentError):
    """A file is larger than its kind may be."""


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Replace a file's content so that a reader, or a restart, finds the old or the new one, whole.

    Raises:
        DiskFull: No space is left; the old content stays.
        OSError: Anything else the file system refuses.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)  # a file left by a killed process keeps its own mode
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as exc:
        fresh.unlink(missing_ok=True)
        if is_disk_full(exc):
            raise DiskFull(f"no space left for {path} ({len(data)} bytes): {exc.strerror}") from exc
        raise


def make_folder(folder: Path) -> None:
    """Make a folder for the owner alone, with those above it, so that what is stored in it survives a power cut.

    A file that is synced in a folder whose own name is not can go with the folder.
    """
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder last: after a power cut ext4 may otherwise still show the old name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, limit: int) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: There is none.
        FileTooLarge: It has more than ``limit`` bytes.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FileTooLarge(f"{path} has more than {limit} bytes, the limit of its kind")
    return data


def is_disk_full(exc: OSError) -> bool:
    """Return whether a write failed because space, or a quota, ran out."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT)
