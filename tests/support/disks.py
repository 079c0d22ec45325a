"""A small real disk that can be filled to the last byte. Needs root."""

from __future__ import annotations

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
