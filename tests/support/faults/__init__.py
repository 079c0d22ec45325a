"""Writes that fail as on a full or dying disk, the k-th one or all from it on, in the real program."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from tests.support.preload import compiled

_SOURCE = Path(__file__).with_name("shim.c")
_TABLE = struct.Struct("=QQQQqQ128s")  # calls, from, to, failed, error, unreadable, first
_EVER = 2**64 - 1


class Faults:
    """What fails below a folder, for programs whose environment holds :attr:`environment`; changed while they run.

    Args:
        root: The folder.
        place: A folder elsewhere for the table and the compiled shim.
    """

    def __init__(self, root: Path, place: Path) -> None:
        table = place / "faults"
        table.write_bytes(bytes(_TABLE.size))
        with table.open("r+b") as file:
            self._table = mmap.mmap(file.fileno(), _TABLE.size)
        self.environment = {
            "LD_PRELOAD": str(compiled(_SOURCE, place / "faults.so", "lets writes fail")),
            "FAULTS_ROOT": str(root.resolve()),
            "FAULTS_TABLE": str(table.resolve()),
        }

    @property
    def calls(self) -> int:
        """How many calls were counted."""
        return int(_TABLE.unpack_from(self._table)[0])

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return int(_TABLE.unpack_from(self._table)[3])

    @property
    def first(self) -> str:
        """The first call that failed and its path."""
        return str(_TABLE.unpack_from(self._table)[6].rstrip(b"\0").decode())

    def begin(self, first: int, error: int, *, most: int | None = None) -> None:
        """Count anew, and fail the call of a number, counted from 1, and those after it, ``most`` in all."""
        end = _EVER if most is None else first + most
        _TABLE.pack_into(self._table, 0, 0, first, end, 0, error, 0, b"")

    def free(self) -> None:
        """Let every call succeed from now on."""
        struct.pack_into("=Q", self._table, 16, 0)

    def unreadable(self, path: Path) -> None:
        """Let a file be read no more, also under another name."""
        struct.pack_into("=Q", self._table, 40, path.stat().st_ino)
