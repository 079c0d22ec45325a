"""What a controller and three agents cost together: idle with a model loaded, and under replayed traffic.

Real processes, set up as in the demo. Memory is the proportional set size of a program and its children.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path

import psutil

from vedette.controller.demo.fleet import LocalFleet
from vedette.controller.demo.replay import Replay, captures, recorded

_AGENTS = ["edge-a", "edge-b", "edge-c"]
_IDLE_S = 20.0
_BUSY_S = 20.0
_FACTOR = 10.0


def run() -> dict[str, float]:
    """Return CPU shares, memory and telemetry bytes."""
    with tempfile.TemporaryDirectory(prefix="vb") as folder:
        fleet = LocalFleet(Path(folder), window_s=10)
        replays: list[Replay] = []
        try:
            _with_a_model(fleet)
            figures = _measured(fleet, "idle", _IDLE_S)
            capture = recorded(captures() / "base/softflowd-v9.pcap.gz")
            replays += [Replay(edge.port, capture, _FACTOR) for edge in fleet.edges]
            for replay in replays:
                replay.start()
            figures |= _measured(fleet, f"base capture at {_FACTOR:g} times its pace", _BUSY_S)
            return figures | _telemetry_bytes(fleet)
        finally:
            for replay in replays:
                replay.stop()
            fleet.stop()


def _with_a_model(fleet: LocalFleet) -> None:
    fleet.start_controller()
    fleet.start_agents(_AGENTS)
    folder = captures() / "base2"
    capture = str(folder / "softflowd-v9.pcap.gz")
    fleet.vedette("data", "import", capture, "--dataset", "lab", "--format", "flows", quiet=True)
    fleet.vedette("label", "import", str(folder / "labels.json"), "--dataset", "lab", quiet=True)
    fleet.vedette("data", "snapshot", "lab", quiet=True)
    version = fleet.vedette("train", "flow-threat", "--data", "lab@1", quiet=True)["version"]
    started = fleet.vedette("rollout", "start", version, "--to", "", "--waves", "100%", "--soak", "0s", quiet=True)
    fleet.vedette("rollout", "watch", started["rollout"], quiet=True)
    time.sleep(5)  # what training left behind settles


def _measured(fleet: LocalFleet, when: str, seconds: float) -> dict[str, float]:
    before, begun = _cpu(fleet), time.monotonic()
    time.sleep(seconds)
    spent = {name: now - before[name] for name, now in _cpu(fleet).items()}
    took = time.monotonic() - begun
    agents = [name for name in spent if name != "controller"]
    figures = {
        f"{when}: controller, % of a core": 100 * spent["controller"] / took,
        f"{when}: one agent, % of a core": 100 * sum(spent[name] for name in agents) / len(agents) / took,
        f"{when}: all together, % of a core": 100 * sum(spent.values()) / took,
    }
    memory = {name: sum(_pss(process) for process in processes) / 2**20 for name, processes in _family(fleet).items()}
    figures[f"{when}: controller, MiB PSS"] = memory["controller"]
    figures[f"{when}: one agent with its worker, MiB PSS"] = sum(memory[name] for name in agents) / len(agents)
    return figures


def _family(fleet: LocalFleet) -> dict[str, list[psutil.Process]]:
    found = {}
    for name, pid in fleet.programs.pids().items():
        main = psutil.Process(pid)
        found[name] = [main, *main.children(recursive=True)]
    return found


def _cpu(fleet: LocalFleet) -> dict[str, float]:
    return {
        name: sum(sum(process.cpu_times()[:2]) for process in processes) for name, processes in _family(fleet).items()
    }


def _pss(process: psutil.Process) -> int:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _telemetry_bytes(fleet: LocalFleet) -> dict[str, float]:
    """Return what one window with a profile of every feature takes on the wire, as the controller counts it."""
    with sqlite3.connect(f"file:{fleet.context.parent / 'controller.db'}?mode=ro", uri=True) as database:
        query = "SELECT avg(length(profile)), avg(rows) FROM telemetry_windows WHERE length(profile) > 0"
        profile, rows = database.execute(query).fetchone()
    return {"profile of one window, bytes": profile, "flows in that window": rows}
