from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_stage import CONTEXT, FakeAdmin, Stage, serving


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Stage]:
    """A person with a context file and a controller that answers as told."""
    context = tmp_path / "admin.toml"
    context.write_text(CONTEXT.to_toml())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VEDETTE_CONTEXT", str(context))
    for name in ("NO_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)
    admin = FakeAdmin()
    with serving(admin) as address:
        yield Stage(admin, address, capsys, context)
