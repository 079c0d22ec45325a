"""How the demo is told, and what it refuses before anything is started."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from rich.console import Console

from vedette.controller.cli.problems import Failed, Missing, Refused, Usage
from vedette.controller.demo import live
from vedette.controller.demo.command import run_demo
from vedette.controller.demo.stage import Stage
from vedette.controller.demo.story import _of_run


def told(columns: int) -> tuple[Stage, io.StringIO]:
    text = io.StringIO()
    return Stage(Console(file=text, width=columns, highlight=False)), text


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_nothing_that_is_told_wraps_by_itself(columns: int):
    stage, text = told(columns)
    stage.heading("a long heading " * 9)
    stage.command("vedette data import …/base2/softflowd-v9.pcap.gz --dataset lab --format flows --and more")
    stage.note("something to know " * 9)
    stage.row("false alarms", "many words " * 19, wide=16)
    assert max(map(len, text.getvalue().splitlines())) <= columns


def test_a_long_command_can_be_copied_as_it_is_shown():
    stage, text = told(60)
    command = "vedette data import capture.pcap.gz --dataset lab --format flows"
    stage.command(command)
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert " ".join(line.removesuffix("\\").strip() for line in lines) == f"$ {command}"


def test_columns_of_a_table_are_aligned_whatever_is_in_them():
    stage, text = told(80)
    stage.table(("FEATURE", "BEFORE", "NOW"), [("verdict", "not enough rows", "shifted"), ("PSI [x]", "0.00", "5.13")])
    lines = text.getvalue().splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[2].split() == ["PSI", "[x]", "0.00", "5.13"]


def test_metrics_are_told_by_what_they_mean_and_absent_ones_not_at_all():
    metrics = {"episodes": 18.0, "episodes_found": 16.0, "auc": 0.9982, "held_out_false": 16.0}
    assert [name for name, _ in _of_run(metrics)] == ["attacks found", "ranking"]
    assert _of_run(metrics)[0][1].startswith("16 of 18 labelled windows")


def test_live_without_softflowd_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "_softflowd", lambda: None)
    with pytest.raises(Failed) as failed:
        run_demo(live="lo")
    assert "apt install softflowd" in failed.value.remedy


def test_live_on_an_interface_that_is_not_there_names_those_that_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "_softflowd", lambda: "/usr/sbin/softflowd")
    with pytest.raises(Missing) as missing:
        run_demo(live="lo7")
    assert "lo" in missing.value.why
    assert missing.value.remedy == "did you mean lo?"


def test_live_needs_root_and_says_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "_softflowd", lambda: "/usr/sbin/softflowd")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Refused) as refused:
        run_demo(live="lo")
    assert refused.value.remedy.startswith("sudo ")


def test_a_folder_that_holds_something_is_left_alone():
    with TemporaryDirectory() as folder:  # where tests run side by side the path of tmp_path is too long for a socket
        kept = Path(folder) / "mine"
        kept.write_text("x")
        with pytest.raises(Refused) as refused:
            run_demo(directory=Path(folder))
        assert list(Path(folder).iterdir()) == [kept]
    assert "not empty" in refused.value.what


def test_a_path_too_long_for_a_socket_is_refused_with_its_length(tmp_path: Path):
    with pytest.raises(Usage) as usage:
        run_demo(directory=tmp_path / ("x" * 90))
    assert "limit 70" in usage.value.why
    assert not list(tmp_path.iterdir())
