"""The packages themselves: the same bytes wherever they are built, clean under lintian, within their size.

Both are built twice, side by side, the quick way (``--fast``). How hard a package is compressed says nothing of what is
in it; that a harder xz of the same bytes gives the same bytes is xz's own promise.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deb import wheels

ROOT = Path(__file__).parents[3]
ROLES = ("agent", "controller")
CONTROL = "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.invalid>\nDescription: "
MOST_BYTES = {"agent": 60_000_000, "controller": 190_000_000}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,  # to be another machine's user on another file system
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("debs"),  # built once
]


def checkout(place: Path) -> Path:
    """Return a clone that shares this checkout's environment and wheels."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(place)], check=True)
    (place / ".venv").symlink_to(ROOT / ".venv")
    (place / "build").mkdir()
    (place / "build/wheels").symlink_to(ROOT / "build/wheels")
    return place


def here(place: Path, target: Path) -> subprocess.Popen[str]:
    """Start a build as the person at this machine does it."""
    command = [str(checkout(place) / "packaging/build"), "--fast", "--dist", str(target)]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def elsewhere(scratch: Path, target: Path) -> subprocess.Popen[str]:
    """Start a build on what is another machine in all that could matter."""
    script = Path(__file__).with_name("another_machine.sh")
    command = ["unshare", "--mount", "--uts", "sh", str(script), str(ROOT), str(scratch), str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two folders with both packages each, of this commit."""
    needs = subprocess.run([str(ROOT / "packaging/needs"), "--check"], capture_output=True, text=True, check=False)
    if needs.returncode:
        pytest.skip(needs.stderr.strip())
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    for role in ROLES:
        wheels.collect(role, architecture.stdout.strip())
    place = tmp_path_factory.mktemp("twice")
    for folder in (place, *place.parents):
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to(tmp_path_factory.getbasetemp().parent):
            folder.chmod(0o755)  # the other user must get there
    for name in ("one", "other", "scratch"):
        (place / name).mkdir()
    builds = [here(place / "tree", place / "one"), elsewhere(place / "scratch", place / "other")]
    said = [build.communicate()[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], "\n".join(said)
    return place / "one", place / "other"


def package(folder: Path, role: str) -> Path:
    (found,) = folder.glob(f"vedette-{role}_*.deb")
    return found


Facts = dict[str, object]


def members(deb: Path, part: str) -> Iterator[tuple[str, Facts]]:
    """Yield the files of one of a package's two archives, with all that is said of each."""
    with (
        subprocess.Popen(["dpkg-deb", part, str(deb)], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:12] if content else ""  # type: ignore[arg-type]
            facts = {name: getattr(entry, name) for name in ("type", "mode", "uid", "gid", "mtime", "size", "linkname")}
            yield entry.name, facts | {"mode": f"{entry.mode:o}", "sha256": digest}


def differences(one: Path, other: Path) -> str:
    """Return which files of two packages differ, and in what."""
    lines = []
    for part in ("--ctrl-tarfile", "--fsys-tarfile"):
        left, right = dict(members(one, part)), dict(members(other, part))
        lines += [f"only in {one.parent.name}: {name}" for name in left.keys() - right.keys()]
        lines += [f"only in {other.parent.name}: {name}" for name in right.keys() - left.keys()]
        for name in left.keys() & right.keys():
            facts = [key for key in left[name] if left[name][key] != right[name][key]]
            lines += [f"{name}: {key} {left[name][key]} != {right[name][key]}" for key in facts]
    return "\n".join(sorted(lines)[:40]) or "the same files: their order or the compression differs"


def tiny(folder: Path, text: str, mode: int) -> Path:
    for path, content in (
        ("DEBIAN/control", f"{CONTROL}{text}\n"),
        ("usr/share/same", "same"),
        ("usr/share/other", text),
    ):
        (folder / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / path).write_text(content)
    (folder / "tree/usr/share/same").chmod(mode)
    deb = folder / "tiny.deb"
    command = ["dpkg-deb", "--build", "--root-owner-group", str(folder / "tree"), str(deb)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"SOURCE_DATE_EPOCH": "1"})
    return deb


def test_differences_are_named_by_file_and_in_what(tmp_path: Path):
    said = differences(tiny(tmp_path / "one", "long", 0o644), tiny(tmp_path / "two", "longer", 0o755)).splitlines()
    assert [line.split()[:2] for line in said] == [
        ["./control:", "sha256"],
        ["./control:", "size"],
        ["./usr/share/other:", "sha256"],
        ["./usr/share/other:", "size"],
        ["./usr/share/same:", "mode"],
    ]
    assert said[-1].endswith("mode 644 != 755")


@pytest.mark.parametrize("role", ROLES)
def test_another_machine_makes_the_same_bytes(twice: tuple[Path, Path], role: str):
    one, other = (package(folder, role) for folder in twice)
    if one.read_bytes() != other.read_bytes():
        pytest.fail(f"{one.name} is not the same from elsewhere:\n{differences(one, other)}")


@pytest.mark.parametrize("role", ROLES)
def test_a_package_is_small_even_when_hardly_compressed(twice: tuple[Path, Path], role: str):
    assert package(twice[0], role).stat().st_size <= MOST_BYTES[role]


def judge(deb: Path) -> subprocess.Popen[str]:
    """Start lintian; of its checks all but one for typing errors in binaries, which reads all of each library."""
    command = ["lintian", "--allow-root", "--tag-display-limit", "0", "--display-info", "-X", "binaries/spelling"]
    return subprocess.Popen([*command, str(deb)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_lintian_finds_no_error_no_warning_and_no_override_without_use(twice: tuple[Path, Path]):
    judges = [judge(package(twice[0], role)) for role in ROLES]
    said = "".join(each.communicate()[0] for each in judges)
    assert [each.returncode for each in judges] == [0, 0], said
    assert not [line for line in said.splitlines() if line.startswith(("E:", "W:")) or "-override" in line]


def test_the_agents_package_has_neither_controller_nor_tests_nor_compilers_files(twice: tuple[Path, Path]):
    names = [name for name, _ in members(package(twice[0], "agent"), "--fsys-tarfile")]
    assert any(name.endswith("/vedette/agent/app.py") for name in names)
    unwanted = ("/vedette/controller/", "/tests/", "/bin/pip", "/site-packages/pip/", "/data/captures/")
    assert not [
        name for name in names if name.endswith((".h", ".pyx", ".pyi")) or any(part in name for part in unwanted)
    ]
