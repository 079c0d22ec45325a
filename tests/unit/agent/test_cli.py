"""Claims about the command line."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_controller import AGENT_ID, FakeController
from vedette.agent.cli import run_command


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(f'state_dir = "{tmp_path}/state"\nname = "edge-7"\n')
    return file


@pytest.mark.parametrize("verb", ["enroll", "run", "configure", "status", "models", "doctor"])
def test_every_commands_help_says_what_it_does_with_two_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([verb, "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.split("examples:\n")[1].split("\n\n")[0].splitlines()
    assert [line.strip().split(" ")[0] in ("vedette-agent", "ssh", "sudo") for line in examples] == [True, True]


def test_alone_it_shows_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "enroll Spend a one-time token" in " ".join(said.err.split())


def test_the_help_of_run_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["run", "--help"])
    text = capsys.readouterr().out
    assert "source.netflow.listen = " in text
    assert "budget.memory = " in text


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["statsu"], "status"), (["enrol", "--token", "x"], "enroll"), (["run", "--confgi", "x"], "--config")],
)
def test_a_mistyped_word_gets_the_nearest_right_one(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    assert f"did you mean {nearest}?" in capsys.readouterr().err


def test_a_wrong_settings_file_is_a_usage_error_of_three_lines(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('budget.memory = "1MiB"')
    assert run_command(["status", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 3)


def test_a_wrong_value_is_not_answered_with_the_option_it_was_given_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["status", "--output", "yaml"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_the_settings_file_may_be_named_before_and_after_the_verb(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["--config", str(config), "status", "--output", "json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert run_command(["status", "--output", "json", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert before["name"] == "edge-7"


def test_status_of_an_agent_that_never_ran_says_so(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["status", "--config", str(config)]) == 0
    text = capsys.readouterr().out
    assert "NOT RUNNING" in text
    assert "not enrolled" in text


def test_models_of_an_empty_agent_teach_the_next_step(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["models", "--config", str(config)]) == 0
    assert "vedette rollout start" in capsys.readouterr().out
    assert run_command(["models", "--output", "json", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out) == {}


async def test_enroll_reads_the_token_from_standard_input_and_status_knows_the_name(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeController() as controller:
        monkeypatch.setattr("sys.stdin", io.StringIO(controller.token().encode() + "\n"))
        arguments = ["enroll", "--token", "-", "--name", "gate-3", "--config", str(config)]
        assert await asyncio.to_thread(run_command, arguments) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "gate-3" in said.err
    run_command(["status", "--output", "json", "--config", str(config)])
    report = json.loads(capsys.readouterr().out)
    assert (report["running"], report["name"], report["agent_id"]) == (False, "gate-3", AGENT_ID)


def test_a_cut_token_exits_with_usage(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["enroll", "--token", "vdt1.abc", "--config", str(config)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_program_starts_without_loading_grpc_numpy_or_a_runtime() -> None:
    code = (
        "import sys; from vedette.agent.cli import run_command; run_command(['run', '--help']);"
        "heavy = {'grpc', 'numpy', 'onnxruntime', 'vedette.controller'} & set(sys.modules); sys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor_loads_no_runtime_itself_and_yet_knows_it(config: Path) -> None:
    code = (
        "import sys; from vedette.agent.cli import run_command;"
        f"run_command(['doctor', '--output', 'json', '--config', {str(config)!r}]);"
        "sys.exit(len({'onnxruntime', 'vedette.controller'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (runtime,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "runtime"]
    assert runtime["level"] == "ok"
    assert "CPU" in runtime["text"]


def test_under_the_journal_a_failure_is_one_entry_and_not_three_lines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vedette.agent.cli.is_journal", lambda: True)
    config = tmp_path / "agent.toml"
    config.write_text('nmae = "edge"\n')
    assert run_command(["status", "--config", str(config)]) == 2
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "nmae" in record.getMessage()
    assert capsys.readouterr().err == ""
