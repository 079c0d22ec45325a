"""Completion of vedette: the real program, asked as the shells ask it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from tests.support.cli_stage import NOW, Stage
from tests.support.pki import Authority
from vedette.controller.cli import root
from vedette.controller.cli.client import connect
from vedette.controller.cli.session import Session
from vedette.controller.context import AdminContext
from vedette.wire.v1 import admin_pb2 as pb

AGENTS = pb.AgentList(
    agents=[
        pb.Agent(name="edge-1", labels={"site": "paris", "lab": ""}),
        pb.Agent(name="edge-2", labels={"site": "lyon"}),
    ]
)


def _in_bash(stage: Stage, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """Return what bash is told after this line was typed."""
    monkeypatch.setenv("COMP_LINE", line)
    session = Session(connect=stage.connect, now=lambda: NOW)
    kind = get_completion_class("bash")
    assert kind is not None
    try:
        return kind(root, {"obj": session}, "vedette", "_VEDETTE_COMPLETE").complete().splitlines()
    finally:
        session.close()


def test_a_version_is_one_word_for_bash_though_it_holds_a_colon(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    versions = [pb.Version(version="plain:1"), pb.Version(version="plane:2")]
    stage.answer("ListVersions", pb.VersionList(versions=versions))
    assert _in_bash(stage, monkeypatch, "vedette rollout start plain:") == ["plain,plain:1"]
    assert _in_bash(stage, monkeypatch, "vedette rollout start pla") == ["plain,plain:1", "plain,plane:2"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", ["lab", "site=lyon", "site=paris"]),
        ("site=p", ["site=paris"]),
        ("!l", ["!lab"]),
        ("site=paris,la", ["site=paris,lab"]),
        ("site!=x,!l", ["site!=x,!lab"]),
        ("zone", []),
    ],
)
def test_the_last_term_of_a_selector_is_completed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
):
    stage.answer("ListAgents", AGENTS)
    for line in ("vedette agent ls --selector ", "vedette rollout start plain:1 --to "):
        assert _in_bash(stage, monkeypatch, line + typed) == [f"plain,{word}" for word in offered]


def test_words_behind_an_open_quote_are_completed(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    stage.answer("ListAgents", AGENTS)
    assert _in_bash(stage, monkeypatch, "vedette agent show 'edge-2") == ["plain,edge-2"]


@pytest.mark.parametrize("flag", ["--context", "--config"])
def test_flags_that_name_a_file_complete_files(stage: Stage, monkeypatch: pytest.MonkeyPatch, flag: str):
    assert _in_bash(stage, monkeypatch, f"vedette {flag} adm") == ["file,adm"]


def test_a_controller_that_never_answers_costs_less_than_a_second(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    authority = Authority()
    key, certificate = (pem.decode() for pem in authority.server())  # any pair of the right form will do
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nothing is ever said
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        context = AdminContext(name="a", address=address, ca=authority.pem.decode(), certificate=certificate, key=key)
        monkeypatch.setattr(stage, "connect", lambda _: connect(context))
        before = time.monotonic()
        assert _in_bash(stage, monkeypatch, "vedette agent show ") == []
        assert 0.5 < time.monotonic() - before < 1.0


@pytest.mark.parametrize("text", ["", "no toml", 'address = "x:1"', "\udcff"])
def test_the_program_itself_says_nothing_when_it_cannot_ask(tmp_path: Path, text: str):
    (tmp_path / "admin.toml").write_bytes(text.encode(errors="surrogateescape"))
    environment = {
        **os.environ,
        "VEDETTE_CONTEXT": str(tmp_path / "admin.toml"),
        "XDG_CONFIG_HOME": str(tmp_path),
        "_VEDETTE_COMPLETE": "bash_complete",
        "COMP_LINE": "vedette agent show ",
    }
    command = [sys.executable, "-c", "from vedette.models.entry import vedette; vedette()"]
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == (b"", b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_and_says_where_it_goes(stage: Stage, shell: str):
    shown = stage("completion", shell)
    assert shown.code == 0
    assert f"{shell}_complete" in shown.out
    assert "To have it always" in shown.err
