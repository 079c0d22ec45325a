"""Removing and purging: what stays, what goes, and that nothing of the other package goes with it."""

from __future__ import annotations

from typing import Any

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, CONTROLLER, CONTROLLER_STATE, VERDICTS, Lab
from tests.lab.models import flow_model

_OTHERS_TOO = (
    # What apt, dpkg, systemd and PAM write for whatever is installed, and an admin's own files.
    "/var/log/journal/", "/var/log/apt", "/var/log/dpkg.log", "/var/cache/", "/var/lib/apt/", "/var/lib/dpkg/",
    "/var/lib/systemd/", "/root", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/tmp/",
)  # fmt: skip


def test_a_removed_agent_keeps_what_it_has_and_goes_on_when_installed_again(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    identity = edge.run(f"sha256sum {AGENT_STATE}/enrolment/*").out

    edge.run("apt remove -y vedette-agent", timeout=120)
    wait_until("the controller misses it", lambda: not lab.is_online(edge))
    assert edge.run("ps -o pid= -u vedette-agent", check=False).out == ""
    assert not edge.exists("/usr/lib/vedette-agent")
    assert not edge.exists("/usr/bin/vedette-agent")
    assert edge.run("systemctl --failed --no-legend").out == ""
    assert edge.read("/etc/vedette/agent.toml") == BRISK

    lab.install(edge, lab.packages.agent)
    lab.traffic(edge)
    wait_until("a verdict is written", lambda: lab.verdicts(edge))
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert edge.run(f"sha256sum {AGENT_STATE}/enrolment/*").out == identity
    assert lab.active(edge) == "flow-threat:1"
    assert list(lab.fleet()) == ["edge-1"]


def test_an_agent_that_was_stopped_when_it_was_removed_is_not_started_by_installing_it_again(lab: Lab) -> None:
    edge = lab.with_package("edge-1", lab.packages.agent)
    edge.boot()
    edge.systemctl("stop", AGENT)
    edge.run("apt remove -y vedette-agent", timeout=120)
    edge.put(lab.packages.agent, "/root/agent.deb")
    edge.run("dpkg --install /root/agent.deb", timeout=120)  # what apt does, without it
    assert not edge.is_active(AGENT)
    assert edge.run(["dpkg", "--verify", AGENT]).out == ""
    assert edge.run(f"ls -A {AGENT_STATE}/.ran*", check=False).out == ""


def test_a_removed_controller_goes_on_with_its_fleet_when_installed_again(lab: Lab) -> None:
    controller = lab.controller()
    lab.agent("edge-1", settings=BRISK)
    controller.run("apt remove -y vedette-controller", timeout=120)
    assert not controller.exists("/usr/bin/vedette")
    assert controller.exists(f"{CONTROLLER_STATE}/controller.db")
    assert controller.systemctl("list-units", "--no-legend", "vedette*").out == ""
    lab.install(controller, lab.packages.controller)
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert controller.is_active("vedette-backup.timer")


def test_a_purge_leaves_nothing_and_the_other_package_whole(lab: Lab) -> None:
    host = lab.bare("ctl")
    host.boot()
    before = _files(host)
    lab.install(host, lab.packages.controller)
    lab.initialise(host)
    host.systemctl("start", "vedette-backup")
    lab.install(host, lab.packages.agent)
    host.run(["vedette-agent", "configure", "--gpu"])
    lab.enrol(host, lab.token({}))
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(host)
    wait_until("a verdict is written", lambda: lab.verdicts(host))
    kept = _state_of(host, AGENT)

    host.run("apt purge -y vedette-controller", timeout=120)
    assert [path for path in _files(host) - before if CONTROLLER in path and not path.startswith(_OTHERS_TOO)] == []
    assert _state_of(host, AGENT) == kept
    known = len(lab.verdicts(host))
    wait_until("it goes on", lambda: len(lab.verdicts(host)) > known)

    host.run("apt purge -y vedette-agent", timeout=120)
    assert [path for path in _files(host) - before if not path.startswith(_OTHERS_TOO)] == []
    assert [path for path in _files(host) if "vedette" in path and not path.startswith("/root")] == []
    assert host.run("ps -eo args | grep [v]edette", check=False).out == ""
    assert host.run("systemctl list-units --all --no-legend 'vedette*'").out == ""
    # As Debian has it: a number that was given once is not given to another.
    assert "vedette-agent:" in host.read("/etc/passwd")


def test_purging_an_agent_leaves_a_controller_on_the_same_host_whole(lab: Lab) -> None:
    host = lab.controller()
    lab.install(host, lab.packages.agent)
    lab.enrol(host, lab.token({}))
    kept = _state_of(host, CONTROLLER)

    host.run("apt purge -y vedette-agent", timeout=120)
    assert not host.exists(AGENT_STATE)
    assert not host.exists(VERDICTS)
    assert _state_of(host, CONTROLLER) == kept
    assert host.run("vedette-controller check").ok
    wait_until("it misses the agent", lambda: not lab.is_online(host))


def _files(host: Host) -> set[str]:
    return set(host.run("find / -xdev -not -type s").out.splitlines())


def _state_of(host: Host, package: str) -> dict[str, Any]:
    state = {AGENT: f"{AGENT_STATE}/enrolment", CONTROLLER: f"{CONTROLLER_STATE}/keys"}[package]
    return {
        "verified": host.run(["dpkg", "--verify", package]).out,
        "process": host.main_pid(package),
        "enabled": host.systemctl("is-enabled", package).out,
        "keys": host.run(f"find {state} -type f | sort | xargs sha256sum").out,
        "settings": host.read(f"/etc/vedette/{package.removeprefix('vedette-')}.toml"),
    }
