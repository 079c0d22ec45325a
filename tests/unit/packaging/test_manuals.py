"""Manual pages say all that the programs say of themselves, and are clean for those who read manual pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from programs import manuals, surface
from programs.prose import write_prose
from programs.roff import Page
from programs.surface import Verb
from vedette.agent.cli import run_command
from vedette.agent.settings import OPTIONS as AGENT_OPTIONS
from vedette.controller.__main__ import main as controller_main
from vedette.controller.cli import root as admin_root
from vedette.controller.settings import OPTIONS as CONTROLLER_OPTIONS

ROOT = Path(__file__).parents[3]
PAGES = ["vedette-agent.8", "vedette-agent.toml.5", "vedette-controller.8", "vedette-controller.toml.5", "vedette.1"]
PROGRAMS = {"vedette.1": surface.admin, "vedette-agent.8": surface.agent, "vedette-controller.8": surface.controller}
VERBS = [(page, verb.path) for page, program in PROGRAMS.items() for verb in program().leaves()]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(tmp_path_factory.mktemp("man"))


def _written(folder: Path, **more: str) -> Path:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000", **more}
    subprocess.run([ROOT / "packaging/manuals", folder], check=True, env=environment)
    return folder


def _help(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a person sees who asks the program itself."""
    program, *words = path.split()
    if program == "vedette":
        admin_root.main([*words, "--help"], prog_name="vedette", standalone_mode=False)
    elif program == "vedette-agent":
        run_command([*words, "--help"])
    else:
        with pytest.raises(SystemExit):
            controller_main([*words, "--help"])
    return capsys.readouterr().out


def _shown(page: Path) -> str:
    """Return a page as a terminal of 80 columns shows it."""
    shown = subprocess.run(["groff", "-man", "-Tutf8", "-P-c", "-rLL=80n", page], check=True, capture_output=True)
    return re.sub(r".\x08", "", shown.stdout.decode())  # what nroff overstrikes is bold or underlined


def test_there_is_a_page_for_each_program_and_settings_file(pages: Path):
    assert sorted(item.name for item in pages.iterdir()) == PAGES


@pytest.mark.parametrize(("page", "path"), VERBS)
def test_every_flag_that_help_shows_is_in_the_manual(
    pages: Path, page: str, path: str, capsys: pytest.CaptureFixture[str]
):
    flags = set(re.findall(r"--[a-z][a-z-]+", _help(path, capsys).split("keys of")[0])) - {"--help"}
    source = (pages / page).read_text().replace("\\-", "-")
    part = re.split(r'^\.S[SH] "', source.partition(f'.SS "{path}"\n')[2], maxsplit=1, flags=re.MULTILINE)[0]
    assert part, f"{page} has no part about {path}"
    head = source.partition('.SH "COMMANDS"')[0]
    explained = re.findall(r"^\.TP\n(.*)", head + part, re.MULTILINE)
    assert {flag for flag in flags if not any(f"{flag}\\fR" in term for term in explained)} == set()


@pytest.mark.parametrize(
    ("page", "options"), [("vedette-agent.toml.5", AGENT_OPTIONS), ("vedette-controller.toml.5", CONTROLLER_OPTIONS)]
)
def test_every_setting_stands_in_its_table_with_its_default(pages: Path, page: str, options):
    source = (pages / page).read_text().replace("\\-", "-")
    tables = dict(re.findall(r'^\.SS "(.*?)"\n(.*?)(?=^\.S[SH]|\Z)', source, re.MULTILINE | re.DOTALL))
    for option in options:
        table, _, key = option.key.rpartition(".")
        default = manuals.shown_default(option).replace("~", "\\(ti")
        assert f"{key} = {default}" in tables[f"[{table}]" if table else "At the top of the file"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_pages_are_clean_for_groff_and_fit_a_terminal(pages: Path, page: str):
    for terminal in ("utf8", "ascii"):
        command = ["groff", "-man", "-ww", "-z", f"-T{terminal}", str(pages / page)]
        assert subprocess.run(command, check=True, capture_output=True).stderr == b""
    assert max(map(len, _shown(pages / page).splitlines())) <= 80


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")
def test_pages_are_clean_for_mandoc(pages: Path, page: str):
    found = subprocess.run(["mandoc", "-Tlint", pages / page], check=False, capture_output=True, text=True)
    assert found.stdout == ""


def test_the_same_commit_gives_the_same_pages_anywhere(pages: Path, tmp_path: Path):
    again = _written(tmp_path, TZ="Asia/Kathmandu", LC_ALL="C", COLUMNS="200", HOME=str(tmp_path))
    assert {item.name: item.read_bytes() for item in again.iterdir()} == {
        item.name: item.read_bytes() for item in pages.iterdir()
    }
    assert "2026-09-21" in (pages / "vedette.1").read_text()


def _page(text: str) -> str:
    page = Page("x", 1, date="2026-01-01", source="x", manual="x")
    write_prose(page, text, lambda _: page.paragraph("generated"))
    return str(page).partition(".nr HY 0\n")[2]


def test_text_that_roff_would_take_as_a_command_is_shown_as_it_is():
    shown = _page(".so /etc/passwd\n\n'ab and `a\\b`\n\n    .TH in code\n")
    assert "\\&.so /etc/passwd" in shown
    assert "\\&'ab and \\fBa\\eb\\fR" in shown
    assert "\\&.TH in code" in shown


def test_prose_has_parts_lists_tables_and_generated_parts():
    text = "## Files\n- one `a`\n- two\n  lines\n\n| path | what |\n| --- | --- |\n| `p` | a\\|b |\n\n@here\n"
    assert _page(text).splitlines() == [
        '.SH "FILES"',
        ".IP \\(bu 3",
        "one \\fBa\\fR",
        ".IP \\(bu 3",
        "two lines",
        ".TP",
        "\\fBp\\fR",
        "a|b",
        ".PP",
        "generated",
    ]


def test_a_table_that_a_page_cannot_show_is_an_error():
    with pytest.raises(ValueError, match="two columns, this row has 3"):
        _page("| a | b | c |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n")


def test_a_verb_is_found_below_its_nouns():
    deep = Verb("p a b", "", (), (), (), (), ())
    middle = Verb("p a", "", (), (), (), (), (deep,))
    assert list(Verb("p", "", (), (), (), (), (middle,)).leaves()) == [deep]
