"""What happens in a demo, in which order, and what is shown of it.

Agents watch captured traffic of one network; the model is trained on another network's, so that what they find was
never seen in training. Then the traffic changes, drift shows it, and a second version is trained and rolled out.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from vedette.controller.demo.programs import Admin, DemoError, Programs, free_ports, program
from vedette.controller.demo.replay import Replay, captures, length_s, recorded

_NAMES = ("edge-lyon", "edge-oslo", "edge-porto", "edge-turin", "edge-gent", "edge-cork", "edge-brno", "edge-graz")
_BEFORE = ("base/softflowd-v9", "base/softflowd-ipfix", "base/pmacct-v9")
_AFTER = ("shifted/softflowd-v9", "shifted/softflowd-ipfix", "shifted/pmacct-v9")
_TRAIN_FIRST = ("base2/softflowd-v9", "base2/pmacct-ipfix")
_TRAIN_SECOND = ("shifted/softflowd-v9",)
_WINDOW_S = 5
_BEFORE_S = 60
_MODEL = "flow-threat"
_ENROLL = "enroll --token vdt1.… --config …/agent.toml"
_COLUMNS = ("AGENT", "VERSION", "FLOWS/S", "P50", "P99", "FLOWS", "FLAGGED", "MEMORY")


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may choose.

    Attributes:
        agents: How many.
        factor: How many times faster than recorded the traffic is replayed.
        keep: Go on until Ctrl-C once everything has happened.
        live: Interface that the real softflowd watches for the first agent, besides; None is none.
        directory: For all state; removed at the end unless it was chosen.
    """

    agents: int
    factor: float
    keep: bool
    live: str | None
    directory: Path


@dataclass(slots=True)
class _Edge:
    """One agent of the demo."""

    name: str
    config: Path
    verdicts: Path
    port: int
    replay: Replay


