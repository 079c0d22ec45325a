"""A power cut at any moment of a backup or a restore: a backup is whole, a controller the old or the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.powercut.conftest import Crashed
from tests.support.powercut.crashes import Crash, crashes, sampled
from tests.support.powercut.recording import Recording
from tests.support.powercut.records import Record
from tests.support.powercut.share import share_of
from vedette.controller.adapters.backup import read_manifest
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.sqlite.restores import RestoreStore
from vedette.controller.adapters.tar import entries
from vedette.controller.app import opened
from vedette.controller.settings import ControllerSettings


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Two controllers are made; the first is backed up twice, and put back over the second."""
    folder = tmp_path_factory.mktemp("restored-life")
    root = folder / "disk"
    root.mkdir()
    recording = Recording(root, folder / "log")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in recording.environment.items():
            environment.setenv(name, value)
        for name in ("one", "two"):
            _run("init", "--listen", "127.0.0.1:0", "--data-dir", root / name)
            recording.mark(made=name)
        _python("-c", _MAKE_FOLDER, root / "backups")
        one = root / "one" / "controller.toml"
        _run("backup", "--config", one, root / "backups")
        recording.mark(backups=1)
        _run("backup", "--config", one, root / "whole.tar", "--with-blobs")
        recording.mark(whole=True)
        _run("restore", root / "whole.tar", "--data-dir", root / "two", "--yes")
        recording.mark(restored=True)
    return recording.records()


_MAKE_FOLDER = """
import sys
from pathlib import Path
from vedette.controller.adapters.blobs import make_folder
make_folder(Path(sys.argv[1]))
"""


def _run(*words: object) -> None:
    _python("-m", "vedette.controller", *words)


def _python(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_after_a_power_cut_a_backup_is_whole_and_a_controller_is_one_of_two(
    life: list[Record], crashed: Crashed
) -> None:
    outcomes = set()
    for crash in sampled(crashes(life), share_of(0.3)):
        with crashed(crash) as folder:
            try:
                outcomes.add(_checked(folder, crash))
            except Exception as exc:
                raise AssertionError(f"{crash}: {type(exc).__name__}: {exc}") from exc
    assert outcomes >= {"two", "one"}


def _checked(folder: Path, crash: Crash) -> str:
    """Check what a crash left and return which controller the second folder holds."""
    facts = {name for fact in crash.facts for name in fact}
    backups = [*(folder / "backups").glob("vedette-*.tar"), *folder.glob("whole.tar")]
    assert len(backups) >= ("backups" in facts) + ("whole" in facts)
    for backup in backups:
        _check_whole(backup)
    if "whole" not in facts:
        return ""
    with opened(ControllerSettings(data_dir=folder / "two")) as database:
        assert database.damage() is None
        was_restored = RestoreStore(database).newest() is not None
    assert was_restored or "restored" not in facts
    expected = "one" if was_restored else "two"
    keys = KeyRing.load(folder / "two")
    if expected == "one":
        assert keys.authority.digest == KeyRing.load(folder / "one").authority.digest
        (aside,) = (folder / "two").glob("before-restore-*")
        assert KeyRing.load(aside).authority.digest != keys.authority.digest
    else:
        assert keys.authority.digest != KeyRing.load(folder / "one").authority.digest
    return expected


def _check_whole(backup: Path) -> None:
    with backup.open("rb") as source:
        archive = entries(source)
        for member in read_manifest(archive).members:
            entry = next(archive)
            for _ in entry.pieces():
                pass
            assert (entry.name, entry.digest) == (member.name, member.digest)
        assert next(archive, None) is None
