"""The appliance's content-addressed files: ``sha256/<hex>`` whole ones, ``partial/<hex>`` downloads in progress.

A file is believed because of its digest, checked on every read that matters, never because of its name: a bit may flip
on the disk at any time. What goes to a worker is a sealed copy in memory that was hashed as it was copied, so that the
checked bytes and the loaded bytes are the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from vedette.agent.adapters.storage.files import make_folder
from vedette.agent.domain.errors import BlobCorrupt, DiskFull, SpawnFailed, StateError, StateReadOnly
from vedette.models.release import Blob

logger = logging.getLogger(__name__)

_CHUNK = 1024 * 1024
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FAILING = (errno.EROFS, errno.EIO, errno.EUCLEAN)  # the last: ext4 found its own tables damaged
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Blobs:
    """The files under one folder.

    Raises:
        StateError: The folders cannot be made; on a disk that is full or takes no writes they are made later.
    """

    def __init__(self, root: Path) -> None:
        self._whole = root / "sha256"
        self._partial = root / "partial"
        with suppress(StateReadOnly, DiskFull):
            self.make_folders()

    def make_folders(self) -> None:
        """Make the folders where they are missing. Raises as the class, and StateReadOnly and DiskFull."""
        for folder in (self._whole, self._partial):
            try:
                make_folder(folder)
            except OSError as exc:
                raise storage_error(exc, folder) from exc

    def path(self, digest: str) -> Path:
        """Return where a whole file lies, there or not."""
        return self._whole / digest.removeprefix("sha256:")

    def partial_path(self, digest: str) -> Path:
        """Return where a download in progress lies, there or not."""
        return self._partial / digest.removeprefix("sha256:")

    def bytes_done(self, blob: Blob) -> int:
        """Return how many bytes of a file are on the disk, whole or in progress."""
        for path in (self.path(blob.digest), self.partial_path(blob.digest)):
            try:
                return min(path.stat().st_size, blob.size)
            except OSError:
                continue
        return 0

    def is_whole(self, blob: Blob) -> bool:
        """Return whether a file is there with its size and digest; one that is not right is removed.

        Raises:
            SpawnFailed: The host would not open it.
        """
        try:
            self._copy(blob, lambda _: None)
        except BlobCorrupt as exc:
            logger.debug("%s", exc)
            if self.path(blob.digest).is_file():
                _remove(self.path(blob.digest))
            return False
        return True

    def read(self, blob: Blob) -> bytes:
        """Return a file's bytes, digest checked.

        Raises:
            BlobCorrupt: It is absent, unreadable, or not of its size and digest.
            SpawnFailed: The host would not open it.
        """
        parts: list[bytes] = []
        self._copy(blob, parts.append)
        return b"".join(parts)

    def sealed(self, blob: Blob) -> int:
        """Return the descriptor of a sealed copy in memory, digest checked. The caller closes it.

        Raises:
            BlobCorrupt: As :meth:`read`.
            SpawnFailed: The host would not open it, or has no memory for it.
        """
        try:
            descriptor = os.memfd_create("vedette-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as exc:
            raise SpawnFailed(f"no memory file for a model: {exc}") from exc
        try:
            with open(descriptor, "wb", closefd=False) as copy:
                self._copy(blob, copy.write)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _copy(self, blob: Blob, take: Callable[[bytes], object]) -> None:
        path = self.path(blob.digest)
        hasher, left = hashlib.sha256(), blob.size
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as source:
                # One byte more than the size is enough to know that the file is too long.
                while part := source.read(min(_CHUNK, left + 1)):
                    left -= len(part)
                    if left < 0:
                        raise BlobCorrupt(f"{path} is longer than {blob.size} bytes")
                    hasher.update(part)
                    take(part)
        except OSError as exc:
            if exc.errno in _SHORT:  # says nothing of the file: a good build must not fall for it
                raise SpawnFailed(f"{path} cannot be read now: {exc.strerror}") from exc
            raise BlobCorrupt(f"{path} cannot be read: {exc.strerror or exc}") from exc
        found = "sha256:" + hasher.hexdigest()
        if left or found != blob.digest:
            raise BlobCorrupt(f"{path} is {blob.size - left} bytes with digest {found}, expected {blob.size} bytes")

    def used(self, blob: Blob) -> None:
        """Remember that a file was used now; by the host's clock, so only an order, and one that may be wrong."""
        with suppress(OSError):  # gone, or on a disk that takes no writes
            os.utime(self.path(blob.digest))

    def collect(self, keep: Collection[str], most_bytes: int = 0, drop: Collection[str] = ()) -> int:
        """Remove files whose digest need not be kept until all take at most so many bytes; return how many that freed.

        The longest unused go first; downloads in progress, and files to be dropped, go in any case. A file that cannot
        be removed is left for the next time.
        """
        names = {digest.removeprefix("sha256:") for digest in keep}
        useless = {digest.removeprefix("sha256:") for digest in drop} - names
        freed = sum(_remove(path) for path, _ in self._found(self._partial) if path.name not in names)
        freed += sum(_remove(path) for path, _ in self._found(self._whole) if path.name in useless)
        kept = sum(stat.st_size for _, stat in self._found(self._partial))
        found = self._found(self._whole)
        over = kept + sum(stat.st_size for _, stat in found) - most_bytes
        for path, _ in sorted(found, key=_last_use):
            if over <= 0:
                break
            if path.name not in names:
                gone = _remove(path)
                freed, over = freed + gone, over - gone
        return freed

    def _found(self, folder: Path) -> list[tuple[Path, os.stat_result]]:
        found = []
        try:
            for path in sorted(folder.iterdir()):
                with suppress(FileNotFoundError):  # a download that was finished at this moment
                    found.append((path, path.lstat()))
        except OSError as exc:
            logger.warning("%s cannot be read: %s", folder, exc)
        return found


def _last_use(found: tuple[Path, os.stat_result]) -> int:
    return found[1].st_mtime_ns


def _remove(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except OSError as exc:
        logger.warning("%s cannot be removed: %s", path, exc)
        return 0
    return size


def storage_error(exc: OSError, path: Path) -> DiskFull | StateError:
    """Return the typed error of a failed write: full, or broken otherwise; it names the path."""
    if exc.errno in _FULL:
        return DiskFull(f"no room to write {path}: {exc.strerror}")
    if exc.errno in _FAILING:
        return StateReadOnly(f"{path} cannot be written: {exc.strerror}; mount the disk writable, or replace it")
    return StateError(f"{path} cannot be written: {exc.strerror or exc}")
