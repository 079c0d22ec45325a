from pathlib import Path

import pytest

from vedette.controller.__main__ import exit_code_of, main
from vedette.controller.domain import errors
from vedette.controller.settings import OPTIONS
from vedette.models.toml_settings import SettingsError


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["init", "--help"],
        ["serve", "--help"],
        ["check", "--help"],
        ["backup", "--help"],
        ["restore", "--help"],
    ],
)
def test_help_teaches_with_two_examples(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert sum(line.startswith("  vedette-controller ") for line in shown.splitlines()) == 2


def test_every_key_is_in_the_help_and_in_the_docs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    docs = (Path(__file__).parents[3] / "docs" / "controller.md").read_text()
    for option in OPTIONS:
        assert f"  {option.key} = " in shown
        assert f"`{option.key}`" in docs


def test_alone_it_shows_what_it_can_do(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "make a new controller" in capsys.readouterr().err


def test_a_mistyped_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["sevre"])
    assert "did you mean serve?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sevre"], ["init", "--unknown"]])
def test_wrong_usage_ends_with_2(words: list[str]):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidInput, 2),
        (errors.NotFound, 3),
        (errors.Refused, 4),
        (errors.AlreadyThere, 4),
        (errors.Forbidden, 4),
        (errors.Unauthenticated, 4),
        (errors.StoreFailed, 1),
        (errors.DiskFull, 1),
    ],
)
def test_exit_codes_say_who_must_act(kind: type[errors.ControllerError], code: int):
    assert exit_code_of(kind("c", "w")) == code
    assert exit_code_of(SettingsError("w")) == 2


def test_errors_are_three_lines_without_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.toml").write_text("data_dri = 'x'")
    assert main(["serve", "--config", str(tmp_path / "c.toml")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'c.toml'}: unknown key data_dri",
        "did you mean data_dir?",
    ]
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "d.toml").write_text(f'data_dir = "{tmp_path / "none"}"')
    assert main(["serve", "--config", str(tmp_path / "d.toml")]) == 4
    assert "holds no controller" in capsys.readouterr().err


def test_init_refuses_addresses_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["init", "--data-dir", str(tmp_path / "d"), "--listen", "a:b:c"]) == 2
    assert "--listen" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_under_the_journal_a_failure_is_one_entry_with_its_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vedette.controller.__main__.is_journal", lambda: True)
    made = ["--data-dir", str(tmp_path / "ctl"), "--listen", "127.0.0.1:0"]
    assert main(["init", *made]) == 0
    capsys.readouterr()
    assert main(["init", *made]) == 4
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert vars(record)["vedette_fields"] == {"VEDETTE_CODE": "already-initialised"}
    assert capsys.readouterr().err == ""
