"""A lab: hosts on a switch, and what an operator does first with them.

>>> controller = lab.controller()                                # installed, initialised, running, root is logged in
>>> edge = lab.agent("edge-1", labels={"site": "lyon"})          # installed, enrolled, connected
>>> lab.roll_out(lab.register(flow_model()))
>>> lab.traffic(edge)
>>> wait_until("a verdict is written", lambda: lab.verdicts(edge))

Everything is done by the packages' own commands, as documented; nothing reaches into the programs.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.commands import CommandFailed, LabError, Result, wait_until
from tests.lab.ground import ROOT, Ground, break_ground
from tests.lab.host import Host
from tests.lab.image import Image, bare, building, forget_machine, layer_folder
from tests.lab.network import Network
from tests.lab.packages import Packages

AGENT = "vedette-agent"
CONTROLLER = "vedette-controller"
AGENT_STATE = "/var/lib/vedette-agent"
CONTROLLER_STATE = "/var/lib/vedette-controller"
VERDICTS = "/var/log/vedette/verdicts.jsonl"
ADMIN = f"{CONTROLLER_STATE}/admin.toml"
COLLECTOR_PORT = 2055
SLOT = "flow-threat"
BRISK = '[link]\nretry_cap_s = 2\n[telemetry]\ninterval_s = 1\n[sink.json]\nemit = "all"\n'
"""Settings of an agent that tries again soon, reports often and writes a verdict for each flow that was scored."""

_SCRAPE = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=5).read().decode())
"""
_INSTALL_S = 300
_CONNECT_S = 60
_ROLL_OUT_S = 120


