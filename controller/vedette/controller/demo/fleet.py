"""A controller and agents as real processes on this machine, set up with the commands a person would use."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vedette.controller.demo.programs import Admin, DemoError, Programs, free_ports, program

_ENROLL = "enroll --token vdt1.… --config …/agent.toml"


@dataclass(frozen=True, slots=True)
class Edge:
    """One agent."""

    name: str
    config: Path
    verdicts: Path
    port: int  # of its collector, UDP on the loopback address


class LocalFleet:
    """Starts a controller and agents under one folder, and stops them.

    Args:
        root: Where all state goes; its path must leave room for the name of a unix socket (107 bytes in all).
        window_s: Span of a telemetry window.
        say: Shows a command before it runs.
    """

    def __init__(self, root: Path, *, window_s: float, say: Callable[[str], None] = lambda _: None) -> None:
        self._root = root
        self._window_s = window_s
        self._say = say
        logs = root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.programs = Programs(logs)
        self.context = root / "controller/admin.toml"
        self.vedette = Admin(self.context, say)
        self.edges: list[Edge] = []

    def start_controller(self) -> tuple[int, int]:
        """Make a controller and start it; return its mTLS port and its enrolment port.

        Raises:
            DemoError: It did not come up.
        """
        listen, enrol, http = free_ports(3, socket.SOCK_STREAM)
        home = self._root / "controller"
        shown = f"init --data-dir …/controller --listen 127.0.0.1:{listen}"
        arguments = ["init", "--data-dir", str(home), "--listen", f"127.0.0.1:{listen}"]
        self._foreground("vedette-controller", *arguments, shown=shown)
        config = home / "controller.toml"
        _set(config, {"enrol_listen": f"127.0.0.1:{enrol}", "http": f"127.0.0.1:{http}"})
        self._say("vedette-controller serve --config …/controller/controller.toml")
        self.programs.start("controller", [*program("vedette-controller"), "serve", "--config", str(config)])
        self.programs.until("the controller", lambda: _listens(listen) and _listens(enrol), within_s=30)
        return listen, enrol

    def start_agents(self, names: list[str], *, first_writes_all: bool = False) -> None:
        """Enrol agents, each with a token of its own, start them, and wait until all are connected.

        Args:
            names: Of the agents.
            first_writes_all: The first one writes every verdict, the others only those that are flagged.

        Raises:
            DemoError: One did not come up.
        """
        for name, port in zip(names, free_ports(len(names), socket.SOCK_DGRAM), strict=True):
            is_first = name == names[0]
            self.edges.append(
                self._agent(name, port, "all" if is_first and first_writes_all else "flagged", shown=is_first)
            )
        self.programs.until("all agents to connect", self._all_healthy, within_s=30 + 3 * len(names))

    def stop(self) -> None:
        """Stop everything; may be called at any point, and again."""
        self.programs.stop()

    def _agent(self, name: str, port: int, emit: str, *, shown: bool) -> Edge:
        home = self._root / "agents" / name
        home.mkdir(parents=True)
        edge = Edge(name, home / "agent.toml", home / "verdicts.jsonl", port)
        edge.config.write_text(self._agent_config(home, name, port, emit))
        made = self.vedette("token", "create", "--label", f"site={name.rsplit('-', maxsplit=1)[-1]}", quiet=not shown)
        arguments = ["enroll", "--token", made["token"], "--config", str(edge.config)]
        self._foreground("vedette-agent", *arguments, shown=_ENROLL if shown else "")
        self.programs.start(name, [*program("vedette-agent"), "run", "--config", str(edge.config)])
        return edge

    def _agent_config(self, home: Path, name: str, port: int, emit: str) -> str:
        values: Mapping[str, Mapping[str, Any]] = {
            "": {"state_dir": str(home / "state"), "name": name},
            "source.netflow": {"listen": f"127.0.0.1:{port}"},
            "inference": {"socket": str(home / "inference.sock")},
            "sink.json": {"path": str(home / "verdicts.jsonl"), "emit": emit},
            "metrics": {"listen": ""},
            "telemetry": {"interval_s": self._window_s},
            "link": {"retry_cap_s": 5},
        }
        return "\n".join(_table(part, keys) for part, keys in values.items()) + "\n"

    def _all_healthy(self) -> bool:
        agents = self.vedette("agent", "ls", quiet=True)
        return len(agents) == len(self.edges) and all(agent["state"] == "healthy" for agent in agents)

    def _foreground(self, name: str, *arguments: str, shown: str | None = None) -> None:
        """Run a program to its end, quietly; its own words are shown when it fails."""
        if shown != "":
            self._say(f"{name} {shown or ' '.join(arguments)}")
        done = subprocess.run([*program(name), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"{name} {arguments[0]} ended with exit code {done.returncode}.\n{done.stderr.strip()}")


def _table(part: str, keys: Mapping[str, Any]) -> str:
    return "\n".join([*([f"[{part}]"] if part else []), *(f"{key} = {json.dumps(item)}" for key, item in keys.items())])


def _set(config: Path, changes: Mapping[str, str]) -> None:
    """Set top-level text keys of a TOML file that its program has just written."""
    kept = [line for line in config.read_text().splitlines() if line.split("=")[0].strip() not in changes]
    config.write_text("\n".join([_table("", changes), *kept]) + "\n")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
