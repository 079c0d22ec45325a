"""Errors told to a person in three lines: what happened, why (value and limit), what to do about it.

``code`` is the name under which docs/errors.md lists the error and under which a condition is held while it lasts;
``exit_code`` is what a command ends with.
"""

from __future__ import annotations

from vedette.agent.domain.errors import AgentError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_REFUSED = 4
EXIT_UNREACHABLE = 5


class AdvisedError(AgentError):
    """An error with its reason and its remedy."""

    code = "failed"
    exit_code = EXIT_FAILED

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why
        self.remedy = remedy

    @property
    def lines(self) -> str:
        """The three lines."""
        return f"{self.what}\n{self.why}\n{self.remedy}"
