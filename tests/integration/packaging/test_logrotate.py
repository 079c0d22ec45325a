"""The real logrotate with the packages' own configuration, under a sink that never stops writing."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.verdicts import verdicts
from vedette.agent.adapters.sinks.json_lines import JsonSink

CONFIG = Path(__file__).parents[3] / "packaging/etc/logrotate"
LOGROTATE = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(LOGROTATE is None, reason="needs logrotate")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir(mode=0o750)
    return folder


@pytest.fixture
def systemctl(tmp_path: Path) -> Path:
    """A systemctl for which no unit runs; it keeps what it was asked."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\necho "not active" >&2\nexit 1\n')
    program.chmod(0o755)
    return tmp_path / "asked"


def _rotate(folder: Path, *, force: bool = True) -> str:
    """Run logrotate once and return what it complains of."""
    owner = "su root root" if os.getuid() == 0 else ""
    text = CONFIG.read_text().replace("/var/log/vedette", str(folder)).replace("su vedette-agent vedette-agent", owner)
    config = folder.parent / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o644)
    command = [str(LOGROTATE), *(["-f"] if force else []), "-s", str(folder.parent / "state"), str(config)]
    environment = {**os.environ, "PATH": f"{folder.parent}/bin:{os.environ['PATH']}"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _lines(folder: Path) -> list[int]:
    found: list[int] = []
    for file in folder.iterdir():
        text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
        found += map(int, text.split())
    return sorted(found)


def test_no_verdict_is_lost_while_files_rotate_also_when_no_signal_arrives(folder: Path, systemctl: Path):
    sink = JsonSink(
        folder / "verdicts.jsonl",
        max_bytes=None,
        emits_all=True,
        queue_bytes=16 * 2**20,
        on_problem=lambda problem: None,
    )
    sink.start()
    for rotation in range(4):
        for number in range(rotation * 500, rotation * 500 + 500):
            sink.write(verdicts(f"{number}"))
        assert sink.flush(10.0)
        assert (folder / "verdicts.jsonl").exists(), "the sink still writes to the file that was rotated away"
        assert _rotate(folder) == ""
    sink.write(verdicts("2000"))
    sink.close(10.0)
    assert _lines(folder) == list(range(2001))
    assert sink.counters.lost.total() == 0
    assert systemctl.read_text().split("\n")[0] == "reload vedette-agent.service"


def test_what_was_just_rotated_is_not_yet_packed(folder: Path, systemctl: Path):
    for text in ("1\n", "2\n"):
        (folder / "verdicts.jsonl").write_text(text)
        _rotate(folder)
    assert sorted(item.name for item in folder.iterdir()) == ["verdicts.jsonl.1", "verdicts.jsonl.2.gz"]


def test_an_appliance_without_verdicts_is_no_error(folder: Path, systemctl: Path):
    assert _rotate(folder) == ""
    (folder / "verdicts.jsonl").touch()
    assert _rotate(folder, force=False) == ""
    assert not systemctl.exists()


def test_seven_old_files_are_kept(folder: Path, systemctl: Path):
    for number in range(10):
        (folder / "verdicts.jsonl").write_text(f"{number}\n")
        _rotate(folder)
    assert _lines(folder) == [3, 4, 5, 6, 7, 8, 9]
