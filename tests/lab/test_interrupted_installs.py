"""The power fails while dpkg works: two commands finish what was begun, whatever the instant was."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.commands import NeverHappened, wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, CONTROLLER, VERDICTS, Lab
from tests.lab.models import flow_model

_BEGUN_S = 200
_LOOK_S = 0.002
_PROGRAMS = {AGENT: "400M", CONTROLLER: "1G"}
_PACKAGES = "/var/lib/dpkg"

Instant = Callable[[Host, str], bool]


def _unpacking(host: Host, package: str) -> bool:
    """Some of the files are there, under the names that dpkg gives them at first."""
    libraries = _outside(host, f"/usr/lib/{package}") / "lib/python3.11/site-packages"
    return libraries.is_dir() and sum(1 for _ in libraries.iterdir()) > 5


def _renaming(host: Host, package: str) -> bool:
    """The first program has its name; what dpkg knows of the package has not been written."""
    return (_outside(host, f"/usr/lib/{package}") / f"bin/{package}").exists()


def _unpacked(host: Host, package: str) -> bool:
    """dpkg has the package's own scripts."""
    return (_outside(host, _PACKAGES) / f"info/{package}.postinst").exists()


def _configuring(host: Host, package: str) -> bool:
    """The package's script has made the user and has more to do."""
    return f"{package}:" in (host.root / "etc/passwd").read_text()


_INSTANTS: tuple[Instant, ...] = (_unpacking, _renaming, _unpacked, _configuring)


def _outside(host: Host, path: str) -> Path:
    """Return where a folder of a host is on this machine."""
    volume = host.volumes.get(path)
    return volume.mounted if volume else host.root / path.lstrip("/")


def _cut_off(host: Host, package: Path, instant: Instant) -> None:
    """Install a package and take the power away at an instant; then boot."""
    name = package.name.split("_")[0]
    install = f"cd /root && exec apt install -y ./{package.name}"
    words = ["nsenter", "--target", str(host.leader), "--all", "--", "sh", "-c", install]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as apt:
        assert apt.stdout is not None
        end = time.monotonic() + _BEGUN_S
        while not instant(host, name):
            if apt.poll() is not None or time.monotonic() > end:
                raise NeverHappened(f"{instant.__name__} was not seen while this ran:\n{apt.stdout.read().decode()}")
            time.sleep(_LOOK_S)
        host.power_cut()
    host.boot()


def _finish(host: Host, package: Path) -> None:
    """Do what docs/operations.md says after a power cut; it must have been needed."""
    name = package.name.split("_")[0]
    assert host.run(["dpkg", "--audit"]).out or not host.run(["dpkg-query", "--show", name], check=False).ok
    host.run("dpkg --configure -a", timeout=120, check=False)  # it refuses a package that it had half unpacked
    host.run(f"cd /root && apt install -y --reinstall ./{package.name}", timeout=200)
    assert host.run(["dpkg", "--audit"]).out == ""
    assert host.run(["dpkg", "--verify", name]).out == ""


def _to_cut(lab: Lab, name: str, package: Path) -> Host:
    """Return a booted host whose files of programs and packages are on disks that lose what was not synced.

    They are two disks, as with a ``/var`` of its own. dpkg syncs the content of files, not their names: what its
    database calls unpacked may then be there under no name, which one disk alone cannot bring about.
    """
    host = lab.bare(name)
    role = package.name.split("_")[0]
    host.add_volume(f"/usr/lib/{role}", _PROGRAMS[role])
    host.add_volume(_PACKAGES, "64M")
    host.boot()
    host.put(package, f"/root/{package.name}")
    return host


@pytest.mark.parametrize("instant", _INSTANTS, ids=lambda instant: instant.__name__.strip("_"))
def test_an_agent_whose_installation_was_cut_off_is_finished_and_enrols(lab: Lab, instant: Instant) -> None:
    package = lab.packages.agent
    edge = _to_cut(lab, "edge-1", package)
    _cut_off(edge, package, instant)
    _finish(edge, package)
    assert edge.systemctl("is-enabled", AGENT).out.strip() == "enabled"
    lab.controller()
    lab.enrol(edge, lab.token({}))
    assert edge.run("systemctl --failed --no-legend").out == ""


@pytest.mark.parametrize("instant", _INSTANTS, ids=lambda instant: instant.__name__.strip("_"))
def test_a_controller_whose_installation_was_cut_off_is_finished_and_serves(lab: Lab, instant: Instant) -> None:
    if instant is not _renaming and not lab.is_soak:
        pytest.skip("one instant is enough here, the scripts are the agent's: make soak has the others")
    package = lab.packages.controller
    controller = _to_cut(lab, "ctl", package)
    _cut_off(controller, package, instant)
    _finish(controller, package)
    lab.initialise(controller)
    assert lab.vedette("agent ls").ok
    assert controller.run("systemctl --failed --no-legend").out == ""


def test_an_agent_whose_upgrade_was_cut_off_serves_on_and_the_upgrade_is_finished(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    wait_until("a verdict is written", lambda: lab.verdicts(edge))
    newer = lab.packages.newer("agent")
    edge.put(newer, f"/root/{newer.name}")
    identity = edge.run(f"sha256sum {AGENT_STATE}/enrolment/*").out

    _cut_off(edge, newer, _half_of_the_next_version)
    known = int(edge.run(f"cat {VERDICTS} | wc -l").out)
    wait_until("it serves after the cut", lambda: int(edge.run(f"cat {VERDICTS} | wc -l").out) > known)
    edge.run("dpkg --configure -a", timeout=120, check=False)
    edge.run(f"cd /root && apt install -y --reinstall ./{newer.name}", timeout=200)

    assert edge.run("vedette-agent --version").out.split()[1] == lab.packages.next_version
    assert edge.run(["dpkg", "--audit"]).out == ""
    assert edge.run(["dpkg", "--verify", AGENT]).out.split() == ["??5??????", "c", "/etc/vedette/agent.toml"]
    assert edge.run(f"sha256sum {AGENT_STATE}/enrolment/*").out == identity
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert lab.active(edge) == "flow-threat:1"


def _half_of_the_next_version(host: Host, package: str) -> bool:
    """Files of the next version lie beside those of this one."""
    libraries = host.root / f"usr/lib/{package}/lib/python3.11/site-packages"
    return any(libraries.glob("grpc/*.dpkg-new"))
