"""OpenMP's runtime for LightGBM on a host that has none.

LightGBM's wheel links to the system's ``libgomp.so.1``, which a minimal Debian lacks (package libgomp1); scikit-learn's
wheel carries one under a name of its own. A link by the expected name, in a folder on the loader's path, serves both.
The loader reads its path when a process starts, so this is for children that are yet to be started.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

_NAME = "libgomp.so.1"


def library_path(place: Path) -> str | None:
    """Return what ``LD_LIBRARY_PATH`` must be in a child that loads LightGBM; None when nothing is missing.

    Args:
        place: A folder for the link, made when it is needed.
    """
    bundled = None if _system_has_it() else _bundled()
    if bundled is None:
        return None  # without either, LightGBM's own error names the missing library
    place.mkdir(parents=True, exist_ok=True)
    link = place / _NAME
    if not link.exists():
        link.unlink(missing_ok=True)  # it may point to what an upgrade removed
        link.symlink_to(bundled)
    return os.pathsep.join([str(place), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def _system_has_it() -> bool:
    try:
        ctypes.CDLL(_NAME)
    except OSError:
        return False
    return True


def _bundled() -> Path | None:
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted((Path(found.origin).parents[1] / "scikit_learn.libs").glob("libgomp-*.so*"))), None)


if __name__ == "__main__":
    library_path(Path(sys.argv[1]).resolve())
