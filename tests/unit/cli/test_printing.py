"""How results, numbers, times and progress look; completion of live words."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from click.shell_completion import ShellComplete
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cli_stage import NOW, Stage
from vedette.controller.cli import root
from vedette.controller.cli.output import Column, Output, fitting, plain
from vedette.controller.cli.problems import Usage
from vedette.controller.cli.progress import Meter, bar
from vedette.controller.cli.rollout import _Follower, screen
from vedette.controller.cli.session import Session
from vedette.controller.cli.words import ago, clean, count, pairs, seconds, share, size, span, three
from vedette.wire import views
from vedette.wire.v1 import admin_pb2 as pb

COLUMNS = (Column("NAME"), Column("LABELS", 3), Column("STATE"), Column("WHY", 1))
ROWS = [["edge-1", "x" * 30, "healthy", "y" * 40]]


@pytest.mark.parametrize(("width", "kept"), [(200, [0, 1, 2, 3]), (90, [0, 2, 3]), (30, [0, 2]), (1, [0, 2])])
def test_the_least_useful_column_goes_first_and_what_must_stay_stays(width: int, kept: list[int]) -> None:
    assert fitting(COLUMNS, ROWS, width) == kept


def test_what_was_cut_is_named_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    Output().table(COLUMNS, ROWS)
    said = capsys.readouterr()
    assert said.out == "NAME     STATE\nedge-1   healthy\n"
    assert "LABELS, WHY" in said.err


def test_without_a_terminal_a_table_fits_a_hundred_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    Output().table([Column("A"), Column("B", 1)], [["x" * 60, "y" * 60]])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_free_text_takes_the_room_that_is_left_and_costs_no_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    Output().table(
        [Column("NAME"), Column("SITE", 2), Column("WHY", 1, free=True)], [["edge-1", "s1", "self-test " * 9]]
    )
    said = capsys.readouterr()
    head, row = said.out.splitlines()
    assert head == "NAME     SITE   WHY"
    assert row.startswith("edge-1   s1     self-test self-test")
    assert row.endswith("…")
    assert len(row) <= 50
    assert said.err == ""


def test_wide_characters_keep_columns_straight(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table([Column("A"), Column("B")], [["日本", "x"], ["abcd", "y"]])
    assert capsys.readouterr().out.splitlines()[1:] == ["日本   x", "abcd   y"]


def test_colour_repeats_words_and_goes_away_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for color in ("always", "never", "auto"):
        Output(color=color).table([Column("STATE")], [["degraded"]])
    always, never, auto = (part for part in capsys.readouterr().out.split("STATE") if "degraded" in part)
    assert "\x1b[31mdegraded\x1b[0m" in always
    assert "\x1b" not in never + auto


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_color_and_dumb_terminals_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Output().colours(_Tty())
    monkeypatch.setenv("TERM", "dumb")
    assert not Output().colours(_Tty())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output().colours(_Tty())


@given(st.text())
def test_nothing_an_appliance_wrote_moves_the_cursor(text: str) -> None:
    shown = clean(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u200b" for c in shown)


def test_json_has_utc_times_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    item = views.RolloutEvent(at=NOW.astimezone().replace(microsecond=5000), text="a\x1b[2Jb")
    assert plain(item) == {"at": "2026-11-23T12:00:00.005Z", "text": "a\x1b[2Jb"}
    Output("json").json(item)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "length"), [("30s", 30), ("10m", 600), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("45", 45)]
)
def test_times_are_read_with_their_unit(text: str, length: int) -> None:
    assert seconds(text, "--soak") == length


@given(st.text(max_size=12))
def test_any_text_is_a_time_or_a_mistake_of_usage(text: str) -> None:
    with contextlib.suppress(Usage):
        assert seconds(text, "--soak") >= 0


@given(st.dictionaries(st.text("abc", min_size=1), st.text("xyz=", max_size=5), max_size=4))
def test_labels_are_read_back_as_they_were_written(labels: dict[str, str]) -> None:
    assert pairs([f"{key}={value}" for key, value in labels.items()], "--label") == labels


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (three(0), "0"), (three(1204.4), "1,204"), (three(0.03124), "0.0312"), (three(12.36), "12.4"),
        (three(0.000000123), "1.23e-07"), (three(-5.04), "-5.04"), (three(16), "16"),
        (size(0), "0 B"), (size(999), "999 B"),
        (size(1000), "1 kB"), (size(19_530_000), "19.5 MB"), (size(999_999), "1 MB"), (share(0.0031), "0.31 %"),
        (count(1, "agent"), "1 agent"), (count(1200, "agent"), "1,200 agents"), (span(8), "8 s"),
        (span(200), "3 min"), (span(7200), "2 h"), (span(400_000), "5 days"), (bar(0.5, 4), "██░░"), (bar(7, 2), "██"),
        (ago(None, NOW), "never"), (ago(NOW, NOW), "now"), (ago(NOW - timedelta(minutes=4), NOW), "4 min ago"),
        (ago(NOW + timedelta(hours=24), NOW), "in 24 h"),
    ],
)  # fmt: skip
def test_numbers_read_well(shown: str, text: str) -> None:
    assert shown == text


class _Hand:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_away_from_a_terminal_progress_is_one_line_a_tenth() -> None:
    stream, hand = io.StringIO(), _Hand()
    meter = Meter("a.pcap", 1_000_000, stream=stream, monotonic=hand)
    for done in range(0, 1_000_001, 10_000):
        hand.at = done / 100_000
        meter.update(done)
    meter.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[5] == "a.pcap  50 %  500 kB of 1 MB  100 kB/s  about 5 s left"


def test_on_a_terminal_progress_is_one_line_that_moves() -> None:
    stream, hand = _Tty(), _Hand()
    meter = Meter("run 4", 1.0, stream=stream, monotonic=hand, is_bytes=False)
    for step in range(100):
        hand.at = step / 100
        meter.update(step / 100, "training")
    meter.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") <= 12
    assert "run 4  99 %" in stream.getvalue()


def test_progress_never_wraps_so_that_it_can_be_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    stream = _Tty()
    meter = Meter("a-capture-with-a-long-name.pcap.gz", 1_000_000, stream=stream, monotonic=_Hand())
    meter.update(500_000, "the controller reads it")
    meter.close()
    drawn = re.split(r"\r\x1b\[K", stream.getvalue().rstrip("\n"))[1:]
    assert len(drawn) == 2
    assert all(len(line) < 50 and line.endswith("…") for line in drawn)


def test_nothing_to_send_is_done_at_once() -> None:
    stream = io.StringIO()
    Meter("empty", 0, stream=stream).update(0)
    assert "100 %" in stream.getvalue()


def test_the_screen_of_a_rollout_has_a_bar_a_wave_and_the_counts() -> None:
    members = tuple(views.Member(agent=f"e{n}", state=views.MemberState.MOVED) for n in range(4))
    slow = tuple(
        views.Member(agent=f"s{n}", state=views.MemberState.ASSIGNED, reason="downloading 10 %") for n in range(3)
    )
    waves = (
        views.Wave(size="4", members=members, state="passed"),
        views.Wave(size="100%", members=slow, state="moving"),
    )
    item = views.Rollout(rollout="7", version="m:2", state=views.RolloutState.RUNNING, waves=waves, started=NOW)
    lines = screen(item)
    assert lines[1] == f" wave 1  {bar(1.0)}  4/4   passed"
    assert lines[2] == f" wave 2  {bar(0.0)}  0/3   moving   3 downloading 10 %"
    assert lines[3] == " unreachable 0 · failed 0 · refused 0"


class _Screen(io.StringIO):
    """A terminal that obeys the few control sequences a follower writes."""

    def isatty(self) -> bool:
        return True

    @property
    def rows(self) -> list[str]:
        rows: list[str] = []
        for part in re.split(r"(\x1b\[\d+F\x1b\[J|\n)", self.getvalue()):
            if part.endswith("J"):
                del rows[len(rows) - int(part[2 : part.index("F")]) :]
            elif part not in ("", "\n"):
                rows.append(part)
        return rows


def test_on_a_terminal_a_watched_rollout_is_redrawn_in_place_and_wiped_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = _Screen()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "24")
    follower = _Follower(Session())
    for moved in range(3):
        members = tuple(
            views.Member(agent=f"e{n}", state=views.MemberState.MOVED if n < moved else views.MemberState.ASSIGNED)
            for n in range(3)
        )
        waves = (views.Wave(size="100%", members=members, state="moving"),)
        item = views.Rollout(rollout="7", version="m:2", state=views.RolloutState.RUNNING, waves=waves, started=NOW)
        follower.show(item)
        assert [row for row in terminal.rows if "wave 1" in row] == [f" wave 1  {bar(moved / 3)}  {moved}/3   moving"]
        assert terminal.rows[-1].startswith("Leave with Ctrl-C: the rollout goes on.")
        assert max(map(len, terminal.rows)) < 60
    follower.show(replace(item, state=views.RolloutState.SUCCEEDED))
    assert terminal.rows == []


def _completed(stage: Stage, words: list[str], incomplete: str) -> list[str]:
    class Shell(ShellComplete):
        name = "test"

    session = Session(connect=stage.connect, now=lambda: NOW)
    shell = Shell(root, {"obj": session}, "vedette", "_VEDETTE_COMPLETE")
    try:
        return [item.value for item in shell.get_completions(words, incomplete)]
    finally:
        session.close()


def test_completion_offers_what_there_is_now(stage: Stage) -> None:
    agents = [pb.Agent(name="edge-1", labels={"site": "s1"}), pb.Agent(name="edge-2"), pb.Agent(name="core")]
    stage.answer("ListAgents", pb.AgentList(agents=agents))
    stage.answer(
        "ListVersions", pb.VersionList(versions=[pb.Version(version="plain:1"), pb.Version(version="plain:2")])
    )
    stage.answer("ListRollouts", pb.RolloutList(rollouts=[pb.Rollout(rollout="7"), pb.Rollout(rollout="12")]))
    snapshots = [pb.Snapshot(snapshot="lab@1"), pb.Snapshot(snapshot="lab@2")]
    stage.answer("ListDatasets", pb.DatasetList(datasets=[pb.Dataset(name="lab", snapshots=snapshots)]))
    stage.answer("ListRuns", pb.RunList(runs=[pb.Run(run="4")]))
    stage.answer("ListTokens", pb.TokenList(tokens=[pb.Token(id="5f3a")]))
    assert _completed(stage, ["agent", "show"], "ed") == ["edge-1", "edge-2"]
    assert _completed(stage, ["rollout", "start"], "plain") == ["plain:1", "plain:2"]
    assert _completed(stage, ["rollout", "watch"], "") == ["7", "12"]
    assert _completed(stage, ["drift"], "") == ["plain"]
    assert _completed(stage, ["train", "flow-threat", "--data"], "") == ["lab@1", "lab@2"]
    assert _completed(stage, ["rollout", "start", "plain:1", "--to"], "s") == ["site=s1"]
    assert _completed(stage, ["run", "show"], "") == ["4"]
    assert _completed(stage, ["token", "revoke"], "5") == ["5f3a"]
    assert _completed(stage, ["data", "show"], "") == ["lab"]


def test_completion_of_verbs_needs_no_controller(stage: Stage) -> None:
    assert _completed(stage, ["rollout"], "p") == ["pause"]


def test_completion_is_silent_when_nobody_answers(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.refuse("ListAgents", grpc.StatusCode.UNAVAILABLE, "no")
    assert _completed(stage, ["agent", "show"], "") == []
    monkeypatch.setenv("VEDETTE_CONTEXT", str(tmp_path / "absent.toml"))
    assert _completed(stage, ["agent", "show"], "") == []


def test_completion_uses_the_context_that_was_typed(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VEDETTE_CONTEXT")
    stage.answer("ListAgents", pb.AgentList(agents=[pb.Agent(name="edge-1")]))
    assert _completed(stage, ["--context", str(stage.context), "agent", "show"], "") == ["edge-1"]
