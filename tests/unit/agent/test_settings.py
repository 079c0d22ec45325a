"""Claims about agent.toml."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vedette.agent.settings import OPTIONS, read_settings
from vedette.models.toml_settings import Option, SettingsError

# The example in DESIGN.md, key for key: other people's files hold these names.
DESIGN_EXAMPLE = """
state_dir = "/var/lib/vedette-agent"
name = "edge-7"
controller = ["ctl.example:7443"]
[source.netflow]
listen = "0.0.0.0:2055"
[inference]
socket = "/run/vedette-agent/inference.sock"
listen = "127.0.0.1:8001"
[sink.json]
path = "/var/log/vedette/verdicts.jsonl"
emit = "flagged"
[metrics]
listen = "127.0.0.1:9464"
[budget]
memory = "512MiB"
cpu_percent = 100
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_the_documented_example_is_taken(file: Path) -> None:
    file.write_text(DESIGN_EXAMPLE)
    settings = read_settings(file)
    assert settings.name == "edge-7"
    assert settings.link.controller == ("ctl.example:7443",)
    assert settings.netflow.listen == ("0.0.0.0", 2055)  # noqa: S104 - as documented
    assert settings.sink.path == Path("/var/log/vedette/verdicts.jsonl")
    assert not settings.sink.emit_all
    assert settings.metrics_listen == ("127.0.0.1", 9464)
    assert settings.budget.memory_bytes == 512 * 2**20
    assert settings.budget.threads == 1


def test_an_empty_file_is_all_defaults_and_the_name_is_the_host_name(file: Path) -> None:
    file.write_text("")
    assert read_settings(file).name == socket.gethostname()
    assert read_settings(file).netflow.receive_buffer_bytes == 4 * 2**20


def test_empty_addresses_and_paths_switch_parts_off(file: Path) -> None:
    file.write_text('source.netflow.listen = ""\nsink.json.path = ""\nmetrics.listen = ""\n')
    settings = read_settings(file)
    assert (settings.netflow.listen, settings.sink.path, settings.metrics_listen) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[source.netflow]\nlissten = "0.0.0.0:2055"', ["source.netflow.lissten", "source.netflow.listen"]),
        ('statedir = "/x"', ["statedir", "state_dir"]),
        ('budget.memory = "1MiB"', ["budget.memory", "1MiB", "64MiB"]),
        ('budget.memory = "lots"', ["budget.memory", "lots"]),
        ("budget.cpu_percent = 0", ["budget.cpu_percent", "0", "1"]),
        ('budget.cpu_percent = "100"', ["budget.cpu_percent", "whole number"]),
        ('sink.json.emit = "flaged"', ["sink.json.emit", "flaged", "flagged"]),
        ('metrics.listen = "127.0.0.1:99999"', ["metrics.listen", "99999", "65535"]),
        ("telemetry.interval_s = 0.01", ["telemetry.interval_s", "0.01", "0.2"]),
        ("name = 7", ["name", "7"]),
        ("name = ", ["TOML"]),
    ],
)
def test_a_wrong_file_names_key_value_limit_and_itself(file: Path, text: str, expected: list[str]) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert all(part in str(caught.value) for part in [*expected, str(file)])


def test_a_named_file_that_is_missing_is_an_error(file: Path) -> None:
    with pytest.raises(SettingsError, match="settings file"):
        read_settings(file)


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/agent.md").read_text()
    missing = [option.key for option in OPTIONS if f"`{option.key}`" not in page]
    assert missing == []
    assert all(option.text for option in OPTIONS)


_NUL = '"\\u0000"'
_ODD = ("-1", "1e400", "nan", "inf", str(2**63 - 1), '""', _NUL, '"☃ ☃"', '"../../etc"', "[]", "[7]", '["x", 1]', "{}")


def complaint(file: Path, text: str) -> str:
    file.write_text(text)
    try:
        read_settings(file)
    except SettingsError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: str(option.key))
def test_any_value_of_any_key_is_taken_or_refused_by_its_name(file: Path, option: Option) -> None:
    for text in (*_ODD, "1979-05-27", "true", '"' + "x" * 5000 + '"'):
        said = complaint(file, f"{option.key} = {text}\n")
        assert not said or option.key in said, text
        assert len(said) < 2000, text
        assert said or text != _NUL, "no call of the system takes it"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: str(option.key))
def test_a_key_with_a_letter_too_few_is_told_its_right_name(file: Path, option: Option) -> None:
    wrong = option.key[:-1]
    if wrong in {other.key for other in OPTIONS}:
        return
    file.write_text(f"{wrong} = 1\n")
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert f"{option.key}" in str(caught.value).replace(f'"{wrong}"', "")
