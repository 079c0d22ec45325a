"""Imports what a package brings, from the package alone: every module of ours, and each bundled library.

Run by ``fill`` as a script, isolated, with the folder of the libraries as its one argument: what ``trim.toml`` takes
too much of fails the build, not the host.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

LATE = ("pyarrow.compute", "pyarrow.csv", "pyarrow.parquet", "scipy.sparse", "scipy.special", "sklearn.ensemble")
"""Parts of libraries that jobs and recipes, or libraries behind them, import when they run."""


def main(site: Path) -> int:
    """Import everything; return how many modules refused, after naming them."""
    sys.path.insert(0, str(site))
    sys.dont_write_bytecode = True
    refused = [f"{name}: {why}" for name in _names(site) if (why := _try(name))]
    print("\n".join(refused), file=sys.stderr)
    return min(len(refused), 1)


def _names(site: Path) -> Iterator[str]:
    yield from sorted(path.name for path in site.iterdir() if (path / "__init__.py").exists())
    yield from (name for name in LATE if (site / name.partition(".")[0]).exists())
    import vedette

    for module in pkgutil.walk_packages(vedette.__path__, "vedette."):
        if not module.name.endswith("__main__"):
            yield module.name


def _try(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
