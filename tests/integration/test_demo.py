"""The demo as a person runs it: to its end, stopped in the middle, killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vedette.controller.demo.replay import captures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DEMO = [sys.executable, "-P", "-m", "vedette.controller.cli", "demo"]


def left_over(place: Path) -> list[list[str]]:
    """Return the command lines of processes that have anything to do with a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            belongs = str(place) in " ".join(process.cmdline()) or process.environ().get("TMPDIR") == str(place)
            if belongs and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


def until(condition, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary folder with a short name: the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="v") as name:
        yield Path(name)


@pytest.fixture
def begun(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose agents have just connected, with a temporary folder of its own."""
    environment = os.environ | {"TMPDIR": str(place), "COLUMNS": "100"}
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "are connected" in line:
                break
        yield demo
        demo.kill()


def test_ctrl_c_in_the_middle_stops_everything_and_leaves_nothing(begun: subprocess.Popen[str], place: Path):
    assert len(left_over(place)) >= 5  # the demo, the controller, three agents
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=30)
    assert begun.returncode == 130
    assert "nothing is left behind" in said
    assert left_over(place) == []
    assert list(place.iterdir()) == []


def test_a_killed_demo_takes_its_programs_with_it(begun: subprocess.Popen[str], place: Path):
    begun.kill()
    assert until(lambda: left_over(place) == [], within_s=20), left_over(place)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo that ran to its end: its folder and what it said."""
    place = tmp_path_factory.mktemp("demo")
    command, environment = [*DEMO, "--directory", str(place)], os.environ | {"COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done.stdout


def family(label: str) -> str:
    """Return what a person would act on: one kind of scan is as good as another."""
    return "scan" if label.startswith(("scan", "sweep")) else label


def verdicts(place: Path) -> list[dict]:
    files = sorted(place.glob("agents/*/verdicts.jsonl"))
    assert len(files) == 3
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_demo_trains_rolls_out_and_replaces(told: tuple[Path, str]):
    place, said = told
    assert "flow-threat:1 goes out" in said
    assert "flow-threat:2 goes out" in said
    for log in place.glob("logs/*.log"):
        assert "Traceback" not in log.read_text(), log
        assert "ERROR" not in log.read_text(), log


def test_the_drift_statistic_moves_when_the_traffic_does(told: tuple[Path, str]):
    lines = [line.split() for line in told[1].splitlines()]
    before, after = next((float(words[-2]), float(words[-1])) for words in lines if words[:1] == ["PSI"])
    assert after > before + 1
    assert ["verdict", "quiet", "shifted"] in lines


def test_what_is_shown_fits_the_terminal_and_says_what_it_means(told: tuple[Path, str]):
    lines = told[1].splitlines()
    assert max(map(len, lines)) <= 80
    said = " ".join(told[1].split())
    assert "labelled windows, in parts it was not trained on" in said
    assert "of 10,000 benign flows" in said
    assert "far more of them than life does" in said


def test_verdicts_name_the_attacks_that_are_labelled(told: tuple[Path, str]):
    labels = {
        (entry["src"], family(entry["label"]))
        for name in ("base", "shifted")
        for entry in json.loads((captures() / name / "labels.json").read_text())["labels"]
    }
    lines = verdicts(told[0])
    known_sources = {source for source, _ in labels}
    of_attackers = [line for line in lines if {line["src_ip"], line["dest_ip"]} & known_sources]
    assert len(lines) > 3_000
    assert len(of_attackers) / len(lines) > 0.99
    said = Counter((line["src_ip"], family(line["vedette"]["verdict"])) for line in of_attackers)
    assert sum(count for pair, count in said.items() if pair in labels) / len(of_attackers) > 0.95


def test_flagged_verdicts_say_what_drove_them(told: tuple[Path, str]):
    with_evidence = [line for line in verdicts(told[0]) if line["vedette"].get("evidence")]
    assert len(with_evidence) > 50
    assert all(0 < item["weight"] <= 1 for line in with_evidence for item in line["vedette"]["evidence"])
    assert {line["vedette"]["version"] for line in with_evidence} == {1, 2}


def test_nothing_runs_on_after_the_end(told: tuple[Path, str]):
    assert left_over(told[0]) == []
