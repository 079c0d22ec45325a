"""Errors of the controller, typed by who must act.

An error carries three public lines: what happened, why (with value and limit), what to do. ``code`` is a stable word
for programs (``docs/errors.md``); ``adapters.grpc.errors`` holds the one table from these types to gRPC statuses.
"""

from __future__ import annotations


class ControllerError(Exception):
    """The base of everything the controller refuses or fails at.

    Args:
        code: A stable word for programs: ``token-expired``.
        what: What happened, one line.
        why: Why, with value and limit; may be empty.
        remedy: What the caller can do; may be empty.
    """

    def __init__(self, code: str, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.why = why
        self.remedy = remedy

    @property
    def public_text(self) -> str:
        """Return the three lines, one each; an empty line keeps its place."""
        return f"{self.what}\n{self.why}\n{self.remedy}"


class InvalidInput(ControllerError):
    """The caller must send something else."""


class NotFound(ControllerError):
    """What the caller names does not exist, or is not the caller's to see."""


class AlreadyThere(ControllerError):
    """The name is taken by something else."""


class Refused(ControllerError):
    """The request is understood, but the state of things or a rule forbids it."""


class Forbidden(ControllerError):
    """This identity may never do that."""


class Unauthenticated(ControllerError):
    """The caller did not prove an identity that is (still) good."""


class TooLarge(ControllerError):
    """What was sent is over a limit."""


class TooMany(ControllerError):
    """The caller asks too often; waiting helps."""


class Unavailable(ControllerError):
    """Nothing is wrong with the request; the caller should come back in a moment."""


class DiskFull(ControllerError):
    """The operator must free space; the caller may repeat the same request later."""


class StoreFailed(ControllerError):
    """The database or a file failed in a way that only the operator can mend."""
