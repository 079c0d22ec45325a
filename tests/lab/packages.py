"""The Debian packages under test: those of this checkout, and later ones made of it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from tests.lab.commands import LabError, execute
from tests.lab.ground import LAB_FOLDER, ROOT
from tests.lab.image import building
from vedette.models.version import __version__

_DIST = Path(os.environ.get("VEDETTE_LAB_DEBS", ROOT / "dist"))
_PACK_S = 300
_VERSION_FILE = "usr/lib/vedette-*/lib/python3.11/site-packages/vedette/models/version.py"


class Packages:
    """Where the packages are; those of the commit were built by ``make deb``."""

    @property
    def agent(self) -> Path:
        """``vedette-agent`` of this checkout."""
        return self._of_checkout("vedette-agent")

    @property
    def controller(self) -> Path:
        """``vedette-controller`` of this checkout."""
        return self._of_checkout("vedette-controller")

    @cached_property
    def next_version(self) -> str:
        """The version after this checkout's."""
        head, _, last = __version__.rpartition(".")
        return f"{head}.{int(last) + 1}"

    def newer(self, name: str, appended: Mapping[str, str] | None = None) -> Path:
        """Return ``agent`` or ``controller`` as the next version; made once per package.

        It is the package of this checkout, packed anew: a second build would tell nothing more and takes minutes.

        Args:
            name: Which one.
            appended: What else the next version has: text at the end of files, by their path on the host.
        """
        base, appended = self._of_checkout(f"vedette-{name}"), appended or {}
        stamp = base.stat()
        recipe = repr((str(base), stamp.st_size, stamp.st_mtime_ns, self.next_version, sorted(appended.items())))
        folder = LAB_FOLDER / "newer" / f"{base.stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        with building(folder) as staged:
            if staged is not None:
                _pack_newer(base, self.next_version, appended, staged)
        return _only(folder, f"vedette-{name}")

    def _of_checkout(self, name: str) -> Path:
        return _only(_DIST, name)


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}_*.deb"))
    if len(found) != 1:
        raise LabError(f"{folder} has {len(found)} packages {name}, 1 is wanted: make deb")
    return found[0]


def _pack_newer(base: Path, version: str, appended: Mapping[str, str], target: Path) -> None:
    root = target / "root"
    execute(["dpkg-deb", "--raw-extract", str(base), str(root)], timeout=_PACK_S)
    control = root / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    said = next(root.glob(_VERSION_FILE))
    said.write_text(said.read_text().replace(f'"{__version__}"', f'"{version}"'))
    changed = [said, *(root / path.lstrip("/") for path in appended)]
    for path, text in zip(changed[1:], appended.values(), strict=True):
        path.write_text(path.read_text() + text)
    _compile([path for path in changed if path.suffix == ".py"], root)
    _sum_again(root)
    package = target / base.name.replace(f"_{__version__}_", f"_{version}_")
    # zstd packs in a second what xz does in minutes.
    execute(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--build", str(root), str(package)], timeout=_PACK_S)
    shutil.rmtree(root)


def _compile(sources: list[Path], root: Path) -> None:
    """Make the byte code anew: Python does not compare what is packaged with its source."""
    for source in sources:
        compiled = importlib.util.cache_from_source(str(source))
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(
            str(source), compiled, f"/{source.relative_to(root)}", doraise=True, invalidation_mode=unchecked
        )


def _sum_again(root: Path) -> None:
    """Write the checksums that ``dpkg --verify`` compares with."""
    sums = root / "DEBIAN/md5sums"
    paths = [line.split("  ", 1)[1] for line in sums.read_text().splitlines()]
    lines = [f"{hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()}  {path}" for path in paths]
    sums.write_text("\n".join([*lines, ""]))
