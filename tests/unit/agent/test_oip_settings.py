"""Claims about where programs may ask: nothing is offered to a network without TLS and a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from vedette.agent.settings import read_settings
from vedette.models.toml_settings import SettingsError

_ALL = 'inference.tls_certificate = "/c"\ninference.tls_key = "/k"\ninference.token_file = "/t"\n'


def _read(tmp_path: Path, text: str) -> object:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return read_settings(file).oip


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "appliance.example", "[::ffff:192.0.2.1]"])  # noqa: S104
def test_an_address_that_others_reach_takes_tls_and_a_token(tmp_path: Path, host: str) -> None:
    listen = f'inference.listen = "{host}:8001"\n'
    with pytest.raises(SettingsError, match=r"not set: inference\.tls_certificate, inference\.tls_key"):
        _read(tmp_path, listen)
    for line in _ALL.splitlines():
        rest = _ALL.replace(line + "\n", "")
        with pytest.raises(SettingsError, match=rf"not set: {line.split()[0]}".replace(".", r"\.")):
            _read(tmp_path, listen + rest)
    assert _read(tmp_path, listen + _ALL)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "[::1]", "localhost"])
def test_loopback_may_be_plain(tmp_path: Path, host: str) -> None:
    assert _read(tmp_path, f'inference.listen = "{host}:0"\n')


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('inference.tls_key = "/k"\n', "inference.tls_key is set alone"),
        ('inference.tls_certificate = "/c"\n', "inference.tls_certificate is set alone"),
        (
            'inference.listen = "127.0.0.1:1"\ninference.token_file = "/t"\n',
            "inference.token_file is set without TLS",
        ),
    ],
)
def test_half_of_a_protection_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        _read(tmp_path, text)


def test_agents_beside_the_packaged_one_have_each_their_own_socket(tmp_path: Path) -> None:
    packaged = read_settings(_file(tmp_path, "")).oip.socket
    assert packaged == Path("/run/vedette-agent/inference.sock")
    assert read_settings(_file(tmp_path, f'state_dir = "{tmp_path}"')).oip.socket == tmp_path / "inference.sock"
    assert read_settings(_file(tmp_path, 'inference.socket = "/x/y"')).oip.socket == Path("/x/y")
    assert read_settings(_file(tmp_path, 'inference.socket = ""')).oip.socket is None


def _file(folder: Path, text: str) -> Path:
    (folder / "agent.toml").write_text(text)
    return folder / "agent.toml"
