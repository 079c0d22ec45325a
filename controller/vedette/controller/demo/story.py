"""What happens in a demo, in which order, and what is shown of it.

Agents watch captured traffic of one network; the model is trained on another network's, so that what they find was
never seen in training. Then the traffic changes, drift shows it, and a second version is trained and rolled out.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from vedette.controller.demo.fleet import Edge, LocalFleet
from vedette.controller.demo.programs import DemoError
from vedette.controller.demo.replay import Replay, captures, length_s, recorded

_NAMES = ("edge-lyon", "edge-oslo", "edge-porto", "edge-turin", "edge-gent", "edge-cork", "edge-brno", "edge-graz")
_BEFORE = ("base/softflowd-v9", "base/softflowd-ipfix", "base/pmacct-v9")
_AFTER = ("shifted/softflowd-v9", "shifted/softflowd-ipfix", "shifted/pmacct-v9")
_TRAIN_FIRST = ("base2/softflowd-v9", "base2/pmacct-ipfix")
_TRAIN_SECOND = ("shifted/softflowd-v9",)
_WINDOW_S = 5
_BEFORE_S = 60
_MODEL = "flow-threat"
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
        self._begun = time.monotonic()
        self._step = 0
        self._fleet = LocalFleet(self._root, window_s=_WINDOW_S, say=self._command)
        self._vedette = self._fleet.vedette
        self._replays: list[Replay] = []

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
            self._fleet.programs.check()
            time.sleep(1)

    def stop(self) -> None:
        """Stop traffic and programs; may be called at any point, and again."""
        for replay in self._replays:
            replay.stop()
        self._fleet.stop()

    def _start_controller(self) -> None:
        self._heading("A controller: its own CA, keys, database and blob store")
        listen, enrol = self._fleet.start_controller()
        self._note(f"serves on 127.0.0.1:{listen} (mTLS) and {enrol} (enrolment)")

    def _start_agents(self) -> None:
        count = self._options.agents
        self._heading(f"{count} agents: each enrols with a one-time token and makes a key that never leaves it")
        self._fleet.start_agents([_name(place) for place in range(count)])
        self._note(f"{count} of {count} are connected")

    def _start_traffic(self) -> None:
        factor = self._options.factor
        self._heading(f"Traffic: export datagrams of real softflowd and pmacct, {factor:g} times their recorded pace")
        for place, edge in enumerate(self._fleet.edges):
            capture = _BEFORE[place % len(_BEFORE)]
            self._replays.append(Replay(edge.port, recorded(captures() / f"{capture}.pcap.gz"), factor))
            self._replays[-1].start()
            self._note(f"{capture:24} → {edge.name}, UDP 127.0.0.1:{edge.port}")
        if self._options.live:
            self._start_live(self._options.live, self._fleet.edges[0])

    def _start_live(self, interface: str, edge: Edge) -> None:
        found = shutil.which("softflowd") or shutil.which("/usr/sbin/softflowd")
        if found is None:
            raise DemoError("--live needs softflowd, which is not installed.\nInstall it: apt install softflowd")
        control = self._root / "softflowd.ctl"
        options = ["-d", "-v", "9", "-t", "maxlife=60", "-t", "expint=1", "-c", str(control)]
        self._fleet.programs.start("softflowd", [found, *options, "-i", interface, "-n", f"127.0.0.1:{edge.port}"])
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
        self._fleet.programs.until(reported, lambda: self._all_reported(version), within_s=60)
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for place, name in enumerate(_COLUMNS):
            table.add_column(name, justify="left" if place < 2 else "right")
        for row in self._telemetry():
            if row["version"] == version:
                table.add_row(*_cells(row))
        self._console.print(table)
        self._show_verdict()

    def _show_verdict(self) -> None:
        for edge in self._fleet.edges:
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
        for place, replay in enumerate(self._replays):
            changed = recorded(captures() / f"{_AFTER[place % len(_AFTER)]}.pcap.gz")
            longest = max(longest, length_s(changed) / self._options.factor)
            replay.play(changed)
        self._fleet.programs.until(
            "the changed traffic to play once",
            lambda: all(replay.rounds >= 1 for replay in self._replays),
            within_s=longest + 30,
        )
        time.sleep(_WINDOW_S)  # the last window of the changed traffic travels
        report = self._vedette("drift", _MODEL, "--window", f"{max(10, int(longest))}s")
        for line in _moved(before, report):
            self._note(line)

    def _end(self, first: str, second: str) -> None:
        sent = sum(replay.sent for replay in self._replays)
        written = sum(_count_lines(edge.verdicts) for edge in self._fleet.edges)
        took = time.monotonic() - self._begun
        self._heading("Done")
        self._note(f"{sent:,} datagrams replayed, {written:,} verdict lines written in {took:.0f} s")
        self._note(f"{first} and {second} trained, signed and rolled out to {len(self._fleet.edges)} agents")
        if not self._options.keep:
            self._note("Run it with --keep to go on looking. Then, in another terminal:")
        else:
            self._note("Everything goes on until Ctrl-C. In another terminal:")
        for line in (
            f"export VEDETTE_CONTEXT={self._fleet.context if self._options.keep else '…/controller/admin.toml'}",
            "vedette                         the fleet and the next step",
            "vedette agent ls                who runs what",
            f"vedette drift {_MODEL}       how far the traffic is from what the model knows",
            f"vedette model show {second}   lineage, metrics, builds, who signed",
            f"vedette-agent status --config {self._fleet.edges[0].config if self._options.keep else '…/agent.toml'}",
            f"tail -f {self._fleet.edges[0].verdicts if self._options.keep else '…/verdicts.jsonl'}",
        ):
            self._console.print(f"    [bold]{line}[/bold]", highlight=False, soft_wrap=True)

    def _telemetry(self) -> list[dict[str, Any]]:
        return list(self._vedette("telemetry", "query", "--model", _MODEL, "--last", "10m", quiet=True))

    def _all_reported(self, version: str) -> bool:
        reported = {row["agent"] for row in self._telemetry() if row["version"] == version and row["rows"] > 0}
        return reported >= {edge.name for edge in self._fleet.edges}

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


def _name(place: int) -> str:
    lap = place // len(_NAMES)
    return _NAMES[place % len(_NAMES)] if lap == 0 else f"edge-{lap + 1}-{_NAMES[place % len(_NAMES)].split('-')[1]}"


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
