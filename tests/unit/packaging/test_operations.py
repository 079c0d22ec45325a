"""docs/operations.md quotes the programs' own words: every code and message in it is in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/operations.md").read_text()
PARTS = [ROOT / part / "vedette" for part in ("agent", "controller", "models", "proto")]
SOURCES = [path for part in PARTS for path in part.rglob("*.py")]


def _texts() -> list[str]:
    """Return every text in the code; what an f-string fills in is an ellipsis."""
    texts = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


TEXTS = _texts()
ALL_TEXT = "\n".join(TEXTS)


def _quoted() -> list[str]:
    """Return what the first column of the tables of failures quotes in backticks."""
    rows = re.findall(r"^\| (.*?) \| .* \| .* \|$", PAGE, re.MULTILINE)
    return sorted({quote for row in rows for quote in re.findall(r"`([^`]+)`", row)} - COMMANDS)


COMMANDS = {"enroll", "init", "vedette", "vedette agent ls", "vedette rollout show", "vedette-controller check"}
COMMANDS |= {
    "systemctl list-timers vedette-backup.timer",
    "--config",
    "vedette run show",
    "vedette telemetry",
    "/",
    "flows",
    "silent",
}


def _is_told(quote: str) -> bool:
    if re.fullmatch(r"[a-z]+(-[a-z]+)+", quote):
        return quote in TEXTS
    if metric := re.match(r"vedette_(?:agent|controller)_(\w+)_total", quote):
        return metric[0] in ALL_TEXT or metric[1] in TEXTS
    words = re.compile(".*".join(re.escape(part) for part in quote.split("…")))
    return any(words.search(text) for text in TEXTS)


def test_the_tables_of_failures_are_read():
    assert len(_quoted()) > 90


@pytest.mark.parametrize("quote", _quoted())
def test_every_word_quoted_as_the_programs_is_in_the_code(quote: str):
    assert _is_told(quote)


def _codes(page: str, heading: str) -> set[str]:
    """Return the codes that a part of another page lists."""
    part = (ROOT / "docs" / page).read_text().partition(f"{heading}\n")[2]
    rows = re.findall(r"^\| (.*?) \|", re.split(r"^#+ ", part, maxsplit=1, flags=re.MULTILINE)[0], re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`([a-z]+(?:-[a-z]+)*)`", row)}


@pytest.mark.parametrize(
    ("page", "heading"),
    [("agent.md", "## Conditions"), ("agent.md", "### Enrolling"), ("errors.md", "## The controller itself")],
)
def test_every_failure_that_lasts_or_stops_someone_is_here(page: str, heading: str):
    codes = _codes(page, heading)
    assert codes
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


@pytest.mark.parametrize("invented", ["made-up", "no room for elephants in …", "vedette_agent_elephants_total"])
def test_words_that_no_program_says_are_found(invented: str):
    assert not _is_told(invented)
