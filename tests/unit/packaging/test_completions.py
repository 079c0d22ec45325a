"""Completion, tried as a person does: a real shell on a terminal, and TAB."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from programs import surface
from programs.completions import main
from tests.support.terminal import Terminal

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "zsh-installed": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
PROGRAMS = [surface.agent(), surface.controller()]

FAKE_VEDETTE = """\
#!/bin/sh
[ -n "$_VEDETTE_COMPLETE" ] || exit 9
echo "$COMP_LINE|$COMP_WORDS" >>asked
case $_VEDETTE_COMPLETE in
    bash_complete) printf 'plain,flow-threat:12\\n' ;;
    zsh_complete) printf 'plain\\nflow-threat\\\\:12\\nflow\\n' ;;
    fish_complete) printf 'plain,flow-threat:12\\tflow\\n' ;;
esac
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completions")
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, scripts: Path, tmp_path: Path) -> Iterator[tuple[str, Terminal]]:
    """A shell with our scripts, in a folder with a file ctl.toml; vedette is a program that knows one version."""
    name, _, is_installed = request.param.partition("-")
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vedette").write_text(FAKE_VEDETTE)
    (tmp_path / "bin/vedette").chmod(0o755)
    (tmp_path / "ctl.toml").touch()
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    with Terminal(SHELLS[request.param], environment, tmp_path) as terminal:
        if name == "zsh":
            found = f"fpath=({scripts}/zsh $fpath); " if is_installed else ""
            terminal.type(f"{found}autoload -Uz compinit && compinit -u -D; setopt no_beep\n")
        for script in [] if is_installed else sorted((scripts / name).iterdir()):
            terminal.type(f"source {script}\n")
        terminal.type("echo re''ady\n")
        terminal.until("ready")
        yield name, terminal


def test_a_verb_is_completed(shell: tuple[str, Terminal]):
    _, terminal = shell
    terminal.type("vedette-agent sta\t")
    terminal.until("vedette-agent status ")


def test_every_verb_of_a_program_is_in_every_shells_script(scripts: Path):
    for program in PROGRAMS:
        for name in (f"bash/{program.path}", f"zsh/_{program.path}", f"fish/{program.path}.fish"):
            text = (scripts / name).read_text()
            verbs = [verb.path.partition(" ")[2] for verb in program.verbs]
            assert [verb for verb in verbs if verb not in text] == []
    assert "doctor" in (scripts / "fish/vedette-agent.fish").read_text()


def test_values_of_a_flag_are_completed(shell: tuple[str, Terminal]):
    _, terminal = shell
    terminal.type("vedette-agent status --outp\tj\t")
    terminal.until("status --output[= ]json ")


def test_a_value_behind_an_equals_sign_is_completed(shell: tuple[str, Terminal]):
    _, terminal = shell
    terminal.type("vedette-agent status --output=j\t")
    terminal.until("status --output=json ")


def test_config_completes_files(shell: tuple[str, Terminal]):
    _, terminal = shell
    terminal.type("vedette-controller serve --config ct\t")
    terminal.until(r"serve --config ctl\.toml ")


def test_a_value_that_is_spelt_like_a_verb_is_not_one(shell: tuple[str, Terminal]):
    _, terminal = shell
    terminal.type("vedette-agent --config run sta\t")
    terminal.until("--config run status ")


def test_live_words_with_a_colon_are_completed_whole(shell: tuple[str, Terminal], tmp_path: Path):
    _, terminal = shell
    terminal.type("vedette rollout start flow-threat:1\t")
    terminal.until(r"rollout start flow-threat\\?:12 ")
    assert "vedette rollout start flow-threat:1" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize("program", ["vedette", "vedette-agent"])
def test_completion_works_each_time(shell: tuple[str, Terminal], program: str):
    """A file that zsh loads when it is needed is run in two ways: when it is loaded, and after."""
    _, terminal = shell
    typed, completed = {
        "vedette": ("vedette rollout start flow-t\t", r"start flow-threat\\?:12 "),
        "vedette-agent": ("vedette-agent stat\t", "vedette-agent status "),
    }[program]
    for _ in range(4):
        terminal.type(typed)
        terminal.until(completed)
        terminal.type("\x15")  # Ctrl-U: an empty line


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.path for program in PROGRAMS])
def test_every_verb_and_flag_is_offered_by_bash(scripts: Path, program: surface.Verb):
    for verb in (program, *program.verbs):
        wanted = {name for flag in verb.flags for name in flag.names}
        words = " ".join([*verb.path.split(), "-"])
        code = f"source {scripts}/bash/{program.path}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        code += f'_{program.path.replace("-", "_")}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-uc", code], check=True, capture_output=True, text=True)
        assert (set(done.stdout.split()), done.stderr) == (wanted, "")


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.path for program in PROGRAMS])
def test_every_verb_and_flag_is_known_to_zsh(scripts: Path, program: surface.Verb):
    text = (scripts / f"zsh/_{program.path}").read_text()
    for verb in program.verbs:
        name = verb.path.split()[1]
        assert f"'{name}:" in text
        line = re.search(rf"^ +{name}\) _arguments (.*)", text, re.MULTILINE)
        assert line
        assert {flag.names[-1] for flag in verb.flags} <= set(re.findall(r"--[a-z-]+", line[1]))
