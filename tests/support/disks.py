"""Small real disks that can be filled to the last byte, or fail as disks do. Need root."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BALLAST = "ballast"


@contextmanager
def full_disk(folder: Path, size: str = "4m") -> Iterator[Callable[[], None]]:
    """Mount a disk of a size at a folder and yield what fills it with a file, :data:`BALLAST`, or tops that up."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda: _fill(folder / BALLAST)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("ab", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


_EXT4_IOC_SHUTDOWN = 0x8004587D  # fs/ext4/ext4.h: _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2


class FailingDisk:
    """An ext4 disk in a file, mounted at a folder, that can become read-only, fail, and be replaced by a mended one."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self._image = image
        self._generation = 0
        self._mounts = 0

    def mount(self) -> None:
        """Mount the disk."""
        self.folder.mkdir(exist_ok=True)
        options = "loop,errors=remount-ro"
        subprocess.run(["mount", "-t", "ext4", "-o", options, str(self._image), str(self.folder)], check=True)
        self._mounts += 1

    def mount_read_only(self) -> None:
        """Mount the disk as one that was read-only from the start, and may be made writable."""
        self.mount()  # first writable: the kernel would make the loop device itself read-only for ever
        self.remount("ro")

    def unmount(self) -> None:
        """Unmount what is mounted last, whoever uses it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        self._mounts -= 1

    def remount(self, option: str) -> None:
        """Change how it is mounted: ``rw``, or ``abort``, as the kernel does after an error of the disk."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)

    def fail(self) -> None:
        """Let every read and write of the disk fail from now on; what is cached may still be read."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def mend(self) -> None:
        """Mount a checked copy of what reached the disk in its place."""
        self._generation += 1
        copy = self._image.with_name(f"{self._image.name}.{self._generation}")
        subprocess.run(["cp", "--sparse=always", str(self._image), str(copy)], check=True)
        self.unmount()
        self._image = copy
        subprocess.run(["e2fsck", "-fy", str(copy)], check=False, capture_output=True)  # 1 is: mended
        self.mount()

    def remove(self) -> None:
        """Unmount it."""
        while self._mounts:
            self.unmount()


@contextmanager
def failing_disk(folder: Path, size: str = "64M") -> Iterator[FailingDisk]:
    """Make and mount such a disk; its file lies beside the folder."""
    image = folder.with_name(f"{folder.name}.image")
    subprocess.run(["truncate", "-s", size, str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    disk = FailingDisk(folder, image)
    disk.mount()
    try:
        yield disk
    finally:
        disk.remove()
