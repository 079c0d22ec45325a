"""The decisions of the package build: versions, what is left out, what is said of licences."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from deb import wheels
from deb.build import BuildError, debian_version, local_changes
from deb.fill import FillError, trim
from deb.notices import NoticeError, copyright_file, gather, is_legal

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("python", "debian"), [("1.2.3", "1.2.3"), ("1.0rc1", "1.0~rc1"), ("1.0.dev3", "1.0~dev3")])
def test_a_python_version_becomes_debians(python: str, debian: str):
    assert debian_version(python) == debian


@pytest.mark.parametrize("version", ["", "1.0-1", "v1", "1.0+local", "1.0; rm"])
def test_a_version_that_both_do_not_understand_is_refused(version: str):
    with pytest.raises(BuildError, match=r"1\.2\.3"):
        debian_version(version)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not here")
def test_dpkg_orders_candidates_before_the_release():
    order = ["1.0.dev1", "1.0rc1", "1.0rc2", "1.0", "1.0.1"]
    for earlier, later in itertools.pairwise(order):
        command = ["dpkg", "--compare-versions", debian_version(earlier), "lt", debian_version(later)]
        assert subprocess.run(command, check=False).returncode == 0, (earlier, later)


def library(site: Path, text: str = "Copyright (c) 2020 Someone\n\nDo as you like.") -> Path:
    info = site / "thing-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "thing").mkdir()
    (site / "thing/__init__.py").touch()
    (site / "thing/tool.py").touch()
    (info / "METADATA").write_text("Name: thing\nVersion: 1.0\nLicense: As-You-Like\n\nlong text")
    (info / "RECORD").write_text("thing/__init__.py,,\nthing/tool.py,,\nthing-1.0.dist-info/LICENSE,,\n")
    if text:
        (info / "LICENSE").write_text(text)
    return site


def test_trimming_takes_what_is_named_and_leaves_the_rest(tmp_path: Path):
    site = library(tmp_path / "site")
    trim("agent", site, {"thing": {"patterns": ["thing/tool.py"]}, "absent": {"patterns": ["absent/x"]}})
    assert [path.name for path in (site / "thing").iterdir()] == ["__init__.py"]


def test_a_rule_of_the_other_package_is_not_applied(tmp_path: Path):
    site = library(tmp_path / "site")
    trim("controller", site, {"agent": {"patterns": ["thing/tool.py"]}})
    assert (site / "thing/tool.py").exists()


def test_a_pattern_that_matches_nothing_stops_the_build(tmp_path: Path):
    with pytest.raises(FillError, match="thing/moved"):
        trim("agent", library(tmp_path / "site"), {"thing": {"patterns": ["thing/moved"]}})


def test_the_copyright_file_has_the_whole_text_and_its_holder(tmp_path: Path):
    said = copyright_file("agent", gather(library(tmp_path / "site")))
    assert "\n Copyright (c) 2020 Someone\nLicense: thing-terms\n" in said
    assert "\n Do as you like.\n" in said
    assert " usr/lib/vedette-agent/lib/python3.11/site-packages/thing/*\n" in said


def test_a_library_without_terms_stops_the_build(tmp_path: Path):
    with pytest.raises(NoticeError, match="As-You-Like"):
        gather(library(tmp_path / "site", text=""))


@pytest.mark.parametrize(
    "path",
    [
        "x.dist-info/licenses/LICENSE.BSD",
        "x.dist-info/licenses/BSD-3-Clause.txt",
        "x/COPYING",
        "numpy/random/LICENSE.md",
        "x/NOTICE",
    ],
)
def test_terms_are_known_by_their_names(path: str):
    assert is_legal(Path(path))


@pytest.mark.parametrize("path", ["packaging/licenses/_spdx.py", "x/py.typed", "x/README.md", "x/METADATA"])
def test_code_is_never_taken_for_terms(path: str):
    assert not is_legal(Path(path))


def test_a_wheel_with_the_recorded_content_is_used(tmp_path: Path):
    (tmp_path / "thing-1.0-py3-none-any.whl").write_bytes(b"thing")
    digest = hashlib.sha256(b"thing").hexdigest()
    wheels.check(tmp_path, wheels.read_record(f"{digest}  thing-1.0-py3-none-any.whl\n"))


def test_a_wheel_with_another_content_is_refused(tmp_path: Path):
    (tmp_path / "thing-1.0-py3-none-any.whl").write_bytes(b"thing, and something else")
    with pytest.raises(wheels.WheelError, match="SHA-256"):
        wheels.check(tmp_path, {"thing-1.0-py3-none-any.whl": hashlib.sha256(b"thing").hexdigest()})


def test_a_wheel_that_is_not_recorded_is_refused_and_the_way_out_named(tmp_path: Path):
    (tmp_path / "thing-1.0-py3-none-any.whl").touch()
    with pytest.raises(wheels.WheelError, match="--record-wheels"):
        wheels.check(tmp_path, {})


def test_an_architecture_without_packages_is_refused_before_anything_is_downloaded():
    with pytest.raises(wheels.WheelError, match="armhf"):
        wheels.collect("agent", "armhf")


@pytest.mark.parametrize("machine", wheels.MACHINES.values())
def test_every_compiled_library_is_recorded_for_every_architecture(machine: str):
    recorded = wheels.read_record((ROOT / wheels.RECORD).read_text())
    compiled = {name.split("-")[0] for name in recorded if not name.endswith("-none-any.whl")}
    assert compiled == {name.split("-")[0] for name in recorded if name.endswith(f"{machine}.whl")}
    assert "onnxruntime" in compiled


def git(checkout: Path, *words: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", "-C", str(checkout), *identity, *words], check=True, capture_output=True)


def test_what_differs_from_the_commit_is_named_as_far_as_packages_are_made_of_it(tmp_path: Path):
    git(tmp_path, "init")
    for name in ("agent/a.py", "agent/b.py", "docs/cli.md", "tests/t.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("committed")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "all")
    assert local_changes(tmp_path) == []
    (tmp_path / "agent/a.py").write_text("changed")
    (tmp_path / "agent/b.py").unlink()
    (tmp_path / "agent/new.py").touch()
    (tmp_path / "tests/t.py").write_text("changed")
    assert local_changes(tmp_path) == ["agent/a.py", "agent/b.py", "agent/new.py"]
    (tmp_path / "docs/cli.md").write_text("changed")
    assert local_changes(tmp_path)[3:] == ["…"]
