"""The rules of every command: flags, typos, errors, help, start-up, documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import grpc
import pytest

from tests.support.cli_stage import CONTEXT, Stage
from vedette.controller.cli import root
from vedette.controller.cli.client import connect
from vedette.wire.v1 import admin_pb2 as pb

ROOT = Path(__file__).parents[3]


def _tree(command: click.Command, path: str = "vedette") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from _tree(child, f"{path} {name}")


TREE = dict(_tree(root))
VERBS = [path for path, command in TREE.items() if not isinstance(command, click.Group)]


def test_the_words_others_scripts_use_are_there() -> None:
    fixed = """
        token create|token ls|token revoke|agent ls|agent show|agent label|agent revoke|agent rm|data import|data ls|
        data show|data snapshot|label import|train|run ls|run show|model register|model ls|model show|model export|
        rollout start|rollout ls|rollout show|rollout watch|rollout pause|rollout resume|rollout abort|drift|
        status|login|demo|telemetry query|telemetry import|completion
    """
    assert {f"vedette {path.strip()}" for path in fixed.split("|")} == set(VERBS)


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    documented = set(re.findall(r"^### (vedette.*)$", (ROOT / "docs/cli.md").read_text(), re.MULTILINE))
    nouns = {path for path, command in TREE.items() if isinstance(command, click.Group)}
    assert documented - nouns == set(VERBS)


@pytest.mark.parametrize("path", TREE)
def test_the_first_screen_teaches(stage: Stage, path: str) -> None:
    shown = stage(*path.split()[1:], "--help")
    assert shown.code == 0
    first, *_ = shown.out.splitlines()
    assert first.endswith(".")
    assert "Examples:" in shown.out
    assert f"  {path}" in shown.out
    assert shown.out.index("Examples:") < shown.out.index("Global options")
    assert max(map(len, shown.out.splitlines())) <= 130


@pytest.mark.parametrize("path", TREE)
def test_examples_are_commands_that_parse(path: str) -> None:
    for example in TREE[path].examples:  # type: ignore[attr-defined]
        words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", example)][1:]
        found: click.Command = root
        while isinstance(found, click.Group) and words and words[0] in found.commands:
            found = found.commands[words.pop(0)]
        found.make_context("vedette", words)


FLAGS = [("--output", "json"), ("--color", "never"), ("--verbose",)]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_global_flags_work_before_and_after_the_verb(stage: Stage, place: int) -> None:
    stage.answer("ListAgents", pb.AgentList())
    words = ["agent", "ls"]
    words[place:place] = ["--output", "json"]
    assert stage(*words).out == "[]\n"


def test_the_last_flag_given_counts(stage: Stage) -> None:
    stage.answer("ListAgents", pb.AgentList())
    assert "No agents yet" in stage("--output", "json", "agent", "ls", "--output", "table").out


def test_the_context_may_be_named_by_flag_environment_settings_or_login(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.answer("ListAgents", pb.AgentList())
    stage.answer("GetOverview", pb.Overview())
    assert stage("agent", "ls").code == 0
    monkeypatch.delenv("VEDETTE_CONTEXT")
    assert stage("agent", "ls", "--context", str(stage.context)).code == 0
    assert stage("agent", "ls").code == 2
    settings = tmp_path / "other.toml"
    settings.write_text(f'context = "{stage.context}"\noutput = "json"\n')
    assert stage("--config", str(settings), "agent", "ls").out == "[]\n"
    assert stage("login", str(stage.context)).out == "vedette now speaks to ctl.example:7443 as ana.\n"
    assert stage("agent", "ls").code == 0


def test_a_login_is_kept_where_only_its_user_can_read_it(stage: Stage, tmp_path: Path) -> None:
    stage.answer("GetOverview", pb.Overview())
    stage("login", str(stage.context))
    kept = tmp_path / "config/vedette/context.toml"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert [item.name for item in kept.parent.iterdir()] == ["context.toml"]


def test_a_login_with_a_file_that_others_can_read_warns_and_one_that_nobody_else_can_read_does_not(
    stage: Stage,
) -> None:
    stage.answer("GetOverview", pb.Overview())
    stage.context.chmod(0o644)
    assert f"chmod 600 {stage.context}" in stage("login", str(stage.context)).err
    stage.context.chmod(0o600)
    assert stage("login", str(stage.context)).err == ""


def test_a_context_in_a_folder_of_somebody_else_is_refused_with_how_to_get_a_copy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    for words in (("login", "/srv/admin.toml"), ("agent", "ls", "--context", "/srv/admin.toml")):
        shown = stage(*words)
        assert shown.code == 1
        assert "Error: context file /srv/admin.toml cannot be read\n  Permission denied, you are user " in shown.err
        assert "sudo install -o $USER -m 600 /srv/admin.toml" in shown.err


def test_a_login_to_a_controller_that_sleeps_is_kept_and_says_so(stage: Stage) -> None:
    stage.refuse("GetOverview", grpc.StatusCode.UNAVAILABLE, "nobody there")
    shown = stage("login", str(stage.context), "--output", "json")
    assert (shown.code, shown.json["reachable"]) == (0, False)
    assert "does not answer now" in shown.err


def test_a_login_with_a_file_that_is_no_context_keeps_the_old_one(stage: Stage, tmp_path: Path) -> None:
    stage.answer("GetOverview", pb.Overview())
    stage("login", str(stage.context))
    (tmp_path / "bad.toml").write_text('adress = "x:1"\n')
    shown = stage("login", str(tmp_path / "bad.toml"))
    assert shown.code == 2
    assert "did you mean address?" in shown.err
    assert CONTEXT.address in (tmp_path / "config/vedette/context.toml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("rolout",), 2, "did you mean: vedette rollout"),
        (("agent", "lst"), 2, "did you mean: vedette agent ls"),
        (("agent", "xyzzy"), 2, "see: vedette agent --help"),
        (("agent", "ls", "--selectr", "x"), 2, "did you mean --selector?"),
        (("agent", "ls", "--outptu", "json"), 2, "did you mean --output?"),
        (("agent", "ls", "--output", "yaml"), 2, "'json'"),
        (("agent", "show"), 2, "missing argument 'NAME'"),
        (("agent", "ls", "extra"), 2, "extra"),
        (("token", "create", "--expires", "soon"), 2, "'soon' is not a time"),
        (("token", "create", "--expires", "0"), 2, "1 to"),
        (("token", "create", "--uses", "0"), 2, "1<=x<=100000"),
        (("token", "create", "--label", "site"), 2, "not KEY=VALUE"),
        (("token", "create", "--label", "a=1", "--label", "a=2"), 2, "given twice"),
        (("rollout", "start", "m:1", "--to", "", "--soak", "99999w"), 2, "at most"),
        (("drift", "m", "--window", "0s"), 2, "1 s to 3650d"),
        (("--context", "/nowhere/admin.toml", "agent", "ls"), 3, "does not exist"),
        (("--config", "/nowhere/config.toml", "agent", "ls"), 2, "cannot be read"),
        (("login", "/nowhere/admin.toml"), 3, "does not exist"),
        (("completion", "tcsh"), 2, "'fish'"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(stage: Stage, words: tuple[str, ...], code: int, part: str) -> None:
    shown = stage(*words)
    assert shown.code == code
    assert shown.out == ""
    assert part in shown.err
    assert "Traceback" not in shown.err
    assert shown.err.startswith("Error: ")
    assert len(shown.err.splitlines()) <= 3


def test_settings_with_an_unknown_key_name_the_nearest(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('outptu = "json"\n')
    shown = stage("--config", str(tmp_path / "config.toml"), "agent", "ls")
    assert shown.code == 2
    assert "did you mean output?" in shown.err


def test_a_mistake_of_ours_is_one_line_and_a_stack_trace_when_asked_for(stage: Stage) -> None:
    stage.answer("ListAgents", pb.AgentList(agents=[pb.Agent(name="x")]))  # its state is unspecified
    shown = stage("agent", "ls")
    assert shown.code == 1
    assert "Agent.state" in shown.err
    with pytest.raises(Exception, match=r"Agent\.state"):
        stage("agent", "ls", "--verbose")


def test_a_controller_that_is_not_there_is_exit_5(stage: Stage, unused_port: int) -> None:
    stage.context.write_text(CONTEXT.to_toml().replace("ctl.example:7443", f"127.0.0.1:{unused_port}"))
    stage.connect = connect  # type: ignore[method-assign]
    shown = stage("agent", "ls")
    assert shown.code == 5
    assert f"127.0.0.1:{unused_port}" in shown.err


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_and_typos_load_neither_grpc_nor_protobuf_nor_rich() -> None:
    code = """
import sys
from vedette.controller.cli import run
from vedette.controller.cli.session import Session
run(["rollout", "start", "--help"], Session()); run(["agnet"], Session())
heavy = [name for name in ("grpc", "google.protobuf", "rich", "numpy", "cryptography") if name in sys.modules]
print(heavy)
"""
    assert _python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(stage: Stage, shell: str) -> None:
    shown = stage("completion", shell)
    assert shown.code == 0
    assert "_VEDETTE_COMPLETE" in shown.out


def test_a_broken_pipe_is_no_stack_trace(tmp_path: Path) -> None:
    code = f"{sys.executable} -c 'from vedette.controller.cli import main; main()' --help | head -c 1"
    done = subprocess.run(code, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert "Traceback" not in done.stderr
