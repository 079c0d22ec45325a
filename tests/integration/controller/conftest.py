import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.controller import Running, prepare, running
from vedette.controller.__main__ import main


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(prepare(tmp_path / "data")) as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["init", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]) == 0
    shown = capsys.readouterr().out
    path = tmp_path / "data" / "controller.toml"
    assert f"serve --config {path}" in shown
    assert "online" in shown
    path.write_text(path.read_text().replace("127.0.0.1:7480", ""))
    return path


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which a service tells systemd how it stands."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(30)
        listener.bind(str(tmp_path / "notify"))
        yield listener
