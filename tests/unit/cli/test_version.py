"""All three programs say which version they are, in the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

import vedette.agent.cli
import vedette.controller.__main__
import vedette.controller.cli
from vedette.controller.cli.session import Session
from vedette.models.version import __version__


def _vedette(arguments: Sequence[str]) -> int:
    return vedette.controller.cli.run(arguments, Session())


def _controller(arguments: Sequence[str]) -> int:
    try:
        return vedette.controller.__main__.main(arguments)
    except SystemExit as exc:
        return int(str(exc.code))


@pytest.mark.parametrize(
    ("program", "main"),
    [("vedette", _vedette), ("vedette-agent", vedette.agent.cli.run_command), ("vedette-controller", _controller)],
)
def test_a_program_says_its_name_and_version(
    program: str, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{program} {__version__}\n"