class Story:
    """One run of the demo.

    Args:
        options: As chosen.
        console: Where it is told.
    """

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._root = options.directory
        self._logs = self._root / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._programs = Programs(self._logs)
        self._edges: list[_Edge] = []
        self._begun = time.monotonic()
        self._step = 0
        self._vedette = Admin(self._root / "controller/admin.toml", self._command)

    def run(self) -> None:
        """Tell the whole story.

        Raises:
            DemoError: Something did not go as it must.
        """
        self._start_controller()
        self._start_agents()
        self._start_traffic()
        first = self._train("lab", _TRAIN_FIRST)
        self._roll_out(first)
        self._show_fleet(first)
        self._change_traffic()
        second = self._train("lab", _TRAIN_SECOND)
        self._roll_out(second)
        self._show_fleet(second)
        self._end(first, second)
        while self._options.keep:
            self._programs.check()
            time.sleep(1)

    def stop(self) -> None:
        """Stop traffic and programs; may be called at any point, and again."""
        for edge in self._edges:
            edge.replay.stop()
        self._programs.stop()

    def _start_controller(self) -> None:
        self._heading("A controller: its own CA, keys, database and blob store")
        listen, enrol, http = free_ports(3, socket.SOCK_STREAM)
        home = self._root / "controller"
        self._foreground("vedette-controller", "init", "--data-dir", str(home), "--listen", f"127.0.0.1:{listen}")
        config = home / "controller.toml"
        _replace_setting(config, "enrol_listen", f"127.0.0.1:{enrol}")
        _replace_setting(config, "http", f"127.0.0.1:{http}")
        self._command(f"vedette-controller serve --config …/{config.parent.name}/{config.name}")
        self._programs.start("controller", [*program("vedette-controller"), "serve", "--config", str(config)])
        self._programs.until("the controller", lambda: _listens(listen) and _listens(enrol), within_s=30)
        self._note(f"serves on 127.0.0.1:{listen} (mTLS) and {enrol} (enrolment)")

    def _start_agents(self) -> None:
        count = self._options.agents
        self._heading(f"{count} agents: each enrols with a one-time token and makes a key that never leaves it")
        ports = free_ports(count, socket.SOCK_DGRAM)
        for place, port in enumerate(ports):
            name = _NAMES[place % len(_NAMES)] + (f"-{place // len(_NAMES) + 1}" if place >= len(_NAMES) else "")
            self._edges.append(self._agent(name, port, _BEFORE[place % len(_BEFORE)], shown=place == 0))
        self._programs.until("all agents to connect", self._all_online, within_s=30)
        self._note(f"{count} of {count} are connected")

    def _agent(self, name: str, port: int, capture: str, *, shown: bool) -> _Edge:
        home = self._root / "agents" / name
        home.mkdir(parents=True)
        edge = _Edge(
            name,
            home / "agent.toml",
            home / "verdicts.jsonl",
            port,
            Replay(port, recorded(captures() / f"{capture}.pcap.gz"), self._options.factor),
        )
        edge.config.write_text(_agent_config(home, name, port))
        made = self._vedette("token", "create", "--label", f"site={name.split('-')[1]}", quiet=not shown)
        arguments = ["enroll", "--token", made["token"], "--config", str(edge.config)]
        self._foreground("vedette-agent", *arguments, shown=_ENROLL if shown else "")
        self._programs.start(name, [*program("vedette-agent"), "run", "--config", str(edge.config)])
        return edge

    def _start_traffic(self) -> None:
        factor = self._options.factor
        self._heading(f"Traffic: export datagrams of real softflowd and pmacct, {factor:g} times their recorded pace")
        for place, edge in enumerate(self._edges):
            edge.replay.start()
            self._note(f"{_BEFORE[place % len(_BEFORE)]:24} → {edge.name}, UDP 127.0.0.1:{edge.port}")
        if self._options.live:
            self._start_live(self._options.live, self._edges[0])

    def _start_live(self, interface: str, edge: _Edge) -> None:
        found = shutil.which("softflowd") or shutil.which("/usr/sbin/softflowd")
        if found is None:
            raise DemoError("--live needs softflowd, which is not installed.\nInstall it: apt install softflowd")
        control = self._root / "softflowd.ctl"
        options = ["-d", "-v", "9", "-t", "maxlife=60", "-t", "expint=1", "-c", str(control)]
        self._programs.start("softflowd", [found, *options, "-i", interface, "-n", f"127.0.0.1:{edge.port}"])
        self._note(f"softflowd watches {interface:14} → {edge.name}")

    def _train(self, dataset: str, names: tuple[str, ...]) -> str:
        self._heading(f"A model: {_MODEL} trained on a labelled snapshot, converted, checked, signed")
        for name in names:
            folder = captures() / name.split("/", maxsplit=1)[0]
            capture = str(captures() / f"{name}.pcap.gz")
            self._vedette("data", "import", capture, "--dataset", dataset, "--format", "flows")
        self._vedette("label", "import", str(folder / "labels.json"), "--dataset", dataset)
        snapshot = self._vedette("data", "snapshot", dataset)
        run = self._vedette("train", _MODEL, "--data", snapshot["snapshot"])
        metrics = run.get("metrics", {})
        for metric in sorted(metrics)[:8]:
            self._note(f"{metric:44} {metrics[metric]:.4g}")
        return str(run["version"])

    def _roll_out(self, version: str) -> None:
        self._heading(f"{version} goes out: one canary, then the rest; old versions serve until the new one does")
        started = self._vedette("rollout", "start", version, "--to", "", "--waves", "1,100%", "--soak", "3s")
        self._vedette("rollout", "watch", started["rollout"])
        for agent in self._vedette("agent", "ls", quiet=True):
            if agent["slots"].get(_MODEL, {}).get("active") != version:
                raise DemoError(f"{agent['name']} does not run {version} after its rollout: {agent['slots']}")

    def _show_fleet(self, version: str) -> None:
        reported = f"telemetry of {version} from every agent"
        self._programs.until(reported, lambda: self._all_reported(version), within_s=60)
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for place, name in enumerate(_COLUMNS):
            table.add_column(name, justify="left" if place < 2 else "right")
        for row in self._telemetry():
            if row["version"] == version:
                table.add_row(*_cells(row))
        self._console.print(table)
        self._show_verdict()

    def _show_verdict(self) -> None:
        for edge in self._edges:
            line = _newest_flagged(edge.verdicts)
            if line is None:
                continue
            said = line["vedette"]
            way = f"{line['src_ip']} → {line['dest_ip']} port {line['dest_port']} {line['proto']}"
            self._note(f"newest verdict of {edge.name}: {said['verdict']}, score {said['score']:.3f}, {way}")
            for item in said["evidence"][:3]:
                self._note(f"  {item['feature']:36} {item['value']:>12,.4g}   usual {item['usual']:.4g}")
            return

    def _change_traffic(self) -> None:
        self._heading("The traffic mix changes: backups, a chatty UDP service, fewer web pages")
        before = self._vedette("drift", _MODEL, "--window", f"{_BEFORE_S}s")
        longest = 0.0
        for place, edge in enumerate(self._edges):
            changed = recorded(captures() / f"{_AFTER[place % len(_AFTER)]}.pcap.gz")
            longest = max(longest, length_s(changed) / self._options.factor)
            edge.replay.play(changed)
        self._programs.until(
            "the changed traffic to play once",
            lambda: all(edge.replay.rounds >= 1 for edge in self._edges),
            within_s=longest + 30,
        )
        time.sleep(_WINDOW_S)  # the last window of the changed traffic travels
        report = self._vedette("drift", _MODEL, "--window", f"{max(10, int(longest))}s")
        for line in _moved(before, report):
            self._note(line)

    def _end(self, first: str, second: str) -> None:
        sent = sum(edge.replay.sent for edge in self._edges)
        written = sum(_count_lines(edge.verdicts) for edge in self._edges)
        took = time.monotonic() - self._begun
        self._heading("Done")
        self._note(f"{sent:,} datagrams replayed, {written:,} verdict lines written in {took:.0f} s")
        self._note(f"{first} and {second} trained, signed and rolled out to {len(self._edges)} agents")
        if not self._options.keep:
            self._note("Run it with --keep to go on looking. Then, in another terminal:")
        else:
            self._note("Everything goes on until Ctrl-C. In another terminal:")
        context = self._root / "controller/admin.toml"
        for line in (
            f"export VEDETTE_CONTEXT={context if self._options.keep else '…/controller/admin.toml'}",
            "vedette                         the fleet and the next step",
            "vedette agent ls                who runs what",
            f"vedette drift {_MODEL}       how far the traffic is from what the model knows",
            f"vedette model show {second}   lineage, metrics, builds, who signed",
            f"vedette-agent status --config {self._edges[0].config if self._options.keep else '…/agent.toml'}",
            f"tail -f {self._edges[0].verdicts if self._options.keep else '…/verdicts.jsonl'}",
        ):
            self._console.print(f"    [bold]{line}[/bold]", highlight=False, soft_wrap=True)

    def _all_online(self) -> bool:
        agents = self._vedette("agent", "ls", quiet=True)
        return len(agents) == len(self._edges) and all(agent["state"] == "healthy" for agent in agents)

    def _telemetry(self) -> list[dict[str, Any]]:
        return list(self._vedette("telemetry", "query", "--model", _MODEL, "--last", "10m", quiet=True))

    def _all_reported(self, version: str) -> bool:
        reported = {row["agent"] for row in self._telemetry() if row["version"] == version and row["rows"] > 0}
        return reported >= {edge.name for edge in self._edges}

    def _foreground(self, name: str, *arguments: str, shown: str | None = None) -> None:
        """Run a program to its end, quietly; its own words are shown when it fails."""
        if shown != "":
            self._command(f"{name} {shown or ' '.join(arguments)}")
        done = subprocess.run([*program(name), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"{name} {arguments[0]} ended with exit code {done.returncode}.\n{done.stderr.strip()}")

    def _heading(self, text: str) -> None:
        self._step += 1
        took = time.monotonic() - self._begun
        mark, told = f"[bold cyan]{self._step}[/bold cyan]", f"[bold]{text}[/bold]  [dim]{took:.0f} s[/dim]"
        self._console.print(f"\n{mark}  {told}", highlight=False, soft_wrap=True)

    def _command(self, text: str) -> None:
        self._console.print(f"   [green]$[/green] {text}", highlight=False, markup=True, soft_wrap=True)

    def _note(self, text: str) -> None:
        self._console.print(f"   {text}", highlight=False, markup=False, soft_wrap=True)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["agent"],
        row["version"],
        f"{row['rows_per_s']:,.0f}",
        f"{row['latency_p50_ms']:.2f} ms",
        f"{row['latency_p99_ms']:.2f} ms",
        f"{row['rows']:,}",
        f"{row['flagged']:,}",
        f"{row['memory_bytes'] / 2**20:.0f} MiB",
    )


