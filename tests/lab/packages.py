"""The Debian packages under test: those of this checkout, and later ones made of it."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from tests.lab.commands import LabError, execute
from tests.lab.ground import LAB_FOLDER, ROOT
from tests.lab.image import building
from vedette.models.version import __version__

_DIST = Path(os.environ.get("VEDETTE_LAB_DEBS", ROOT / "dist"))
_BUILD_S = 900


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

    def newer(self, name: str) -> Path:
        """Return ``agent`` or ``controller`` of the same code with :attr:`next_version`; built once per package.

        Raises:
            LabError: It could not be built.
        """
        base = self._of_checkout(f"vedette-{name}")
        stamp = base.stat()
        folder = LAB_FOLDER / "newer" / f"{base.stem}-{stamp.st_size}-{stamp.st_mtime_ns}-{self.next_version}"
        with building(folder) as staged:
            if staged is not None:
                words = [
                    str(ROOT / "packaging/build"),
                    "--fast",
                    "--version",
                    self.next_version,
                    "--dist",
                    str(staged),
                    name,
                ]
                made = execute(words, check=False, timeout=_BUILD_S, cwd=ROOT)
                if not made.ok:
                    raise LabError(f"no package of a later version:\n{made}")
        return _only(folder, f"vedette-{name}")

    def _of_checkout(self, name: str) -> Path:
        return _only(_DIST, name)


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}_*.deb"))
    if len(found) != 1:
        raise LabError(f"{folder} has {len(found)} packages {name}, 1 is wanted: make deb")
    return found[0]