@dataclass(slots=True)
class Traffic:
    """A running exporter."""

    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it; may be called again."""
        self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class Lab:
    """One scenario's hosts.

    Attributes:
        is_soak: Whether sizes and times shall be those of ``make soak``.
        hosts: All of them by name.
    """

    ground: Ground
    packages: Packages = field(default_factory=Packages)
    is_soak: bool = False
    network: Network = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)
    exporters: list[Traffic] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(self.ground)

    # Hosts

    def bare(self, name: str, *, is_read_only: bool = False) -> Host:
        """Return a host with nothing of ours on it; not booted."""
        return self._add(name, bare(), is_read_only=is_read_only)

    def with_package(self, name: str, *packages: Path, is_read_only: bool = False) -> Host:
        """Return a host on which packages were installed, and never run; not booted."""
        return self._add(name, installed(*packages), is_read_only=is_read_only)

    def controller(self, name: str = "ctl", *, volume: str = "", settings: str = "") -> Host:
        """Return a controller that serves, with root logged in on it.

        Args:
            name: Its host name, which agents reach it by.
            volume: Size of a disk of its own for its data, such as ``256M``; empty is none.
            settings: Its ``controller.toml``; empty is the packaged one.
        """
        host = self.with_package(name, self.packages.controller)
        host.configure("controller", settings)
        if volume:
            host.add_volume(CONTROLLER_STATE, volume)
        host.boot()
        self.initialise(host)
        return host

    def initialise(self, host: Host) -> None:
        """Do what docs say after the installation of a controller."""
        host.run(["vedette-controller", "init", "--dns", host.name])
        host.systemctl("start", CONTROLLER)
        host.run(["vedette", "login", ADMIN])

    def agent(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        volume: str = "",
        is_read_only: bool = False,
        settings: str = "",
    ) -> Host:
        """Return an agent that is enrolled at the lab's controller and connected.

        Args:
            name: Its host name, and its name in the fleet.
            labels: What its token gives it.
            volume: Size of a disk of its own for its state, such as ``64M``; empty is none.
            is_read_only: Whether its ``/`` is read-only; state and logs get volumes then.
            settings: Its ``agent.toml``; empty is the packaged one.
        """
        host = self.with_package(name, self.packages.agent, is_read_only=is_read_only)
        host.configure("agent", settings)
        if volume or is_read_only:
            host.add_volume(AGENT_STATE, volume or "64M")
        if is_read_only:
            host.add_volume("/var/log", "64M")
        host.boot()
        self.enrol(host, self.token(labels or {}))
        return host

    def enrol(self, host: Host, token: str) -> Result:
        """Enrol an appliance with the one documented command, and wait until the controller sees it."""
        said = host.run(["vedette-agent", "enroll", "--token", token])
        wait_until(f"{host.name} is connected", lambda: self.is_online(host), _CONNECT_S)
        return said

    def install(self, host: Host, package: Path) -> Result:
        """Install a package file as documented: ``apt install ./FILE``."""
        host.put(package, f"/root/{package.name}")
        return host.run(f"cd /root && apt install -y ./{package.name}", timeout=_INSTALL_S)

    # What an admin does

    def vedette(self, command: str, *, check: bool = True, timeout: float = 60) -> Result:
        """Run an admin's command on the controller: ``lab.vedette("agent ls")``."""
        return self._at_controller().run(["vedette", *shlex.split(command)], check=check, timeout=timeout)

    def ask(self, command: str) -> Any:
        """Run an admin's command and return its JSON."""
        return self.vedette(f"{command} --output json").data

    def token(self, labels: Mapping[str, str]) -> str:
        """Make a token for one appliance."""
        said = " ".join(f"--label {shlex.quote(f'{name}={value}')}" for name, value in labels.items())
        return str(self.ask(f"token create {said}")["token"])

    def fleet(self) -> dict[str, dict[str, Any]]:
        """Return what ``vedette agent ls`` says, by name."""
        return {agent["name"]: agent for agent in self.ask("agent ls")}

    def is_online(self, host: Host) -> bool:
        """Whether the controller has a link with an agent."""
        return self.fleet().get(host.name, {}).get("state") in {"healthy", "behind", "degraded"}

    def active(self, host: Host) -> str | None:
        """Return the version that an agent runs, such as ``flow-threat:1``, as ``vedette agent ls`` has it."""
        slot = self.fleet()[host.name]["slots"].get(SLOT) or {}
        return slot.get("active") or None

    def register(self, model: bytes, name: str = SLOT) -> str:
        """Register a model file; return its version, such as ``flow-threat:1``."""
        controller = self._at_controller()
        controller.put(model, "/root/model.onnx")
        return str(self.ask(f"model register /root/model.onnx --name {name}")["version"])

    def start_rollout(self, version: str, *, to: str = "", waves: str = "100%", soak: str = "1s") -> str:
        """Begin to roll out a version; return the rollout's number."""
        words = f"rollout start {version} --to {shlex.quote(to)} --waves {waves} --soak {soak}"
        return str(self.ask(words)["rollout"])

    def roll_out(self, version: str, *, to: str = "", waves: str = "100%", timeout: float = _ROLL_OUT_S) -> None:
        """Roll a version out to everyone and wait for success."""
        rollout = self.start_rollout(version, to=to, waves=waves)
        self.vedette(f"rollout watch {rollout}", timeout=timeout)

    # What an appliance sees

    def traffic(self, agent: Host, capture: str = "base/softflowd-v9", *, factor: float = 12) -> Traffic:
        """Let an exporter of its own send a capture to an agent, over and over.

        Args:
            agent: Whose collector gets it.
            capture: One of those that travel with the controller; ``base`` holds attacks.
            factor: How many times faster than it was recorded.
        """
        link = self.network.plug(f"exporter{len(self.exporters)}")
        words = [
            "ip", "netns", "exec", link.namespace, sys.executable, "-m", "tests.lab.exporter",
            agent.address, str(COLLECTOR_PORT), capture, str(factor),
        ]  # fmt: skip
        with (self.ground.folder / f"exporter{len(self.exporters)}").open("wb") as told:
            process = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=told, stderr=told, start_new_session=True
            )
        self.exporters.append(Traffic(process))
        return self.exporters[-1]

    def status(self, agent: Host) -> Any:
        """Return what ``vedette-agent status`` says, as JSON."""
        return agent.run(["vedette-agent", "status", "--output", "json"]).data

    def verdicts(self, agent: Host) -> list[dict[str, Any]]:
        """Return the verdicts that an agent has written to its file."""
        lines = agent.read(VERDICTS).splitlines()
        return [json.loads(line) for line in lines]

    def verdict_count(self, agent: Host) -> int:
        """Return how many verdicts an agent's file has."""
        return int(agent.run(f"cat {VERDICTS} 2>/dev/null | wc -l").out)

    def await_verdicts(self, agent: Host, timeout: float = 30) -> None:
        """Wait until an agent has written more verdicts than it has now."""
        known = self.verdict_count(agent)
        wait_until(f"{agent.name} writes verdicts", lambda: self.verdict_count(agent) > known, timeout)

    def conditions(self, agent: Host) -> dict[str, str]:
        """Return what ``vedette-agent status`` says is wrong: codes and texts."""
        return {condition["code"]: condition["text"] for condition in self.status(agent)["conditions"]}

    def metrics(self, host: Host) -> dict[str, float]:
        """Return what ``/metrics`` of an agent or a controller says, by name with labels as it prints them."""
        port = 7480 if host.exists("/usr/bin/vedette") else 9464
        lines = host.run(["python3", "-c", _SCRAPE, str(port)]).out.splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def move(self, host: Host) -> None:
        """Give a host another address; everybody's names lead there."""
        host.link.move()
        for known in self.hosts.values():
            known.rename_others()

    def rows_counted(self, agent: Host) -> int:
        """Return how many rows of an agent's models the controller has counted."""
        return sum(told["rows"] for told in self.ask("telemetry query") if told["agent"] == agent.name)

    # The end

    def collect(self, folder: Path) -> dict[str, str]:
        """Write what is known of each host to files; return a short account of each for a person.

        A host that does not answer is no reason to fail: what can be had is taken.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return {host.name: _account(host, folder, self.ground.folder / host.name) for host in self.hosts.values()}

    def close(self) -> None:
        """Remove everything."""
        for exporter in self.exporters:
            exporter.stop()
        for host in self.hosts.values():
            host.end()
        self.ground.sweep()

    def _add(self, name: str, image: Image, *, is_read_only: bool = False) -> Host:
        host = Host(self.ground, self.network, name, image, is_read_only=is_read_only)
        self.hosts[name] = host
        for known in self.hosts.values():
            known.rename_others()
        return host

    def _at_controller(self) -> Host:
        for host in self.hosts.values():
            if host.is_up and host.exists("/usr/bin/vedette"):
                return host
        raise LabError("the lab has no controller that is up")


def installed(*packages: Path) -> Image:
    """Return Debian with packages installed on it by apt on a booted host that has no route; built once for each.

    Raises:
        CommandFailed: They do not install.
    """
    base = bare()
    folder = layer_folder(base, *packages)
    with building(folder) as staged:
        if staged is not None:
            _install_on(base, packages, staged)
    return Image(folder.name, (folder, *base.folders))


def _install_on(base: Image, packages: tuple[Path, ...], staged: Path) -> None:
    lab = Lab(break_ground())
    try:
        host = lab._add("installer", base)
        host.boot()
        for package in packages:
            lab.install(host, package)
            host.run(["rm", f"/root/{package.name}"])
        host.stop()
        lab.ground.release()  # its files are reached past the mounts, or the move below would cross one
        forget_machine(host.layer)
        staged.rmdir()
        host.layer.rename(staged)
    finally:
        lab.close()


_QUESTIONS = {
    "journal": "journalctl --no-pager --output=short-precise",
    "units": "systemctl --no-pager --full status 'vedette*'; systemctl --no-pager --failed",
    "disks": "df -h; df -i; du -xsh /var/lib/vedette* /var/log 2>/dev/null",
    "processes": "ps -eo pid,user,rss,stat,etime,args",
}
_SHOWN = ("units", "journal")
_SHOWN_LINES = 40


def _account(host: Host, folder: Path, kept: Path) -> str:
    answers = {"link": host.link.describe()}
    if (kept / "console").exists():
        answers["console"] = (kept / "console").read_text(errors="replace")
    for name, command in _QUESTIONS.items():
        try:
            answers[name] = host.run(command, check=False, timeout=20).text
        except (CommandFailed, LabError, OSError) as exc:
            answers[name] = f"{exc}\n"
    for name, text in answers.items():
        (folder / f"{host.name}.{name}").write_text(text)
    shown = ["\n".join(answers[name].splitlines()[-_SHOWN_LINES:]) for name in _SHOWN]
    return "\n".join([answers["link"].rstrip(), *shown])
