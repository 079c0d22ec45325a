"""What each verb asks, prints and returns: JSON as scripts rely on it, tables as people read them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.cli_stage import NOW, Refusal, Stage
from vedette.models.bundle import Part, prefix
from vedette.models.documents import digest_of
from vedette.wire import convert, views
from vedette.wire.v1 import admin_pb2 as pb
from vedette.wire.values import Condition, Facts, Severity, SlotState

AGO = NOW - timedelta(minutes=4)


def _agent(name: str = "edge-1", **changes: Any) -> pb.Agent:
    slot = views.AgentSlot(active="flow-threat:1", desired="flow-threat:1", state=SlotState.ACTIVE, build="sha256:b1")
    fields = {
        "id": f"id-{name}",
        "name": name,
        "state": views.AgentState.HEALTHY,
        "labels": {"site": "s1"},
        "facts": Facts(cpu_cores=4, cpu_features=("avx2",), architecture="x86_64", runtimes={"onnxruntime": "1.32.0"}),
        "slots": {"flow-threat": slot},
        "enrolled": AGO,
        "seen": AGO,
        "flows_per_s": 1204.4,
        "latency_p99_ms": 0.912,
        "rows": 5000,
        "desired_sequence": 3,
        "running_sequence": 3,
        **changes,
    }
    return convert.AGENT.to_wire(views.Agent(**fields))


def _rollout(state: str = "running", number: str = "7", **changes: Any) -> pb.Rollout:
    members = (
        views.Member(agent="edge-1", state=views.MemberState.MOVED),
        views.Member(agent="edge-2", state=views.MemberState.ASSIGNED, reason="downloading 62 %"),
    )
    waves = (
        views.Wave(size="1", members=members[:1], state="passed"),
        views.Wave(size="100%", members=members[1:], state="moving"),
    )
    fields = {
        "rollout": number,
        "version": "flow-threat:2",
        "selector": "site=s1",
        "state": views.RolloutState(state),
        "waves": waves,
        "started": AGO,
        "started_by": "ana",
        "events": (views.RolloutEvent(at=AGO, text="started by ana"),),
        **changes,
    }  # fmt: skip
    return convert.ROLLOUT.to_wire(views.Rollout(**fields))


def _version(number: int = 1) -> pb.Version:
    return convert.VERSION.to_wire(
        views.Version(
            version=f"plain:{number}",
            model="plain",
            number=number,
            kind="tensor",
            digest="sha256:r",
            created=AGO,
            builds=(
                views.Build(digest="sha256:b", kind="onnx-fp32", bytes=19_500, requires={"onnxruntime": ">=1.32"}),
            ),
            metrics={"recall": 0.98},
            lineage={"file": "plain.onnx"},
            signed_by=("ab12",),
        )
    )


def test_agents_as_json_have_name_state_labels_and_slots(stage: Stage) -> None:
    stage.answer("ListAgents", pb.AgentList(agents=[_agent()]))
    [agent] = stage("agent", "ls", "--output", "json").json
    assert (agent["name"], agent["state"], agent["labels"]) == ("edge-1", "healthy", {"site": "s1"})
    assert agent["slots"]["flow-threat"]["active"] == "flow-threat:1"
    assert agent["seen"] == "2026-11-23T11:56:00.000Z"


def test_agents_as_a_table_read_well(stage: Stage) -> None:
    behind = views.AgentSlot(
        active="flow-threat:1", desired="flow-threat:2", candidate="flow-threat:2", state=SlotState.DOWNLOADING,
        candidate_bytes_done=620, candidate_bytes_total=1000,
    )  # fmt: skip
    other = _agent("edge-2", state=views.AgentState.BEHIND, slots={"flow-threat": behind})
    stage.answer("ListAgents", pb.AgentList(agents=[_agent(), other]))
    shown = stage("agent", "ls")
    assert "flow-threat:1 → flow-threat:2" in shown.out
    assert "downloading 62 %" in shown.out
    assert "4 min ago" in shown.out
    assert "2 agents · 2 online" in shown.out


def test_a_selector_travels_and_an_empty_answer_names_it(stage: Stage) -> None:
    stage.answer("ListAgents", pb.AgentList())
    shown = stage("agent", "ls", "--selector", "site=s9,!lab")
    assert stage.admin.last("ListAgents").selector == "site=s9,!lab"
    assert "'site=s9,!lab'" in shown.out


EMPTY = [
    (("agent", "ls"), "ListAgents", pb.AgentList(), "vedette token create"),
    (("token", "ls"), "ListTokens", pb.TokenList(), "vedette token create"),
    (("data", "ls"), "ListDatasets", pb.DatasetList(), "vedette data import"),
    (("run", "ls"), "ListRuns", pb.RunList(), "vedette train"),
    (("model", "ls"), "ListVersions", pb.VersionList(), "vedette model register"),
    (("rollout", "ls"), "ListRollouts", pb.RolloutList(), "vedette rollout start"),
    (("telemetry",), "GetFleetTelemetry", pb.FleetTelemetry(), "vedette agent ls"),
    (("telemetry", "query"), "GetFleetTelemetry", pb.FleetTelemetry(), "vedette agent ls"),
    (("drift", "plain"), "GetDrift", pb.DriftReport(model="plain"), "uploaded ones do not"),
]


@pytest.mark.parametrize(("command", "method", "answer", "advice"), EMPTY)
def test_empty_is_never_blank_and_says_what_to_do(
    stage: Stage, command: tuple[str, ...], method: str, answer: Any, advice: str
) -> None:
    stage.answer(method, answer)
    assert advice in stage(*command).out
    assert not stage(*command, "--output", "json").json or command[0] == "drift"


def test_showing_an_agent_has_its_conditions_last(stage: Stage) -> None:
    worry = Condition(code="clock-behind", severity=Severity.WARNING, text="38 s behind", since=AGO)
    stage.answer("GetAgent", _agent(conditions=(worry,)))
    lines = stage("agent", "show", "edge-1").out.splitlines()
    assert "38 s behind (clock-behind" in lines[-1]


def test_labels_are_set_and_removed_in_one_go(stage: Stage) -> None:
    stage.answer("LabelAgent", _agent(labels={"site": "paris"}))
    shown = stage("agent", "label", "edge-1", "site=paris", "lab-", "note=a-")
    request = stage.admin.last("LabelAgent")
    assert (dict(request.set), list(request.remove)) == ({"site": "paris", "note": "a-"}, ["lab"])
    assert shown.out == "edge-1: site=paris\n"


@pytest.mark.parametrize(("word", "method"), [("rm", "RemoveAgent"), ("revoke", "RevokeAgent")])
def test_what_is_dangerous_is_refused_without_a_terminal_and_without_yes(
    stage: Stage, word: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.answer("GetAgent", _agent())
    stage.answer(method, _agent())
    shown = stage("agent", word, "edge-1")
    assert shown.code == 4
    assert "edge-1 (site=s1; healthy; runs flow-threat:1)" in shown.err
    assert method not in [name for name, _ in stage.admin.requests]
    assert stage("agent", word, "edge-1", "--yes").code == 0
    assert stage.admin.last(method).name == "edge-1"


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 4), ("\n", 4), ("", 4)])
def test_a_person_is_asked_and_only_yes_is_yes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    stage.answer("GetAgent", _agent())
    stage.answer("RemoveAgent", _agent())
    monkeypatch.setattr("sys.stdin", _Terminal(typed))
    assert stage("agent", "rm", "edge-1").code == code


class _Terminal:
    def __init__(self, typed: str) -> None:
        self._typed = typed

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._typed


def test_a_token_is_the_only_thing_on_standard_output(stage: Stage) -> None:
    made = views.Token(id="5f3a", token="vdt1.abc", uses=1, created=NOW, expires=NOW + timedelta(hours=24))
    stage.answer("CreateToken", convert.TOKEN.to_wire(made))
    shown = stage("token", "create", "--label", "site=paris", "--label", "rack=7", "--uses", "20", "--expires", "7d")
    request = stage.admin.last("CreateToken")
    assert (dict(request.labels), request.uses, request.expires_s) == ({"site": "paris", "rack": "7"}, 20, 604_800)
    assert shown.out == "vdt1.abc\n"
    assert "vedette-agent enroll" in shown.err
    assert stage("token", "create", "--output", "json").json["token"] == "vdt1.abc"


def test_tokens_are_listed_without_their_secret(stage: Stage) -> None:
    token = views.Token(id="5f3a", uses=2, used=1, created=AGO, expires=AGO, revoked=False)
    stage.answer("ListTokens", pb.TokenList(tokens=[convert.TOKEN.to_wire(token)]))
    assert "expired 4 min ago" in stage("token", "ls").out
    assert stage("token", "ls", "--output", "json").json[0]["used"] == 1


def test_a_token_is_revoked_by_its_id(stage: Stage) -> None:
    stage.answer("RevokeToken", convert.TOKEN.to_wire(views.Token(id="5f3a", uses=2, used=1, revoked=True)))
    assert "1 agent" in stage("token", "revoke", "5f3a").out
    assert stage.admin.last("RevokeToken").id == "5f3a"


def _import(name: str, *, rows: int, already: bool = False) -> pb.DataImport:
    item = views.DataImport(
        dataset="lab", file_name=name, rows=rows, rejected=2, reject_reasons={"truncated": 2}, already_there=already
    )
    return convert.DATA_IMPORT.to_wire(item)


def test_files_are_uploaded_in_pieces_and_add_up(stage: Stage, tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    files[0].write_bytes(bytes(600_000))
    files[1].write_bytes(b"x,y\n")
    stage.answer("ImportData", lambda requests: _import(requests[0].header.file_name, rows=10))
    shown = stage("data", "import", *map(str, files), "--dataset", "lab", "--output", "json")
    assert (shown.json["dataset"], shown.json["rows"], len(shown.json["imports"])) == ("lab", 20, 2)
    sent = [requests for name, requests in stage.admin.requests if name == "ImportData"]
    assert [len(piece.data) for piece in sent[0][1:]] == [262_144, 262_144, 75_712]
    assert (sent[0][0].header.format, sent[0][0].header.total_bytes) == ("csv", 600_000)
    assert b"".join(piece.data for piece in sent[1][1:]) == b"x,y\n"


def test_an_import_that_was_there_adds_nothing_and_says_so(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x")
    stage.answer("ImportData", _import("a.csv", rows=10, already=True))
    shown = stage("data", "import", str(tmp_path / "a.csv"), "--dataset", "lab")
    assert "already there, nothing added" in shown.out
    assert stage("data", "import", str(tmp_path / "a.csv"), "--dataset", "lab", "--output", "json").json["rows"] == 0


def test_a_file_that_is_not_there_is_not_found_and_the_nearest_is_named(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "monday.csv").write_bytes(b"x")
    shown = stage("data", "import", str(tmp_path / "mondy.csv"), "--dataset", "lab")
    assert shown.code == 3
    assert "monday.csv" in shown.err
    assert not stage.admin.requests


def test_a_capture_needs_its_format_said(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "a.pcap.gz").write_bytes(b"x")
    shown = stage("data", "import", str(tmp_path / "a.pcap.gz"), "--dataset", "lab")
    assert shown.code == 2
    assert "--format flows|csv|parquet" in shown.err


def test_labels_are_imported(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(b"[]")
    answer = views.LabelImport(dataset="lab", windows=3, windows_by_label={"brute": 2, "scan": 1})
    stage.answer("ImportLabels", convert.LABEL_IMPORT.to_wire(answer))
    shown = stage("label", "import", str(tmp_path / "labels.json"), "--dataset", "lab")
    assert "3 label windows (brute 2, scan 1)" in shown.out


def test_a_snapshot_is_named_dataset_at_number(stage: Stage) -> None:
    item = views.Snapshot(
        snapshot="lab@1", digest="sha256:s", rows=17_900, bytes=1_234_567, labels={"benign": 17_000, "brute": 900}
    )
    stage.answer("CreateSnapshot", convert.SNAPSHOT.to_wire(item))
    stage.answer("GetSnapshot", convert.SNAPSHOT.to_wire(item))
    assert stage("data", "snapshot", "lab", "--output", "json").json["snapshot"] == "lab@1"
    assert "benign 17,000, brute 900" in stage("data", "show", "lab@1").out
    assert stage.admin.last("GetSnapshot").name == "lab@1"


def test_a_dataset_is_shown_with_its_files(stage: Stage) -> None:
    item = views.Dataset(
        name="lab", format="flows", rows=10, imports=(convert.DATA_IMPORT.from_wire(_import("a.pcap", rows=10)),)
    )
    stage.answer("GetDataset", convert.DATASET.to_wire(item))
    stage.answer("ListDatasets", pb.DatasetList(datasets=[convert.DATASET.to_wire(item)]))
    assert "2 rejected (2 truncated)" in stage("data", "show", "lab").out
    assert stage("data", "ls", "--output", "json").json[0]["name"] == "lab"


def _run(state: str, progress: float = 0.0, **changes: Any) -> pb.Run:
    fields = {
        "run": "4",
        "recipe": "flow-threat",
        "snapshot": "lab@1",
        "state": views.RunState(state),
        "progress": progress,
        **changes,
    }
    return convert.RUN.to_wire(views.Run(**fields))


def test_training_waits_and_prints_one_json_document_while_progress_goes_to_standard_error(stage: Stage) -> None:
    stage.answer("StartRun", _run("queued"))
    steps = [_run("training", n / 20, step=f"round {n}") for n in range(20)]
    stage.answer("WatchRun", [*steps, _run("succeeded", 1.0, version="flow-threat:1", metrics={"recall": 0.98})])
    shown = stage("train", "flow-threat", "--data", "lab@1", "--set", "rounds=200", "--output", "json")
    assert (shown.code, shown.json["run"], shown.json["state"], shown.json["version"]) == (
        0,
        "4",
        "succeeded",
        "flow-threat:1",
    )
    assert dict(stage.admin.last("StartRun").parameters) == {"rounds": "200"}
    told = [line for line in shown.err.splitlines() if line.startswith("run 4")]
    assert [line.split("%")[0].split()[-1] for line in told] == [str(10 * tenth) for tenth in range(11)]


def test_a_failed_run_is_exit_1_with_its_error_and_log(stage: Stage) -> None:
    stage.answer("StartRun", _run("queued"))
    stage.answer("WatchRun", [_run("failed", error="1 class, 2 needed", log_tail=("loading", "boom"))])
    shown = stage("train", "flow-threat", "--data", "lab@1", "--output", "json")
    assert (shown.code, shown.json["state"]) == (1, "failed")
    assert "boom" in shown.err
    assert "1 class, 2 needed" in shown.err


def test_leaving_a_training_says_that_it_goes_on_and_how_to_come_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.answer("StartRun", _run("queued"))
    stage.answer("WatchRun", [_run("training", 0.5)])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vedette.controller.cli.progress.Meter.update", interrupt)
    shown = stage("train", "flow-threat", "--data", "lab@1")
    assert shown.code == 130
    assert "vedette run show 4" in shown.err


def test_runs_are_listed_and_shown(stage: Stage) -> None:
    stage.answer("ListRuns", pb.RunList(runs=[_run("failed", error="1 class")]))
    stage.answer("GetRun", _run("succeeded", log_tail=("round 1", "round 2"), parameters={"rounds": "9"}))
    assert "1 class" in stage("run", "ls").out
    shown = stage("run", "show", "4").out
    assert "set rounds" in shown
    assert shown.rstrip().endswith("round 2")


def test_a_model_is_registered_and_named_with_its_version(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "plain.onnx").write_bytes(b"onnx")
    stage.answer("RegisterModel", _version())
    shown = stage("model", "register", str(tmp_path / "plain.onnx"), "--name", "plain", "--output", "json")
    assert shown.json["version"] == "plain:1"
    assert stage.admin.last("RegisterModel")[0].header.model == "plain"


def test_a_model_without_a_number_is_its_newest_version(stage: Stage) -> None:
    stage.answer("ListVersions", pb.VersionList(versions=[_version(2), _version(10), _version(9)]))
    assert stage("model", "show", "plain", "--output", "json").json["version"] == "plain:10"
    assert "19.5 kB" in stage("model", "show", "plain").out
    assert "needs onnxruntime>=1.32" in stage("model", "show", "plain").out


def test_an_unknown_model_is_not_found_and_the_nearest_is_named(stage: Stage) -> None:
    stage.answer("ListVersions", lambda request: pb.VersionList(versions=[] if request.model else [_version()]))
    shown = stage("model", "show", "plane")
    assert shown.code == 3
    assert "did you mean plain?" in shown.err


def test_a_rollout_starts_and_returns_at_once(stage: Stage) -> None:
    stage.answer("StartRollout", _rollout())
    command = ("rollout", "start", "flow-threat:2", "--to", "site=s1", "--waves", "1, 100%", "--soak", "30s")
    assert stage(*command, "--output", "json").json["rollout"] == "7"
    request = stage.admin.last("StartRollout")
    assert (request.version, request.selector, list(request.waves)) == ("flow-threat:2", "site=s1", ["1", "100%"])
    assert (request.soak_s, request.timeout_s) == (30, 600)
    assert "vedette rollout watch 7" in stage(*command).out


def test_a_rollout_to_everyone_is_an_empty_selector_that_must_be_written(stage: Stage) -> None:
    stage.answer("StartRollout", _rollout(selector=""))
    assert "to everyone" in stage("rollout", "start", "flow-threat:2", "--to", "").out
    assert stage.admin.last("StartRollout").selector == ""
    assert stage("rollout", "start", "flow-threat:2").code == 2


@pytest.mark.parametrize(("end", "code"), [("succeeded", 0), ("stopped", 1), ("aborted", 1)])
def test_watching_ends_with_the_rollout_and_its_exit_code(stage: Stage, end: str, code: int) -> None:
    last = _rollout(
        end, events=(views.RolloutEvent(at=AGO, text="started by ana"), views.RolloutEvent(at=NOW, text=f"{end} now"))
    )
    stage.answer("WatchRollout", [_rollout(), last])
    shown = stage("rollout", "watch", "7", "--output", "json")
    assert (shown.code, shown.json["state"]) == (code, end)
    assert shown.err.count("started by ana") == 1
    assert f"{end} now" in shown.err


def _cut(*messages: Any) -> Iterator[Any]:
    yield from messages
    raise Refusal(grpc.StatusCode.UNAVAILABLE, "the controller is stopping")


def test_watching_outlives_a_restart_of_the_controller(stage: Stage) -> None:
    streams = iter([_cut(_rollout()), _cut(), iter([_rollout("succeeded")])])
    stage.answer("WatchRollout", lambda request: next(streams))
    shown = stage("rollout", "watch", "7", "--output", "json")
    assert (shown.code, shown.json["state"]) == (0, "succeeded")
    assert shown.err.count("Lost the controller (the controller is stopping)") == 1
    assert stage.waited == 2


def test_watching_gives_up_on_a_controller_that_stays_away(stage: Stage) -> None:
    streams = iter([_cut(_rollout())])
    stage.answer("WatchRollout", lambda request: next(streams, None) or _cut())
    assert stage("rollout", "watch", "7").code == 5
    assert 120 < stage.waited < 125


def test_training_outlives_a_restart_of_the_controller(stage: Stage) -> None:
    streams = iter([_cut(_run("training", 0.5)), iter([_run("succeeded", 1.0, version="m:1")])])
    stage.answer("StartRun", _run("queued"))
    stage.answer("WatchRun", lambda request: next(streams))
    assert stage("train", "flow-threat", "--data", "lab@1", "--output", "json").json["version"] == "m:1"


def test_leaving_a_rollout_says_that_it_goes_on_and_how_to_come_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.answer("WatchRollout", [_rollout()])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vedette.controller.cli.rollout._Follower.show", interrupt)
    shown = stage("rollout", "watch", "7")
    assert shown.code == 130
    assert "The rollout goes on. vedette rollout watch 7 · pause 7 · abort 7" in shown.err


def test_showing_a_rollout_names_who_has_not_moved_and_why(stage: Stage) -> None:
    stage.answer("GetRollout", _rollout(reason="edge-2 failed: self-test"))
    shown = stage("rollout", "show", "7").out
    assert "edge-2" in shown
    assert "downloading 62 %" in shown
    assert "edge-1" not in shown
    assert "edge-2 failed: self-test" in shown


def test_rollouts_are_listed_with_how_far_they_are(stage: Stage) -> None:
    stage.answer("ListRollouts", pb.RolloutList(rollouts=[_rollout()]))
    assert "1/2" in stage("rollout", "ls").out
    assert stage("rollout", "ls", "--output", "json").json[0]["rollout"] == "7"


@pytest.mark.parametrize(
    ("word", "method", "state"),
    [("pause", "PauseRollout", "paused"), ("resume", "ResumeRollout", "running"), ("abort", "AbortRollout", "aborted")],
)
def test_rollouts_are_paused_resumed_and_aborted_without_asking(
    stage: Stage, word: str, method: str, state: str
) -> None:
    stage.answer(method, _rollout(state))
    assert f"Rollout 7 is {state}: 1 of 2 moved." in stage("rollout", word, "7").out
    assert stage.admin.last(method).rollout == "7"
    assert stage("rollout", word, "7", "--output", "json").json["state"] == state


def test_drift_shows_the_verdict_the_largest_features_and_where(stage: Stage) -> None:
    at = (views.AgentDrift(agent="edge-3", psi=2.0, rows=9),)
    features = tuple(views.FeatureDrift(feature=f"f{n}", psi=1 / (n + 1), js_bits=0.1, agents=at) for n in range(9))
    version = views.VersionDrift(
        version="plain:2", rows=1200, rows_needed=600, verdict="not enough rows", features=features
    )
    stage.answer("GetDrift", convert.DRIFT.to_wire(views.DriftReport(model="plain", versions=(version,), since=AGO)))
    shown = stage("drift", "plain", "--window", "90m", "--top", "2").out
    assert "not enough rows" in shown
    assert "600 more rows that are not flagged are needed" in shown
    assert "f1" in shown
    assert "f2" not in shown
    assert "edge-3 2" in shown
    assert stage.admin.last("GetDrift").window_s == 5400
    assert stage("drift", "plain", "--output", "json").json["versions"][0]["verdict"] == "not enough rows"


def test_telemetry_is_a_table_of_the_fleet(stage: Stage) -> None:
    row = views.AgentTelemetry(
        agent="edge-1", version="plain:1", rows=1000, flagged=31, rows_per_s=16.7, memory_bytes=61_000_000
    )
    stage.answer("GetFleetTelemetry", pb.FleetTelemetry(agents=[convert.AGENT_TELEMETRY.to_wire(row)]))
    shown = stage("telemetry", "query", "--model", "plain", "--last", "10m").out
    assert "3.1 %" in shown
    assert "61 MB" in shown
    request = stage.admin.last("GetFleetTelemetry")
    assert (request.model, request.window_s) == ("plain", 600)
    assert stage("telemetry", "--output", "json").json[0]["agent"] == "edge-1"


def _overview(**changes: Any) -> pb.Overview:
    model = views.ModelOverview(
        model="flow-threat",
        newest_version=1,
        active={"flow-threat:1": 3},
        rows_per_hour=52_100.0,
        flagged_share=0.0031,
        latency_p99_ms=1.9,
    )
    fields = {"controller_id": "lab", "agents": 3, "online": 3, "models": (model,), **changes}
    return convert.OVERVIEW.to_wire(views.Overview(**fields))


@pytest.mark.parametrize("command", [(), ("status",)])
def test_alone_it_shows_the_fleet_and_the_next_step(stage: Stage, command: tuple[str, ...]) -> None:
    stage.answer("GetOverview", _overview())
    shown = stage(*command).out
    assert "3 agents · 3 online · 0 need you" in shown
    assert "flow-threat:1 on 3/3   52.1 k rows/h · flagged 0.31 % · p99 1.9 ms" in shown
    assert "Nothing to do." in shown
    stage.answer("GetOverview", _overview(next_steps=("vedette token create",)))
    assert stage(*command).out.endswith("Next: vedette token create\n")
    assert stage(*command, "--output", "json").json["online"] == 3


def test_a_refusal_has_three_lines_on_standard_error_and_nothing_else(stage: Stage) -> None:
    stage.refuse(
        "StartRollout", grpc.StatusCode.FAILED_PRECONDITION, "rollout 7 is still moving 2 of these agents",
        "one rollout at a time", "wait for it: vedette rollout watch 7",
    )  # fmt: skip
    shown = stage("rollout", "start", "flow-threat:2", "--to", "", "--output", "json")
    assert shown.code == 4
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "Error: rollout 7 is still moving 2 of these agents",
        "  one rollout at a time",
        "  wait for it: vedette rollout watch 7",
    ]


CODES = [
    (grpc.StatusCode.NOT_FOUND, 3),
    (grpc.StatusCode.PERMISSION_DENIED, 4),
    (grpc.StatusCode.FAILED_PRECONDITION, 4),
    (grpc.StatusCode.ALREADY_EXISTS, 4),
    (grpc.StatusCode.UNAUTHENTICATED, 4),
    (grpc.StatusCode.INVALID_ARGUMENT, 2),
    (grpc.StatusCode.UNAVAILABLE, 5),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
    (grpc.StatusCode.INTERNAL, 1),
]


@pytest.mark.parametrize(("status", "code"), CODES)
def test_every_kind_of_refusal_has_its_exit_code(stage: Stage, status: grpc.StatusCode, code: int) -> None:
    for method, command in (("ListAgents", ("agent", "ls")), ("WatchRollout", ("rollout", "watch", "7"))):
        stage.refuse(method, status, "no")
        assert stage(*command).code == code


def test_a_controller_that_does_not_know_a_verb_is_of_another_version(stage: Stage) -> None:
    shown = stage("token", "ls")
    assert shown.code == 1
    assert "another version" in shown.err


def _exported(data: bytes, *agents: str) -> list[pb.ExportModelResponse]:
    listed = tuple(views.ExportedAssignment(agent=name, sequence=3) for name in agents)
    head = views.ModelExport(version="plain:1", bytes=len(data), agents=listed)
    pieces = [data[start : start + 50] for start in range(0, len(data), 50)]
    head_message = pb.ExportModelResponse(head=convert.MODEL_EXPORT.to_wire(head))
    return [head_message, *(pb.ExportModelResponse(data=piece) for piece in pieces)]


_BLOB = b"model" * 30
_BUNDLE = prefix([Part("blob", digest_of(_BLOB), len(_BLOB))]) + _BLOB


def test_an_export_is_written_whole_and_says_what_comes_next(stage: Stage, tmp_path: Path) -> None:
    stage.answer("GetVersion", _version())
    stage.answer("ExportModel", _exported(_BUNDLE, "edge-1", "edge-2"))
    file = tmp_path / "x.bundle"
    shown = stage("model", "export", "plain:1", str(file), "--for", "site=island")
    request = stage.admin.last("ExportModel")
    assert (request.version, request.assign, request.selector) == ("plain:1", True, "site=island")
    assert file.read_bytes() == _BUNDLE
    assert "for 2 appliances" in shown.out
    assert "vedette-agent import" in shown.out
    assert "No appliance takes it" in stage("model", "export", "plain:1", str(file)).out
    assert not stage.admin.last("ExportModel").assign


@pytest.mark.parametrize("data", [_BUNDLE[:-1], _BUNDLE[:-1] + b"x", b""])
def test_an_export_that_does_not_come_whole_leaves_the_old_file(stage: Stage, tmp_path: Path, data: bytes) -> None:
    stage.answer("GetVersion", _version())
    stage.answer("ExportModel", _exported(data))
    file = tmp_path / "x.bundle"
    file.write_bytes(b"old")
    shown = stage("model", "export", "plain:1", str(file))
    assert shown.code == 1
    assert "the bundle did not come whole" in shown.err
    assert not list(tmp_path.glob(".*"))
    assert file.read_bytes() == b"old"


def test_an_export_into_a_folder_that_is_not_there_asks_nothing_of_the_controller(stage: Stage, tmp_path: Path) -> None:
    assert stage("model", "export", "plain:1", str(tmp_path / "none/x.bundle"), "--for", "").code == 3
    assert stage.admin.requests == []


def test_telemetry_from_a_file_says_what_is_new_what_is_lost_and_what_was_there(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "edge.telemetry"
    file.write_bytes(bytes(300_000))
    done = views.TelemetryImport(
        agent="edge-7",
        exported=AGO,
        batches=1200,
        counted=1000,
        rows=5_000_000,
        flagged=12,
        gaps=2,
        rows_lost=77,
        refused=1,
    )
    stage.answer("ImportTelemetry", convert.TELEMETRY_IMPORT.to_wire(done))
    shown = stage("telemetry", "import", str(file))
    assert "edge-7: 1,000 of 1,200 batches counted, 5,000,000 rows, 12 flagged" in shown.out
    assert "199 were counted before" in shown.out
    assert "2 gaps told: 77 rows" in shown.out
    assert "1 refused" in shown.out
    sent = stage.admin.last("ImportTelemetry")
    assert sent[0].header.total_bytes == 300_000
    assert b"".join(piece.data for piece in sent[1:]) == bytes(300_000)
    assert stage("telemetry", "import", str(file), "--output", "json").json["rows_lost"] == 77
    assert stage("telemetry", "import", str(tmp_path / "none")).code == 3
