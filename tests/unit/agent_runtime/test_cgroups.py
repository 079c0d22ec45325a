"""Claims about control groups of workers, on a folder that looks like a delegated cgroup."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from vedette.agent.adapters.inference import cgroups
from vedette.agent.adapters.inference.cgroups import GroupsUnavailable, WorkerGroups, admission


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "cgroup"
    file.write_text("1:name=systemd:/x\n0::/system.slice/vedette-agent.service\n")
    return file


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit's own group, delegated with its memory controller."""
    folder = tmp_path / "fs/system.slice/vedette-agent.service"
    folder.mkdir(parents=True)
    for each in (folder, tmp_path / "fs"):
        (each / "cgroup.controllers").write_text("memory pids\n")
    return folder


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_main_process_moves_aside_before_the_controller_is_handed_down(tmp_path: Path, own: Path, unit: Path):
    WorkerGroups(tmp_path / "fs", own, 1000)
    assert read(unit / "main") == {"cgroup.procs": str(os.getpid())}
    assert (unit / "cgroup.subtree_control").read_text() == "+memory"
    assert (unit / "main/cgroup.procs").stat().st_mtime_ns <= (unit / "cgroup.subtree_control").stat().st_mtime_ns


def test_each_worker_gets_its_limit_before_it_gets_in(tmp_path: Path, own: Path, unit: Path):
    WorkerGroups(tmp_path / "fs", own, 1000).admit(77)
    assert read(unit / "worker-77") == {"memory.max": "1000", "memory.oom.group": "1", "cgroup.procs": "77"}
    written = [(unit / "worker-77" / name).stat().st_mtime_ns for name in ("memory.max", "cgroup.procs")]
    assert written == sorted(written)


def test_groups_whose_worker_ended_are_removed(tmp_path: Path, own: Path, unit: Path):
    groups = WorkerGroups(tmp_path / "fs", own, 1000)
    (unit / "worker-5").mkdir()  # as the kernel shows an empty one: its files do not keep it
    groups.admit(6)
    groups.admit(7)
    assert sorted(path.name for path in unit.glob("worker-*")) == ["worker-6", "worker-7"]


def test_a_worker_that_cannot_be_placed_serves_all_the_same(
    tmp_path: Path, own: Path, unit: Path, caplog: pytest.LogCaptureFixture
):
    groups = WorkerGroups(tmp_path / "fs", own, 1000)
    (unit / "worker-7").write_text("")
    groups.admit(7)
    assert "worker 7 got no control group of its own" in caplog.text


@pytest.mark.parametrize(
    "case",
    [
        ("3:memory:/x\n", "memory", "cgroup v1 alone"),
        ("0::/system.slice/vedette-agent.service\n", "cpu pids", "has no memory controller"),
        ("0::/elsewhere\n", "memory", "cannot be used"),
    ],
)
def test_a_host_without_it_is_told_why(tmp_path: Path, own: Path, unit: Path, case: tuple[str, str, str]):
    groups, controllers, why = case
    own.write_text(groups)
    (unit / "cgroup.controllers").write_text(controllers)
    with pytest.raises(GroupsUnavailable, match=why):
        WorkerGroups(tmp_path / "fs", own, 1000)
    assert not (unit / "main").exists()


def test_a_host_with_both_versions_is_one_of_v1(tmp_path: Path, own: Path, unit: Path):
    (tmp_path / "fs/cgroup.controllers").unlink()
    with pytest.raises(GroupsUnavailable, match="this host has v1"):
        WorkerGroups(tmp_path / "fs", own, 1000)


def test_nothing_is_tried_that_the_unit_does_not_ask_for(
    tmp_path: Path, own: Path, unit: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(cgroups, "_MOUNT", tmp_path / "fs")
    monkeypatch.setattr(cgroups, "_OWN", own)
    monkeypatch.delenv(cgroups.WANTED, raising=False)
    admission(1000)(1)
    assert not (unit / "main").exists()
    monkeypatch.setenv(cgroups.WANTED, "1")
    admission(1000)(1)
    assert (unit / "worker-1").exists()
    own.write_text("")
    with caplog.at_level(logging.WARNING):
        admission(1000)(2)
    assert "workers get no control groups of their own" in caplog.text
    assert not (unit / "worker-2").exists()
