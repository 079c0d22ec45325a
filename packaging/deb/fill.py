"""Fills a package's folder: a virtual environment under ``/usr/lib/vedette-ROLE`` with the product and its libraries.

Run by debian/rules. Rules:

* The environment is written by hand, not by ``venv`` and pip: what they leave behind names the builder's folders.
* Nothing in it is ever written at run time. Byte code is compiled here, for where the files will lie, and is not
  compared with its source (PEP 552, unchecked): dpkg replaces both together, and dates say nothing in an image.
* A pattern of ``trim.toml`` that matches nothing is an error: a new version of a library has moved what it meant.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from deb.notices import Notice, NoticeError, copyright_file, gather, is_legal

PROGRAMS = {"agent": ("vedette-agent",), "controller": ("vedette", "vedette-controller")}
LEFT_OUT = {"agent": ("vedette/controller",), "controller": ()}
"""Of our own wheel. The controller keeps the agent's code: ``vedette demo`` runs agents on one machine."""
PYTHON = "python3.11"
_KEPT_METADATA = ("METADATA", "entry_points.txt")


class FillError(Exception):
    """The package cannot be filled; the text says what to change."""


def main() -> int:
    """Fill one package and write its copyright file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=sorted(PROGRAMS))
    parser.add_argument("--wheels", type=Path, required=True, help="folder with every wheel of the role")
    parser.add_argument("--root", type=Path, required=True, help="the package's folder")
    parser.add_argument("--copyright", type=Path, required=True, help="file to write")
    given = parser.parse_args()
    os.umask(0o022)
    try:
        notices = fill(given.role, given.wheels, given.root)
    except (FillError, NoticeError) as exc:
        print(f"filling {given.role}: {exc}", file=sys.stderr)
        return 1
    given.copyright.write_text(copyright_file(given.role, notices))
    return 0


def fill(role: str, wheels: Path, root: Path) -> list[Notice]:
    """Fill ``root`` and return what must be said about the licences in it.

    Raises:
        FillError: The wheels or ``trim.toml`` are not what they should be.
    """
    venv = root / f"usr/lib/vedette-{role}"
    site = venv / f"lib/{PYTHON}/site-packages"
    site.mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        _unpack(wheel, site)
    notices = gather(site)
    for left_out in LEFT_OUT[role]:
        shutil.rmtree(site / left_out)
    trim(role, site, tomllib.loads((Path(__file__).parent.parent / "trim.toml").read_text()))
    _reduce_metadata(site, PROGRAMS[role])
    _prove(site)
    _write_environment(venv)
    for program in PROGRAMS[role]:
        _write_program(root, role, program)
    _compile(site, f"/usr/lib/vedette-{role}/lib/{PYTHON}/site-packages")
    return notices


def _unpack(wheel: Path, site: Path) -> None:
    """Unpack a wheel's modules; its scripts, headers and manual pages stay behind."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            first, _, rest = member.filename.partition("/")
            name = member.filename
            if first.endswith(".data"):
                kind, _, name = rest.partition("/")
                if kind not in ("purelib", "platlib"):
                    continue
            if member.is_dir() or not name:
                continue
            target = site / name
            if not target.resolve().is_relative_to(site.resolve()):
                raise FillError(f"{wheel.name} holds {member.filename!r}, which leaves its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)


def trim(role: str, site: Path, rules: dict[str, dict[str, list[str]]]) -> None:
    """Remove what ``trim.toml`` names for this package, licence texts that ``gather`` has read, and empty folders.

    Raises:
        FillError: A pattern for a library that is there matches nothing.
    """
    for section, rule in rules.items():
        if section not in ("everywhere", role) and (section in PROGRAMS or not (site / section).exists()):
            continue
        for pattern in rule.get("patterns", []) + rule.get("optional", []):
            found = list(site.glob(pattern))
            if not found and pattern not in rule.get("optional", []):
                raise FillError(f"trim.toml, {section}: nothing matches {pattern!r}; look where it has gone")
            for path in found:
                _remove(path)
    for path in [path for path in site.rglob("*") if path.is_file() and is_legal(path.relative_to(site))]:
        path.unlink()
    for folder in sorted((path for path in site.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # an earlier match was its folder


def _prove(site: Path) -> None:
    command = [f"/usr/bin/{PYTHON}", "-I", str(Path(__file__).parent / "prove.py"), str(site)]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise FillError(f"modules cannot be imported from the package; is trim.toml too eager?\n{done.stderr.strip()}")


def _reduce_metadata(site: Path, programs: tuple[str, ...]) -> None:
    """Keep of each ``.dist-info`` what ``importlib.metadata`` answers from; pip has no say here."""
    for info in site.glob("*.dist-info"):
        for path in list(info.iterdir()):
            if path.name not in _KEPT_METADATA:
                _remove(path)
        metadata = info / "METADATA"
        metadata.write_text(metadata.read_text().partition("\n\n")[0] + "\n")  # without the project's long description
        if not info.name.startswith("vedette-"):
            (info / "entry_points.txt").unlink(missing_ok=True)
    _reduce_entry_points(next(site.glob("vedette-*.dist-info")) / "entry_points.txt", programs)


def _entry_points(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters="=")
    parser.read_string(path.read_text())
    return parser["console_scripts"]


def _reduce_entry_points(path: Path, programs: tuple[str, ...]) -> None:
    targets = _entry_points(path)
    lines = [f"{program} = {targets[program]}" for program in programs]
    path.write_text("\n".join(["[console_scripts]", *lines, ""]))


def _write_environment(venv: Path) -> None:
    (venv / "bin").mkdir()
    (venv / "bin/python3").symlink_to(f"/usr/bin/{PYTHON}")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")


def _write_program(root: Path, role: str, program: str) -> None:
    venv = f"usr/lib/vedette-{role}"
    info = next((root / venv / f"lib/{PYTHON}/site-packages").glob("vedette-*.dist-info"))
    module, _, function = _entry_points(info / "entry_points.txt")[program].partition(":")
    script = root / venv / "bin" / program
    # -I: neither the caller's folder nor PYTHONPATH nor ~/.local decides what runs, perhaps as root.
    script.write_text(
        f"#!/{venv}/bin/python3 -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
    )
    script.chmod(0o755)
    link = root / "usr/bin" / program
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../lib/vedette-{role}/bin/{program}")


def _compile(site: Path, installed: str) -> None:
    """Compile each top-level part in a process of its own, two at a time: the same bytes whatever else is there."""
    parts = sorted(path for path in site.iterdir() if path.is_dir() or path.suffix == ".py")
    running: list[subprocess.Popen[bytes]] = []
    for part in parts:
        if part.name.endswith((".dist-info", ".libs")):
            continue
        if len(running) == 2:
            _finish(running.pop(0))
        running.append(subprocess.Popen(_compile_command(part, site, installed), env=_compile_environment()))
    for process in running:
        _finish(process)
    missing = [str(path) for path in _uncompiled(site)]
    if missing:
        raise FillError(f"{len(missing)} modules have no byte code, the first is {missing[0]}")


def _compile_command(part: Path, site: Path, installed: str) -> list[str]:
    command = [f"/usr/bin/{PYTHON}", "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    return [*command, "-s", str(site), "-p", installed, str(part)]


def _compile_environment() -> dict[str, str]:
    # A set of constants is written in the order of its hashes.
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def _finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise FillError(f"byte code: {process.args!r} ended with {process.returncode}")


def _uncompiled(site: Path) -> Iterator[Path]:
    for source in site.rglob("*.py"):
        if not (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").exists():
            yield source


if __name__ == "__main__":
    raise SystemExit(main())
