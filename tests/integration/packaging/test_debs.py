"""The packages themselves: the same bytes wherever they are built, clean under lintian, within their size."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST_BYTES = 60_000_000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.timeout(900),
]  # root: CI installs lintian and the like then


def checkout(place: Path) -> Path:
    """Return a clone that shares this checkout's environment and wheels."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(place)], check=True)
    (place / ".venv").symlink_to(ROOT / ".venv")
    (place / "build").mkdir()
    (ROOT / "build/wheels").mkdir(parents=True, exist_ok=True)
    (place / "build/wheels").symlink_to(ROOT / "build/wheels")
    return place


def build(place: Path, umask: int, **environment: str) -> Path:
    """Build the agent's package the quick way: how hard it is compressed says nothing of what is in it."""
    command = [str(place / "packaging/build"), "--fast", "agent"]
    done = subprocess.run(
        command, env=os.environ | environment, umask=umask, cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs = subprocess.run([str(ROOT / "packaging/needs"), "--check"], capture_output=True, text=True, check=False)
    if needs.returncode:
        pytest.skip(needs.stderr.strip())
    return build(checkout(tmp_path_factory.mktemp("one") / "tree"), 0o022, TZ="UTC", LC_ALL="C.UTF-8")


def test_another_folder_umask_language_and_time_zone_make_the_same_bytes(package: Path, tmp_path: Path):
    other = checkout(tmp_path / "a-longer-name-than-the-first")
    again = build(other, 0o077, TZ="Pacific/Kiritimati", LC_ALL="C", LANG="de_DE.UTF-8", PYTHONHASHSEED="7")
    assert again.read_bytes() == package.read_bytes()


def test_the_agents_package_is_small_even_when_hardly_compressed(package: Path):
    assert package.stat().st_size <= MOST_BYTES


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not here")
def test_lintian_finds_no_error_and_no_warning(package: Path):
    command = ["lintian", "--fail-on", "error,warning", "--allow-root", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_agents_package_has_neither_controller_nor_tests_nor_compilers_files(package: Path):
    listed = subprocess.run(["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True)
    names = [line.split()[5] for line in listed.stdout.splitlines()]
    assert any(name.endswith("/vedette/agent/app.py") for name in names)
    unwanted = ("/vedette/controller/", "/tests/", "/bin/pip", "/site-packages/pip/", "/data/captures/")
    assert not [
        name for name in names if name.endswith((".h", ".pyx", ".pyi")) or any(part in name for part in unwanted)
    ]
