import os
import subprocess
import sys
from pathlib import Path

import pytest

from vedette.controller.adapters import openmp


def test_a_host_with_the_runtime_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openmp, "_system_has_it", lambda: True)
    assert openmp.library_path(tmp_path / "lib") is None
    assert not (tmp_path / "lib").exists()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without libgomp1."""
    monkeypatch.setattr(openmp, "_system_has_it", lambda: False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)


@pytest.mark.usefixtures("bare")
def test_a_bare_host_gets_a_library_that_the_loader_takes(tmp_path: Path):
    path = openmp.library_path(tmp_path / "lib")
    assert path == str(tmp_path / "lib")
    code = "import ctypes; ctypes.CDLL('libgomp.so.1'); print(open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "scikit_learn.libs/libgomp" in done.stdout


@pytest.mark.usefixtures("bare")
def test_a_link_that_an_upgrade_broke_is_made_again(tmp_path: Path):
    (tmp_path / "libgomp.so.1").symlink_to(tmp_path / "gone")
    openmp.library_path(tmp_path)
    assert (tmp_path / "libgomp.so.1").resolve().is_file()


@pytest.mark.usefixtures("bare")
def test_a_path_that_is_already_set_is_kept_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert openmp.library_path(tmp_path) == f"{tmp_path}:/opt/lib"
