"""The content-addressed blob store: immutable files named by the SHA-256 of their bytes.

Rules: a blob appears whole or not at all (temp file, fsync, rename, fsync of the folder); writing one that is already
there changes nothing; every write has a size limit; a document is verified against its digest when it is read.
Usable from any thread.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from types import TracebackType

from vedette.controller.domain.disk import typed_os_errors
from vedette.controller.domain.errors import NotFound, StoreFailed, TooLarge
from vedette.models.release import MAX_BLOB_BYTES, Blob

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_COPY_BYTES = 1024 * 1024


class BlobStore:
    """Blobs under one folder.

    Args:
        root: The folder.
        is_owner: Whether leftovers of writes that never ended are removed: by the process that holds the data
            directory's lock, never by one that only looks.

    Raises:
        StoreFailed: The folder cannot be made or read.
    """

    def __init__(self, root: Path, *, is_owner: bool = True) -> None:
        self._root = root
        self._incoming = root / "incoming"
        if is_owner:
            self._sweep()

    def _sweep(self) -> None:
        with typed_os_errors(self._root):
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in self._incoming.iterdir():
                leftover.unlink()

    def writer(self, *, limit: int = MAX_BLOB_BYTES) -> BlobWriter:
        """Return a writer of one blob of at most ``limit`` bytes, to be used in a ``with`` block."""
        return BlobWriter(self, self._incoming, limit)

    def put(self, data: bytes | Iterable[bytes], *, limit: int = MAX_BLOB_BYTES) -> Blob:
        """Store bytes, or pieces of them in order, and return their name.

        Raises:
            TooLarge: They are more than ``limit``.
            DiskFull: There is no room.
        """
        with self.writer(limit=limit) as writer:
            for piece in (data,) if isinstance(data, bytes) else data:
                writer.write(piece)
            return writer.commit()

    def put_file(self, path: Path, *, limit: int = MAX_BLOB_BYTES) -> Blob:
        """Store a copy of a file and return its name.

        Raises:
            TooLarge: It is more than ``limit`` bytes.
            DiskFull: There is no room.
            StoreFailed: The file cannot be read.
        """
        with typed_os_errors(path), path.open("rb") as source:
            return self.put(iter(lambda: source.read(_COPY_BYTES), b""), limit=limit)

    def path(self, digest: str) -> Path:
        """Return where a blob lies, whether it is there or not.

        Raises:
            NotFound: The text is no digest.
        """
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise NotFound("blob-unknown", "there is no such blob", f"{digest[:80]!r} is no digest")
        return self._root / match[1][:2] / match[1]

    def has(self, digest: str) -> bool:
        """Return whether a blob is there."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Return a blob's bytes.

        Raises:
            NotFound: There is none.
        """
        with self._found(digest):
            return self.path(digest).stat().st_size

    def open(self, digest: str) -> BufferedReader:
        """Return a blob opened for reading; unverified, the reader checks it.

        Raises:
            NotFound: There is none.
        """
        with self._found(digest):
            return self.path(digest).open("rb")

    def read(self, digest: str, *, limit: int) -> bytes:
        """Return a blob's bytes, verified.

        Raises:
            NotFound: There is none.
            TooLarge: It has more than ``limit`` bytes.
            StoreFailed: The bytes are not those that were stored.
        """
        with self.open(digest) as source:
            data = source.read(limit + 1)
        if len(data) > limit:
            raise TooLarge("blob-too-large", f"blob {digest[:19]} is too large", f"over {limit} bytes")
        if digest != "sha256:" + hashlib.sha256(data).hexdigest():
            raise _damaged(digest)
        return data

    def verify(self, digest: str) -> None:
        """Check a blob's bytes against its name.

        Raises:
            NotFound: There is none.
            StoreFailed: The bytes are not those that were stored.
        """
        with self.open(digest) as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != digest.removeprefix("sha256:"):
                raise _damaged(digest)

    def digests(self) -> Iterator[str]:
        """Yield the name of every blob, sorted."""
        for path in sorted(self._root.glob("[0-9a-f][0-9a-f]/*")):
            yield "sha256:" + path.name

    def collect(self, keep: Collection[str], *, older_than: float) -> int:
        """Remove blobs that nothing names and return how many; a crash between a blob and its row leaves such.

        Args:
            keep: Every digest that any row names.
            older_than: Unix seconds; younger ones stay, for who restores a database of a moment ago.
        """
        removed = 0
        for digest in self.digests():
            path = self.path(digest)
            with typed_os_errors(path):
                if digest not in keep and path.stat().st_mtime < older_than:
                    path.unlink()
                    removed += 1
        return removed

    def adopt(self, temporary: Path, digest: str) -> None:
        """Give a finished, synced temporary file its name. For :class:`BlobWriter`."""
        target = self.path(digest)
        with typed_os_errors(target):
            if not target.parent.exists():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self._root)
            temporary.rename(target)
            sync_folder(target.parent)

    @contextmanager
    def _found(self, digest: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            raise NotFound("blob-unknown", "there is no such blob", digest) from exc


class BlobWriter:
    """Writes one blob. Leaving the block without :meth:`commit` leaves nothing behind."""

    def __init__(self, store: BlobStore, folder: Path, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._hash = hashlib.sha256()
        self.size = 0
        with typed_os_errors(folder):
            descriptor, name = tempfile.mkstemp(dir=folder)
        self._path = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            TooLarge: The blob would have more than its limit.
            DiskFull: There is no room.
        """
        self.size += len(piece)
        if self.size > self._limit:
            raise TooLarge("upload-too-large", "the upload is too large", f"over {self._limit} bytes")
        with typed_os_errors(self._path):
            self._hash.update(piece)
            self._file.write(piece)

    @property
    def digest(self) -> str:
        """Return the name that what was written so far would have."""
        return "sha256:" + self._hash.hexdigest()

    def commit(self) -> Blob:
        """Make the blob durable and return its name.

        Raises:
            DiskFull: There is no room.
        """
        with typed_os_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            os.fchmod(self._file.fileno(), 0o400)
            self._file.close()
        blob = Blob(self.digest, self.size)
        self._store.adopt(self._path, blob.digest)
        return blob

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)  # after a commit the file has its name elsewhere
        try:
            self._file.close()
        except OSError:  # what was buffered still finds no room; the error that ended the block says so already
            logger.debug("closing %s after a failed write", self._path, exc_info=True)


def make_folder(folder: Path) -> None:
    """Make a folder for the owner alone, with those above it, so that what is stored in it survives a power cut.

    A file that is synced in a folder whose own name is not can go with the folder.
    """
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: after a power cut ext4 may otherwise still show the old ones."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(digest: str) -> StoreFailed:
    why = f"the bytes of {digest} are not those that were stored"
    return StoreFailed("blob-damaged", "a blob is damaged", why, "vedette-controller check --config FILE lists all")
