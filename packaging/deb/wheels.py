"""The wheels that a package is filled from: their versions stand in constraints.txt, their digests in wheels.sha256.

Rules:

* Wheels are chosen for Debian 12 (its Python and glibc), whatever builds: the same names on every machine.
* The network is asked once for each set of pins: wheels are kept in build/wheels.
* A wheel is used only if its SHA-256 is recorded, each time; ``record`` writes the record for every architecture.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("agent", "controller")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Of Debian's architectures that there are packages for, the names in wheels."""
TARGET_PYTHON = "/usr/bin/python3.11"
"""What the packages run on; what a library needs is asked of it, not of the builder's Python."""
RECORD = Path("packaging/wheels.sha256")
_GLIBC_MINORS = range(36, 16, -1)  # Debian 12 has glibc 2.36; manylinux wheels of the pins start at 2.17


class WheelError(Exception):
    """The wheels cannot be had, or are not those that were recorded; the text says what to do."""


def collect(role: str, architecture: str) -> Path:
    """Return the folder with the wheels of a role's libraries; downloads them the first time.

    Raises:
        WheelError: They cannot be had, or one is not the recorded one.
    """
    if architecture not in MACHINES:
        raise WheelError(f"there are no packages for {architecture}, only for {' and '.join(MACHINES)}")
    folder = _downloaded(role, architecture)
    check(folder, read_record((ROOT / RECORD).read_text()))
    return folder


def check(folder: Path, recorded: dict[str, str]) -> None:
    """Compare each wheel with what is recorded of it.

    Raises:
        WheelError: One is not recorded, or has another content.
    """
    for wheel in sorted(folder.glob("*.whl")):
        found, wanted = _sha256(wheel), recorded.get(wheel.name)
        if wanted is None:
            raise WheelError(f"{RECORD} has no {wheel.name}; have the pins changed? packaging/build --record-wheels")
        if found != wanted:
            raise WheelError(
                f"{wheel} has SHA-256 {found}, {RECORD} says {wanted}; find out why, then remove its folder"
            )


def read_record(text: str) -> dict[str, str]:
    """Return digests by file name, of lines as sha256sum(1) writes them."""
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def record() -> int:
    """Download the wheels of all packages and architectures, write down their digests; returns how many there are.

    Raises:
        WheelError: They cannot be had.
    """
    folders = [_downloaded(role, architecture) for architecture in MACHINES for role in ROLES]
    digests = {wheel.name: _sha256(wheel) for folder in folders for wheel in folder.glob("*.whl")}
    (ROOT / RECORD).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))
    return len(digests)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _downloaded(role: str, architecture: str) -> Path:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][role]]
    pins = (ROOT / "constraints.txt").read_text()
    key = hashlib.sha256(json.dumps([wanted, pins]).encode()).hexdigest()[:12]
    folder = ROOT / "build/wheels" / f"{role}-{architecture}-{key}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{role}-", dir=folder.parent) as scratch:
            _ask_pip(wanted, architecture, Path(scratch, "wheels"))
            Path(scratch, "wheels").rename(folder)
    return folder


def _ask_pip(wanted: list[str], architecture: str, folder: Path) -> None:
    machine = MACHINES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS] + [f"manylinux2014_{machine}"]
    target = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    pip = [str(ROOT / ".venv/bin/python"), "-m", "pip", "--python", TARGET_PYTHON, "download", "--quiet"]
    options = ["--disable-pip-version-check", "--only-binary", ":all:", "--constraint", str(ROOT / "constraints.txt")]
    options += ["--dest", str(folder), *target, *(f"--platform={name}" for name in platforms)]
    done = subprocess.run([*pip, *options, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"pip cannot download the wheels for {architecture}:\n{done.stderr[-3000:].strip()}")
    unpinned = [wheel.name for wheel in folder.glob("*.whl") if not _is_pinned(wheel)]
    if unpinned:
        raise WheelError(f"constraints.txt does not pin: {', '.join(sorted(unpinned))}")


def _is_pinned(wheel: Path) -> bool:
    name, version = wheel.name.split("-")[:2]
    pins = re.sub(r"[-_.]+", "-", (ROOT / "constraints.txt").read_text().lower()).splitlines()
    return re.sub(r"[-_.]+", "-", f"{name}=={version}".lower()) in pins