def _agent_config(home: Path, name: str, port: int) -> str:
    values: Mapping[str, Mapping[str, Any]] = {
        "": {"state_dir": str(home / "state"), "name": name},
        "source.netflow": {"listen": f"127.0.0.1:{port}"},
        "inference": {"socket": str(home / "inference.sock")},
        "sink.json": {"path": str(home / "verdicts.jsonl"), "emit": "flagged"},
        "metrics": {"listen": ""},
        "telemetry": {"interval_s": _WINDOW_S},
        "link": {"retry_cap_s": 5},
    }
    parts = [
        "\n".join([*([f"[{part}]"] if part else []), *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
        for part, keys in values.items()
    ]
    return "\n".join(parts) + "\n"


def _replace_setting(config: Path, key: str, value: str) -> None:
    """Set a top-level text key of a TOML file that its program has just written."""
    kept = [line for line in config.read_text().splitlines() if line.split("=")[0].strip() != key]
    config.write_text("\n".join([f"{key} = {json.dumps(value)}", *kept]) + "\n")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _newest_flagged(verdicts: Path) -> dict[str, Any] | None:
    lines = verdicts.read_text().splitlines() if verdicts.exists() else []
    with_evidence = (json.loads(line) for line in reversed(lines[-500:]))
    return next((line for line in with_evidence if line["vedette"].get("evidence")), None)


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what drift said of the newest version before and after, feature by feature, most moved first."""
    old, new = before["versions"][-1], after["versions"][-1]
    known = {item["feature"]: item["psi"] for item in old["features"]}
    rows = sorted(new["features"], key=lambda item: known.get(item["feature"], 0.0) - item["psi"])[:5]
    return [
        f"{'':36} {'before':>10} {'after':>10}",
        f"{'flows':36} {old['rows']:>10,} {new['rows']:>10,}",
        f"{'verdict':36} {old['verdict']:>10} {new['verdict']:>10}",
        *(
            f"PSI {item['feature']:32} {known.get(item['feature'], 0.0):>10.2f} {item['psi']:>10.2f}"
            for item in rows[:5]
        ),
    ]
