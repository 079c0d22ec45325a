"""Packages for hosts without a network: what is gathered, and that nothing else and nothing changed gets installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

GATHER = Path(__file__).parents[3] / "packaging/offline/gather"
TOOLS = ("apt-get", "apt-cache", "dpkg-deb")
pytestmark = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="needs Debian's apt")


def _deb(folder: Path, name: str, version: str = "1", **fields: str) -> Path:
    """Make a package of one file."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    tree.chmod(0o755)
    known = {
        "Package": name,
        "Version": version,
        "Architecture": "all",
        "Maintainer": "t",
        "Description": "t",
        **fields,
    }
    (tree / "DEBIAN/control").write_text("".join(f"{key.replace('_', '-')}: {value}\n" for key, value in known.items()))
    deb = folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    shutil.rmtree(tree)
    return deb


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A sources.list with one small Debian, in a folder."""
    archive = tmp_path / "archive"
    archive.mkdir()
    _deb(archive, "apt", Depends="libapt")
    _deb(archive, "libapt")
    _deb(archive, "base-files", Priority="required")
    _deb(archive, "libneeded", "2:7", Depends="libdeeper")
    _deb(archive, "libdeeper", Suggests="unneeded")
    _deb(archive, "logrotate", Recommends="unneeded")
    _deb(archive, "unneeded")
    index = ""
    for deb in sorted(archive.iterdir()):
        plain = deb.rename(deb.with_name(deb.name.replace("%3a", "-")))
        data = plain.read_bytes()
        control = subprocess.run(["dpkg-deb", "-f", plain], check=True, capture_output=True, text=True).stdout
        index += f"{control}Filename: ./{plain.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    (archive / "Packages").write_text(index)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{archive} ./\n")
    return tmp_path / "sources.list"


def _gather(sources: Path, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [GATHER, "--sources", sources, "--output", sources.parent / "out.tar", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def gathered(sources: Path, tmp_path: Path) -> Path:
    """The unpacked tar of an agent that needs libneeded and recommends logrotate."""
    (tmp_path / "dist").mkdir()
    deb = _deb(tmp_path / "dist", "vedette-agent", "1.2", Depends="base-files, apt, libneeded", Recommends="logrotate")
    done = _gather(sources, deb)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "out.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "out"


def test_the_tar_holds_what_a_bare_host_lacks_and_nothing_more(gathered: Path):
    names = {file.name for file in gathered.iterdir()}
    ours = {"vedette-agent_1.2_all.deb", "libneeded_7_all.deb", "libdeeper_1_all.deb", "logrotate_1_all.deb"}
    assert names == ours | {"install", "Packages", "SHA256SUMS"}


def test_a_hosts_own_status_says_what_it_lacks(sources: Path, tmp_path: Path):
    (tmp_path / "dist").mkdir()
    deb = _deb(tmp_path / "dist", "vedette-agent", "1.2", Depends="libneeded")
    status = tmp_path / "status"
    fields = "Status: install ok installed\nArchitecture: all\nMaintainer: t\nDescription: t"
    status.write_text(f"Package: libdeeper\nVersion: 1\n{fields}\n")
    assert _gather(sources, "--status", status, deb).returncode == 0
    with tarfile.open(tmp_path / "out.tar") as archive:
        debs = [Path(name).name for name in archive.getnames() if name.endswith(".deb")]
    assert debs == ["libneeded_7_all.deb", "vedette-agent_1.2_all.deb"]


def test_the_same_packages_give_the_same_tar_and_its_sum_is_told(gathered: Path, sources: Path, tmp_path: Path):
    digest = hashlib.sha256((tmp_path / "out.tar").read_bytes()).hexdigest()
    again = _gather(sources, next((tmp_path / "dist").glob("*.deb")))
    assert f"SHA-256 {digest}" in again.stdout
    assert hashlib.sha256((tmp_path / "out.tar").read_bytes()).hexdigest() == digest


def test_what_cannot_be_had_is_an_error_that_names_it(sources: Path, tmp_path: Path):
    (tmp_path / "dist").mkdir()
    done = _gather(sources, _deb(tmp_path / "dist", "vedette-agent", "1.2", Depends="libnowhere"))
    assert done.returncode == 1
    assert "libnowhere" in done.stderr
    assert not (tmp_path / "out.tar").exists()
    (tmp_path / "no.deb").write_text("x")
    assert "no.deb is no package" in _gather(sources, tmp_path / "no.deb").stderr


def _install(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the tar's script with an apt-get that only says what it was asked."""
    (folder.parent / "bin").mkdir(exist_ok=True)
    for name, text in (("apt-get", 'echo "$@"'), ("id", "echo 0")):
        (folder.parent / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder.parent / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder.parent}/bin:{os.environ['PATH']}"}
    return subprocess.run([folder / "install", *words], check=False, capture_output=True, text=True, env=environment)


def test_the_script_installs_the_very_version_that_was_gathered(gathered: Path):
    done = _install(gathered, "agent", "--allow-downgrades")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-5:] == ["install", "--yes", "--allow-downgrades", "vedette-agent=1.2", "logrotate"]
    assert "Dir::Etc::SourceParts=/dev/null" in done.stdout
    assert _install(gathered).stdout.split()[-2:] == ["vedette-agent=1.2", "logrotate"]


def test_a_changed_or_added_file_stops_the_script_before_apt(gathered: Path):
    deb = gathered / "libdeeper_1_all.deb"
    whole = deb.read_bytes()
    deb.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    changed = _install(gathered)
    deb.write_bytes(whole)
    shutil.copy(deb, gathered / "stray.deb")
    added = _install(gathered)
    (gathered / "stray.deb").unlink()
    assert [(done.returncode, done.stdout) for done in (changed, added)] == [(1, ""), (1, "")]
    assert "nothing was installed" in changed.stderr
    assert "stray.deb is not in SHA256SUMS" in added.stderr
    assert _install(gathered).returncode == 0


def test_what_is_not_there_is_said(gathered: Path):
    assert "there is no vedette-controller" in _install(gathered, "controller").stderr
    assert "what is 'agnt'?" in _install(gathered, "agnt").stderr
