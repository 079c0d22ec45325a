"""A disk of a size of its own for a host: ext4 on a file, mounted from outside and bound into the host.

A power cut of such a disk is real as far as the kernel's caches go. The host's processes are killed at once, then the
file behind the disk is copied before anything is synced or unmounted, and the host goes on with the copy: what the
file system had only in memory is lost, and its journal is replayed. Writing back is put off (``commit=300``), so that
little arrives by itself. Not simulated: a disk that loses or reorders what the kernel has already handed to it, and
sectors torn in half; the tests of power cuts by log replay do that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab.commands import execute
from tests.lab.ground import unmount

_OPTIONS = "loop,commit=300,noatime"
_BALLAST = ".ballast"
_TAIL_BYTES = 4096


@dataclass(slots=True)
class Volume:
    """A disk of one host."""

    folder: Path
    path: str
    size: str
    has_failed: bool = False

    @property
    def mounted(self) -> Path:
        """Where it is mounted on this machine."""
        return self.folder / "mounted"

    @property
    def _disk(self) -> Path:
        return self.folder / "disk"

    def make(self, like: Path) -> None:
        """Make the file system and mount it, with owner, mode and content of a folder that it hides."""
        self.mounted.mkdir(parents=True)
        execute(["truncate", "--size", self.size, str(self._disk)])
        # -m 0: without root's reserve "full" is the same for every user.
        execute(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._disk)])
        self.mount()
        if like.is_dir():
            execute(["cp", "--archive", "--no-target-directory", str(like), str(self.mounted)])
            # It was there long before the host's first boot, so no power cut may take it.
            execute(["sync", "--file-system", str(self.mounted)])

    def mount(self) -> None:
        """Mount it; a journal that was cut is replayed."""
        execute(["mount", "-o", _OPTIONS, str(self._disk), str(self.mounted)])

    def fill(self, spare_bytes: int = 0) -> None:
        """Fill it to the last byte, or leave so many free; a second call tops it up."""
        ballast = self.mounted / _BALLAST
        have = ballast.stat().st_size if ballast.exists() else 0
        room = os.statvfs(self.mounted)
        want = max(0, room.f_bavail * room.f_frsize - spare_bytes)
        execute(["fallocate", "--offset", str(have), "--length", str(want or 1), str(ballast)], check=False)
        if not spare_bytes:
            _append_until_full(ballast)

    def free(self) -> None:
        """Take the ballast off again."""
        (self.mounted / _BALLAST).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return how much a program may still write."""
        room = os.statvfs(self.mounted)
        return room.f_bavail * room.f_frsize

    def fail(self) -> None:
        """Make it read-only at once, open files too, as after a disk error; the host's next boot repairs it."""
        execute(["mount", "-o", "remount,abort", str(self.mounted)])
        self.has_failed = True

    def repair(self) -> None:
        """Check and mount it again, as the boot after a failure does; the host must be down."""
        unmount(self.mounted)
        execute(["e2fsck", "-p", str(self._disk)], check=False)  # 1 says that it repaired something
        self.mount()
        self.has_failed = False

    def cut(self) -> None:
        """Lose what was not written to the disk; the host must have been killed."""
        after = self.folder / "disk-after"
        execute(["cp", "--sparse=always", str(self._disk), str(after)])
        unmount(self.mounted)
        after.replace(self._disk)
        self.mount()


def _append_until_full(path: Path) -> None:
    try:
        with path.open("ab", buffering=0) as file:
            while file.write(bytes(_TAIL_BYTES)):
                pass
    except OSError:
        return  # that is the point
