from __future__ import annotations

from pathlib import Path

import pytest

from vedette.agent.domain.errors import InstallCode
from vedette.agent.domain.slots import MAX_SAVES
from vedette.wire.values import SlotState

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def row(word: str) -> list[str]:
    """Return the cells of the table row that begins with a code."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{word}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("code", InstallCode)
def test_every_code_is_explained_and_says_whether_it_is_tried_again(code: InstallCode) -> None:
    is_final = code.blames_build or code is InstallCode.QUARANTINED
    assert row(code)[2].startswith("no" if is_final else "yes")


@pytest.mark.parametrize("state", [state for state in SlotState if state is not SlotState.EMPTY])
def test_every_state_of_a_slot_is_explained(state: SlotState) -> None:
    assert all(row(state))


def test_the_limit_of_stores_is_the_documented_one() -> None:
    assert MAX_SAVES == 8
    assert "stored eight times" in PAGE
