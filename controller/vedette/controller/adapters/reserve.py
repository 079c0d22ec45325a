"""Room kept for a start on a full disk.

A controller that runs needs none to serve on: agents stay connected, and what must be stored is refused until there is
room. But a start makes SQLite's log and index and some folders anew. So a reserve lies in the data directory; a start
on a disk that is nearly full gives it up, and takes back at once what it did not need, for the next start.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vedette.controller.domain.disk import typed_os_errors

logger = logging.getLogger(__name__)

RESERVE_BYTES = 4 * 1024 * 1024
"""As much as SQLite's log grows to before it is folded in; a start was seen to need a tenth of it."""
_LEAST_BYTES = 256 * 1024
_LEFT_BYTES = 64 * 1024  # for what a running server must still be able to say


class Reserve:
    """The reserve of a data directory. Belongs to the process that holds its lock."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "controller.db.reserve"

    def give_if_needed(self) -> bool:
        """Give the room up if the disk is nearly full; return whether it was.

        Raises:
            StoreFailed: The data directory cannot be looked at.
        """
        with typed_os_errors(self._path):
            if self._free() >= RESERVE_BYTES or not self._path.exists():
                return False
            os.truncate(self._path, 0)  # the empty file says that there was one
        logger.warning("the disk of %s is full; the reserve is given up for this start", self._path.parent)
        return True

    def take_back(self) -> None:
        """Keep the whole room, or what is left of the one that was given up for this start."""
        self.take()
        if self._path.exists() and self._path.stat().st_size == 0:
            self._grow(min(RESERVE_BYTES, self._free() - _LEFT_BYTES))

    def take(self) -> None:
        """Keep the whole room if the disk has twice as much: it is not taken from what somebody just freed."""
        if self._free() >= 2 * RESERVE_BYTES:
            self._grow(RESERVE_BYTES)

    def _grow(self, size: int) -> None:
        if size < _LEAST_BYTES:
            return
        try:
            self._path.touch(mode=0o600)
            with self._path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as exc:
            logger.warning("no reserve for a start on a full disk: %s: %s", self._path, exc.strerror)
            self._path.unlink(missing_ok=True)

    def _free(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize
