"""Builds vedette-agent_*.deb and vedette-controller_*.deb from this checkout, as it is on disk.

Rules:

* The same files and commit give the same bytes: dates are the commit's; nothing of the builder's clock, folder, umask,
  language or time zone gets in.
* The network is asked only for wheels, by ``wheels``, which checks them.
* Only packages arrive in the target folder, each by one rename.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from deb import wheels

ROOT = wheels.ROOT
ROLES = wheels.ROLES
INPUTS = (
    *("agent", "controller", "models", "proto", "packaging", "systemd"),
    *("pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"),
    "docs/cli.md",  # manuals quote it
)
"""What the packages are made of; a change elsewhere makes no other package."""
VERSION_FILE = Path("models/vedette/models/version.py")
_VERSION = re.compile(r'(__version__ = ")([^"]+)(")')
_EXAMPLES = """examples:
  packaging/build                                both packages into dist/
  packaging/build agent                          the agent's alone
  packaging/build --version 0.2.0 --fast --dist /tmp/next      a quick next version, to try an upgrade with
"""


class BuildError(Exception):
    """The packages cannot be built; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """The files that packages are made of, and when they were committed."""

    files: tuple[Path, ...]  # relative to the checkout
    digest: str
    committed: datetime


def main() -> int:
    """Build what was asked for; returns an exit code."""
    given = _parser().parse_args()
    os.umask(0o022)
    try:
        if given.record_wheels:
            _check_needs()
            print(f"{wheels.RECORD}: {wheels.record()} wheels")
            return 0
        roles, dist = given.roles or list(ROLES), given.dist.resolve()
        for path in build(roles, given.version, dist, fast=given.fast, keep=given.if_changed):
            print(path)
    except (BuildError, wheels.WheelError) as exc:
        print(f"packaging/build: {exc}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packaging/build",
        description="Build the Debian packages from this checkout, as it is on disk.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("roles", nargs="*", metavar="ROLE", type=_role, help="agent, controller; default both")
    parser.add_argument("--version", help="instead of the project's, for instance 0.2.0")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", metavar="DIR", help="where packages go (dist)")
    parser.add_argument("--fast", action="store_true", help="compress little: to try a package, not to give it away")
    parser.add_argument(
        "--record-wheels", action="store_true", help=f"instead: after a change of pins, write {wheels.RECORD} anew"
    )
    parser.add_argument("--if-changed", action="store_true", help="keep packages in DIR that these very files made")
    return parser


def _role(name: str) -> str:
    if name not in ROLES:
        raise argparse.ArgumentTypeError(f"{name!r} is no package; choose from {', '.join(ROLES)}")
    return name


def build(roles: list[str], version: str | None, dist: Path, *, fast: bool, keep: bool) -> list[Path]:
    """Return the packages of ``roles`` in ``dist``, built unless they are kept.

    Raises:
        BuildError: Something that a build takes is missing, or a step failed.
        WheelError: The libraries' wheels cannot be had, or are not the recorded ones.
    """
    _check_needs()
    source = read_source()
    version = version or _version_in((ROOT / VERSION_FILE).read_text())
    names = {role: f"vedette-{role}_{debian_version(version)}_{_architecture()}.deb" for role in roles}
    stamp = f"{source.digest}{'-fast' if fast else ''}"
    if changed := local_changes(ROOT):
        print(f"packaging/build: note: not of the commit alone: {', '.join(changed)}", file=sys.stderr)
    missing = [role for role in roles if not (keep and _made_from(dist / names[role]) == stamp)]
    if missing:
        for path in _build(missing, version, source, stamp, fast=fast):
            _deliver(path, dist)
    return [dist / name for name in names.values()]


def _check_needs() -> None:
    done = subprocess.run([ROOT / "packaging/needs", "--check"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{done.stderr.strip()} (or: make needs, as root)")
    if not _development_python().exists():
        raise BuildError("no development environment; run: make dev")


def _development_python() -> Path:
    return ROOT / ".venv/bin/python"


def read_source() -> Source:
    """Return what the packages are made of: tracked files and new ones that git does not ignore.

    Raises:
        BuildError: This is no git checkout.
    """
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *INPUTS)
    files = tuple(sorted({Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()}))
    whole = hashlib.sha256()
    for path in files:
        content = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
        whole.update(f"{path}\0{os.access(ROOT / path, os.X_OK)}\0{content}\n".encode())
    return Source(files, whole.hexdigest()[:16], datetime.fromtimestamp(int(_git("log", "-1", "--format=%ct")), UTC))


def local_changes(checkout: Path) -> list[str]:
    """Return files that packages are made of and that are not as committed; three at most, then "…"."""
    changed = _git("status", "--porcelain", "-z", "--no-renames", "--", *INPUTS, checkout=checkout).split("\0")[:-1]
    names = [entry[3:] for entry in changed]
    return [*names[:3], "…"] if len(names) > 3 else names


def _git(*arguments: str, checkout: Path = ROOT) -> str:
    done = subprocess.run(["git", "-C", checkout, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"the packages carry their commit's date, and git said: {done.stderr.strip()}")
    return done.stdout


def debian_version(version: str) -> str:
    """Return a Python version as Debian orders it: 1.0rc1, 1.0.dev3 and 1.0a1 are before 1.0.

    Raises:
        BuildError: It is none that both understand.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)*)(?:(?:\.?)(a|b|rc|dev)(\d+))?", version)
    if match is None:
        raise BuildError(f"version {version!r} is not of the form 1.2.3, 1.2.3rc1 or 1.2.3.dev1")
    number, stage, count = match.groups()
    return f"{number}~{stage}{count}" if stage else number


def _version_in(text: str) -> str:
    match = _VERSION.search(text)
    if match is None:
        raise BuildError(f"{VERSION_FILE} holds no __version__")
    return match.group(2)


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def _made_from(package: Path) -> str | None:
    done = subprocess.run(
        ["dpkg-deb", "--field", package, "Vedette-Source"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _build(roles: list[str], version: str, source: Source, stamp: str, *, fast: bool) -> Iterator[Path]:
    """Yield the packages, in a folder that goes when the caller has taken them."""
    place = ROOT / "build"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="deb-", dir=place) as scratch:
        tree = Path(scratch, "tree")
        _copy_tree(source, version, tree)
        own = _own_wheel(tree, Path(scratch), source)
        for role in roles:
            _collect_wheels(role, own, Path(scratch, "wheels", role))
        _run_debhelper(tree, roles, source, stamp, fast=fast)
        yield from sorted(Path(scratch).glob("*.deb"))


def _copy_tree(source: Source, version: str, tree: Path) -> None:
    for path in source.files:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tree / path)
        (tree / path).chmod(0o755 if os.access(ROOT / path, os.X_OK) else 0o644)
    text = (tree / VERSION_FILE).read_text()
    (tree / VERSION_FILE).write_text(_VERSION.sub(rf"\g<1>{version}\g<3>", text))
    (tree / "packaging/debian").rename(tree / "debian")
    news = _news((tree / "CHANGELOG.md").read_text())
    (tree / "debian/changelog").write_text(_changelog(debian_version(version), news, source.committed))


def _news(changelog: str) -> list[str]:
    """Return the items of the newest section of CHANGELOG.md."""
    newest = re.split(r"^## .*$", changelog, flags=re.MULTILINE)[1]
    return [" ".join(item.split()) for item in re.split(r"^- ", newest, flags=re.MULTILINE)[1:]]


def _changelog(version: str, news: list[str], date: datetime) -> str:
    items = [textwrap.fill(item, 78, initial_indent="  * ", subsequent_indent="    ") for item in news]
    signed = f" -- Vedette maintainers <maintainers@vedette.invalid>  {format_datetime(date)}"
    return "\n".join([f"vedette ({version}) bookworm; urgency=medium", "", *items, "", signed, ""])


def _own_wheel(tree: Path, scratch: Path, source: Source) -> Path:
    out = scratch / "own"
    command: list[str | Path] = [
        _development_python(),
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        out,
        tree,
    ]
    _run(command, _environment(source), tree)
    return next(out.glob("*.whl"))


def _collect_wheels(role: str, own: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for wheel in [*wheels.collect(role, _architecture()).glob("*.whl"), own]:
        (folder / wheel.name).symlink_to(wheel)


def _environment(source: Source) -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(int(source.committed.timestamp())),
    }


def _run_debhelper(tree: Path, roles: list[str], source: Source, stamp: str, *, fast: bool) -> None:
    left_out = " ".join(f"pkg.vedette.no{role}" for role in ROLES if role not in roles)
    environment = _environment(source) | {
        "DEB_BUILD_OPTIONS": "nocheck parallel=2",
        "DEB_BUILD_PROFILES": left_out,
        "VEDETTE_PYTHON": str(_development_python()),
        "VEDETTE_WHEELS": str(tree.parent / "wheels"),
        "VEDETTE_FAST": "yes" if fast else "",
        "VEDETTE_SOURCE": stamp,
    }
    _run(["dpkg-buildpackage", "--build=binary", "--no-sign"], environment, tree)


def _run(command: list[str | Path], environment: dict[str, str], folder: Path) -> None:
    """Run a step in silence; show everything that it said when it fails."""
    done = subprocess.run(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        said = "\n".join(line[:300] for line in done.stdout.splitlines()[-40:])
        raise BuildError(f"{' '.join(str(word) for word in command[:4])} … ended with {done.returncode}:\n{said}")


def _deliver(package: Path, dist: Path) -> None:
    """Put a package into ``dist`` in one step: whoever looks there finds a whole one."""
    dist.mkdir(parents=True, exist_ok=True)
    partial = dist / f".{package.name}.partial"
    shutil.copyfile(package, partial)
    partial.rename(dist / package.name)


if __name__ == "__main__":
    raise SystemExit(main())
