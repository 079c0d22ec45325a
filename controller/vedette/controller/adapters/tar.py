"""A tar file of plain files, written and read front to back.

The reader is for files from anywhere: it takes one header block at a time and knows plain files only. Links, folders,
long names and extended headers, whose sizes a library would believe, are refused; nothing is written by it.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from vedette.controller.domain.backup import invalid_backup

_BLOCK = tarfile.BLOCKSIZE
_COPY_BYTES = 1 << 20


def add_member(target: BinaryIO, name: str, size: int, source: BinaryIO, told: Callable[[int], None]) -> str:
    """Write one file of exactly ``size`` bytes and return the SHA-256 of what was written, hexadecimal.

    Args:
        target: The tar file.
        name: At most 100 ASCII characters.
        size: Bytes of the file.
        source: Its content; more than ``size`` is left unread.
        told: Told of bytes as they are written.

    Raises:
        ValueError: The source ends early.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    target.write(info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict"))
    digest = hashlib.sha256()
    left = size
    while left:
        piece = source.read(min(left, _COPY_BYTES))
        if not piece:
            raise ValueError(f"{name} ends {left} bytes early")
        digest.update(piece)
        target.write(piece)
        told(len(piece))
        left -= len(piece)
    target.write(bytes(-size % _BLOCK))
    return digest.hexdigest()


def end_archive(target: BinaryIO) -> None:
    """Write the end mark, two empty blocks."""
    target.write(bytes(2 * _BLOCK))


class Entry:
    """One file of an archive that is being read; it must be read to its end before the next one."""

    def __init__(self, name: str, size: int, source: BinaryIO) -> None:
        self.name = name
        self.size = size
        self._source = source
        self._left = size
        self._digest = hashlib.sha256()

    def pieces(self) -> Iterator[bytes]:
        """Yield the content.

        Raises:
            InvalidInput: The archive ends within it.
        """
        while self._left:
            piece = self._source.read(min(self._left, _COPY_BYTES))
            if not piece:
                raise invalid_backup(f"it ends within {self.name}, {self._left} bytes early")
            self._left -= len(piece)
            self._digest.update(piece)
            yield piece
        self._source.read(-self.size % _BLOCK)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of what was read, hexadecimal."""
        return self._digest.hexdigest()


def entries(source: BinaryIO) -> Iterator[Entry]:
    """Yield the files of an archive in order; each must be read before the next is asked for.

    Raises:
        InvalidInput: It is no tar file, is cut, or has anything but plain files.
    """
    while True:
        header = source.read(_BLOCK)
        if len(header) < _BLOCK:
            raise invalid_backup("it is cut, or no tar file")
        if header == bytes(_BLOCK):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as exc:
            raise invalid_backup(f"it is no tar file, or damaged: {exc}") from exc
        if info.type != tarfile.REGTYPE or info.size < 0:
            raise invalid_backup(f"{info.name[:80]!r} is no plain file")
        yield Entry(info.name, info.size, source)
