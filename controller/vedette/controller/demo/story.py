"""What happens in a demo, in which order, and what is shown of it.

Agents watch captured traffic of one network; the model is trained on another network's, so that what they find was
never seen in training. Then the traffic changes, drift shows it, and a second version is trained and rolled out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Formatter
from typing import Any

from vedette.controller.demo.fleet import Edge, LocalFleet
from vedette.controller.demo.live import live_command
from vedette.controller.demo.programs import DemoError
from vedette.controller.demo.replay import Replay, captures, length_s, recorded
from vedette.controller.demo.stage import Stage

_NAMES = ("edge-lyon", "edge-oslo", "edge-porto", "edge-turin", "edge-gent", "edge-cork", "edge-brno", "edge-graz")
_BEFORE = ("base/softflowd-v9", "base/softflowd-ipfix", "base/pmacct-v9")
_AFTER = ("shifted/softflowd-v9", "shifted/softflowd-ipfix", "shifted/pmacct-v9")
_TRAIN_FIRST = ("base2/softflowd-v9", "base2/pmacct-ipfix")
_TRAIN_SECOND = ("shifted/softflowd-v9",)
_WINDOW_S = 5
_BEFORE_S = 60
_MODEL = "flow-threat"
_DATASET = "lab"
_COLUMNS = ("AGENT", "VERSION", "FLOWS/S", "P50", "P99", "FLOWS", "FLAGGED", "MEMORY")
_WIDE = 16
_SHOWN_NAMES = 4
_TAIL_BYTES = 2 * 2**20


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
        stage: Where it is told.
    """

    def __init__(self, options: Options, stage: Stage) -> None:
        self._options = options
        self._stage = stage
        self._fleet = LocalFleet(options.directory, window_s=_WINDOW_S, say=stage.command)
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
        first = self._train("trained on labelled captures of another network", _TRAIN_FIRST)
        self._roll_out(first)
        self._show_fleet(first)
        self._show_live()
        self._change_traffic()
        second = self._train("trained again, the new mix added to its data", _TRAIN_SECOND)
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
        self._stage.heading("A controller: its own CA, keys, database and blob store")
        with self._stage.waiting("it makes its keys and starts"):
            listen, enrol = self._fleet.start_controller()
        self._stage.note(f"serves on 127.0.0.1, port {listen} (mTLS) and {enrol} (enrolment)")

    def _start_agents(self) -> None:
        count = self._options.agents
        self._stage.heading(f"{count} agents: each spends a one-time token and makes a key that never leaves it")
        with self._stage.waiting("they enrol and connect"):
            names = [_name(place) for place in range(count)]
            self._fleet.start_agents(names, first_writes_all=self._options.live is not None)
        self._stage.note(f"{count} of {count} are connected: {_listed([edge.name for edge in self._fleet.edges])}")

    def _start_traffic(self) -> None:
        factor = self._options.factor
        self._stage.heading(f"Traffic: export datagrams of real softflowd and pmacct, {factor:g} times as fast")
        rows = []
        for place, edge in enumerate(self._fleet.edges):
            capture = _BEFORE[place % len(_BEFORE)]
            self._replays.append(Replay(edge.port, recorded(captures() / f"{capture}.pcap.gz"), factor))
            self._replays[-1].start()
            rows.append((capture, edge.name, f"UDP {edge.port}"))
        if self._options.live:
            self._start_live(self._options.live, self._fleet.edges[0])
            rows.append((f"softflowd on {self._options.live}", self._fleet.edges[0].name, "live, besides"))
        self._stage.table(("CAPTURE", "TO", "PORT"), rows, texts=3)

    def _start_live(self, interface: str, edge: Edge) -> None:
        command = live_command(interface, edge.port, self._options.directory / "softflowd.ctl")
        self._stage.command(f"softflowd -d -v 9 -i {interface} -n 127.0.0.1:{edge.port} …")
        self._fleet.programs.start("softflowd", command)

    def _train(self, how: str, names: Sequence[str]) -> str:
        self._stage.heading(f"A model: {_MODEL}, {how}")
        with self._stage.waiting("the controller reads and validates them"):
            snapshot = self._snapshot(names)
        self._stage.note(_of_snapshot(snapshot))
        run = self._vedette("train", _MODEL, "--data", snapshot["snapshot"])
        self._stage.note(f"{run['version']} is converted to ONNX, checked against the original, registered, signed.")
        for name, text in _of_run(run["metrics"]):
            self._stage.row(name, text, wide=_WIDE)
        return str(run["version"])

    def _snapshot(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Import captures of one network with their labels; return the snapshot of all that is there then."""
        for name in names:
            capture = captures() / f"{name}.pcap.gz"
            self._vedette("data", "import", str(capture), "--dataset", _DATASET, "--format", "flows", silent=True)
        self._vedette("label", "import", str(capture.with_name("labels.json")), "--dataset", _DATASET, silent=True)
        return dict(self._vedette("data", "snapshot", _DATASET, silent=True))

    def _roll_out(self, version: str) -> None:
        self._stage.heading(f"{version} goes out: one canary first, then the rest")
        started = self._vedette("rollout", "start", version, "--to", "", "--waves", "1,100%", "--soak", "3s")
        ended = self._vedette("rollout", "watch", started["rollout"])
        for place, wave in enumerate(ended["waves"]):
            moved = _listed([member["agent"] for member in wave["members"] if member["state"] == "moved"])
            self._stage.row("the rest" if place else "canary", f"moved and stayed well for 3 s: {moved}", wide=_WIDE)
        for agent in self._vedette("agent", "ls", quiet=True):
            if agent["slots"].get(_MODEL, {}).get("active") != version:
                raise DemoError(f"{agent['name']} does not run {version} after its rollout: {agent['slots']}")
        self._stage.note(
            "Each verified both signatures, loaded the build in a process of its own, tested it on the "
            "golden samples, and only then switched."
        )

    def _show_fleet(self, version: str) -> None:
        reported = f"telemetry of {version} from every agent"
        with self._stage.waiting(f"waiting for {reported}"):
            self._fleet.programs.until(reported, lambda: self._all_reported(version), within_s=60)
        self._stage.note()
        self._stage.table(_COLUMNS, [_cells(row) for row in self._telemetry(version)], texts=2)
        self._stage.note(
            "P50, P99: how long the model took to answer the batch that a flow was in. Most flows are flagged because "
            "most are attacks: these captures hold far more of them than life does."
        )
        self._show_verdict()

    def _show_verdict(self) -> None:
        for edge in self._fleet.edges:
            line = _newest(edge.verdicts, lambda line: bool(line["vedette"].get("evidence")))
            if line is None:
                continue
            self._stage.note()
            self._stage.note(f"Newest verdict with its evidence in {edge.verdicts.name} of {edge.name}:")
            self._stage.row("", _said(line), wide=0)
            rows = [
                (item["feature"], f"{item['value']:,.4g}", f"{item['usual']:,.4g}")
                for item in line["vedette"]["evidence"][:3]
            ]
            self._stage.table(("BECAUSE OF", "VALUE", "USUAL"), rows)
            return

    def _show_live(self) -> None:
        """Show that flows of the interface arrive; they are told from replayed ones by their time."""
        if not self._options.live:
            return
        edge, begun = self._fleet.edges[0], datetime.now(UTC) - timedelta(seconds=self._stage.passed_s)

        def is_live(line: Mapping[str, Any]) -> bool:
            return begun <= datetime.fromisoformat(line["flow"]["end"]) <= datetime.now(UTC) + timedelta(seconds=5)

        with self._stage.waiting(f"waiting for the first flow of {self._options.live}"):
            line = self._fleet.programs.until(
                f"a verdict on a flow of {self._options.live}; is there any traffic on it?",
                lambda: _newest(edge.verdicts, is_live),
                within_s=90,
            )
        self._stage.note()
        self._stage.note(f"Newest flow of {self._options.live} that softflowd saw, judged by {edge.name}:")
        self._stage.row("", _said(line), wide=0)
        self._stage.note("Do not trust it here: the model has learnt from another network, not from yours.")

    def _change_traffic(self) -> None:
        self._stage.heading("The traffic mix changes: backups, a chatty UDP service, fewer web pages")
        with self._stage.waiting("first enough of the old mix, to compare with"):
            before = self._fleet.programs.until("enough rows to judge drift", self._old_mix, within_s=60)
        longest = 0.0
        for place, replay in enumerate(self._replays):
            changed = recorded(captures() / f"{_AFTER[place % len(_AFTER)]}.pcap.gz")
            longest = max(longest, length_s(changed) / self._options.factor)
            replay.play(changed)
        self._watch_play(longest)
        report = self._vedette("drift", _MODEL, "--window", f"{max(10, int(longest))}s")
        self._stage.table((f"{_MODEL}:1 AGAINST ITS TRAINING", "BEFORE", "NOW"), _moved(before, report))
        self._stage.note(
            "PSI: population stability index of a feature over flows that are not flagged, here of the "
            "five that moved most. Above 0.25 in the median feature the mix has shifted."
        )

    def _old_mix(self) -> Any:
        report = self._vedette("drift", _MODEL, "--window", f"{_BEFORE_S}s", quiet=True)
        return report if report["versions"] and report["versions"][-1]["verdict"] != "not enough rows" else None

    def _watch_play(self, longest: float) -> None:
        """Wait until every agent has got the changed traffic once, and its last window has travelled."""
        meter, begun = self._stage.meter("the new mix plays"), time.monotonic()
        whole = longest + _WINDOW_S

        def is_over() -> bool:
            meter.update(min((time.monotonic() - begun) / whole, 0.99))
            return all(replay.rounds >= 1 for replay in self._replays)

        try:
            self._fleet.programs.until("the changed traffic to play once", is_over, within_s=longest + 30)
            self._fleet.programs.until("", lambda: is_over() and time.monotonic() - begun > whole, within_s=60)
            meter.update(1.0)
        finally:
            meter.close()

    def _end(self, first: str, second: str) -> None:
        sent = sum(replay.sent for replay in self._replays)
        written = sum(_count_lines(edge.verdicts) for edge in self._fleet.edges)
        self._stage.heading("Done")
        self._stage.note(
            f"{sent:,} datagrams replayed, {written:,} verdict lines written, {first} and {second} trained, "
            f"signed and rolled out to {len(self._fleet.edges)} agents in {self._stage.passed_s:.0f} s."
        )
        self._stage.note()
        if self._options.keep:
            self._stage.note("Everything goes on until Ctrl-C. In another terminal:")
            self._stage.typed(f"export VEDETTE_CONTEXT={self._fleet.context}")
        else:
            self._stage.note(
                "Everything stops now. With --keep it goes on, and in another terminal one can look "
                "further, after the export line that it prints:"
            )
        for name, text in (
            ("vedette", "the fleet and the next step"),
            ("vedette agent ls", "who runs what"),
            (f"vedette drift {_MODEL}", "how far traffic is from training"),
            (f"vedette model show {second}", "lineage, metrics, who signed"),
            ("vedette telemetry", "rows, latency, cost of each agent"),
        ):
            self._stage.typed(f"{name:<34}  # {text}")
        if self._options.keep:
            self._stage.typed(f"vedette-agent status --config {self._fleet.edges[0].config}")
            self._stage.typed(f"tail -f {self._fleet.edges[0].verdicts}")

    def _telemetry(self, version: str) -> list[dict[str, Any]]:
        rows = self._vedette("telemetry", "query", "--model", _MODEL, "--last", "10m", quiet=True)
        return [row for row in rows if row["version"] == version]

    def _all_reported(self, version: str) -> bool:
        reported = {row["agent"] for row in self._telemetry(version) if row["rows"] > 0}
        return reported >= {edge.name for edge in self._fleet.edges}


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["agent"],
        row["version"],
        f"{row['rows_per_s']:,.0f}",
        f"{row['latency_p50_ms']:.1f} ms",
        f"{row['latency_p99_ms']:.1f} ms",
        f"{row['rows']:,}",
        f"{row['flagged']:,}",
        f"{row['memory_bytes'] / 1e6:.0f} MB",
    )


def _name(place: int) -> str:
    lap = place // len(_NAMES)
    return _NAMES[place % len(_NAMES)] if lap == 0 else f"edge-{lap + 1}-{_NAMES[place % len(_NAMES)].split('-')[1]}"


def _listed(names: Sequence[str]) -> str:
    """Return some of the names, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _of_snapshot(snapshot: Mapping[str, Any]) -> str:
    """Return what is in a snapshot: how many flows, and how few of them are of everyday life."""
    benign = snapshot["labels"].get("benign", 0)
    kinds = len(snapshot["labels"]) - 1
    return (
        f"{snapshot['snapshot']} holds {snapshot['rows']:,} flows: {benign:,} benign, the others "
        f"({1 - benign / snapshot['rows']:.0%}) attacks of {kinds} kinds."
    )


def _of_run(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return what a run's metrics mean, for those that are there."""
    texts = (
        ("attacks found", "{episodes_found:.0f} of {episodes:.0f} labelled windows, in parts it was not trained on"),
        ("false alarms", "{false_per_10k_benign:.1f} of 10,000 benign flows; {false_per_10k_without_aftermath:.1f} "
                         "without those in the minute after an attack, around its ends"),
        ("ranking", "area under the curve {auc:.4f} (1 is perfect)"),
        ("conversion", "{parity_rows:,.0f} rows answered alike, scores within {parity_worst_score:.1e}"),
    )  # fmt: skip
    known = [(name, text) for name, text in texts if _fields(text) <= metrics.keys()]
    return [(name, text.format(**metrics)) for name, text in known]


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def _said(line: Mapping[str, Any]) -> str:
    said = line["vedette"]
    way = f"{line['src_ip']} → {line['dest_ip']} port {line['dest_port']} {line['proto']}"
    return f"{said['verdict']}, score {said['score']:.3f}: {way}"


def _newest(verdicts: Path, fits: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
    if not verdicts.exists():
        return None
    with verdicts.open("rb") as stream:
        stream.seek(max(verdicts.stat().st_size - _TAIL_BYTES, 0))
        lines = stream.read().split(b"\n")[1:-1]  # both ends may be cut
    newest_first = (json.loads(line) for line in reversed(lines))
    return next((line for line in newest_first if fits(line)), None)


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what drift said of the newest version before and after, feature by feature, most moved first."""
    old, new = before["versions"][-1], after["versions"][-1]
    known = {item["feature"]: item["psi"] for item in old["features"]}
    rows = sorted(new["features"], key=lambda item: known.get(item["feature"], 0.0) - item["psi"])[:5]
    return [
        ("flows", f"{old['rows']:,}", f"{new['rows']:,}"),
        ("verdict", old["verdict"], new["verdict"]),
        *((f"PSI {item['feature']}", f"{known.get(item['feature'], 0.0):.2f}", f"{item['psi']:.2f}") for item in rows),
    ]
