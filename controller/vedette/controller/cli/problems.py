"""What goes wrong at the command line: three lines (what, why, what to do) and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; scripts rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


class CliError(Exception):
    """The base of what ends a command.

    Args:
        what: What happened.
        why: Why, with value and limit; may be empty.
        remedy: What to do; may be empty.
    """

    exit_code = Exit.FAILED

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy


class Failed(CliError):
    """It was tried and failed."""


class Usage(CliError):
    """The command was written wrongly."""

    exit_code = Exit.USAGE


class Missing(CliError):
    """What the command names does not exist."""

    exit_code = Exit.NOT_FOUND


class Refused(CliError):
    """The controller, or a person who was asked, said no."""

    exit_code = Exit.REFUSED


class Unreachable(CliError):
    """The controller did not answer, or is not who the context says."""

    exit_code = Exit.UNREACHABLE


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like ``word``, None when none is."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
