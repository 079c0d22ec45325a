"""Running programs, and waiting: the two things all of the lab does.

Every command has an end (a time limit after which its whole process group is killed), and every wait goes through
:func:`wait_until`, so a scenario that hangs says what it waited for and what it saw last.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

_POLL_S = 0.05
_SHOWN_CHARACTERS = 6000


class LabError(Exception):
    """The lab, not the product, is at fault: a tool is missing, a host did not boot."""


class CommandFailed(AssertionError):
    """A command did not do what the scenario expected of it."""


class NeverHappened(AssertionError):
    """What a scenario waited for did not come."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind."""

    command: str
    code: int
    out: str
    err: str
    took_s: float

    @property
    def ok(self) -> bool:
        """Whether it ended with 0."""
        return self.code == 0

    @property
    def text(self) -> str:
        """Both outputs, for a scenario that does not care which."""
        return self.out + self.err

    @property
    def data(self) -> Any:
        """Return standard output as JSON."""
        try:
            return json.loads(self.out)
        except ValueError as exc:
            raise CommandFailed(f"no JSON on standard output of\n{self}") from exc

    def __str__(self) -> str:
        shown = "\n".join(part[-_SHOWN_CHARACTERS:].rstrip() for part in (self.out, self.err) if part.strip())
        return f"$ {self.command}\n{shown}\n[exit {self.code} after {self.took_s:.1f} s]"


def execute(
    words: Sequence[str],
    *,
    check: bool = True,
    timeout: float = 60,
    stdin: str | bytes = b"",
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    shown: str = "",
) -> Result:
    """Run a program on this machine to its end.

    Args:
        words: The program and its arguments.
        check: Whether an exit code other than 0 is an error.
        timeout: Seconds after which it and all of its process group are killed; that is always an error.
        stdin: What it reads.
        environment: Its whole environment; None is ours.
        cwd: Where it runs.
        shown: How messages call it; empty is the words.

    Raises:
        CommandFailed: It ended otherwise than expected, or not in time.
    """
    __tracebackhide__ = True
    shown, begun = shown or shlex.join(words), time.monotonic()
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=cwd,
        start_new_session=True,
    ) as process:  # fmt: skip
        late = False
        try:
            out, err = process.communicate(stdin.encode() if isinstance(stdin, str) else stdin, timeout)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # Ctrl-C is not passed on to a session of its own
            raise
    result = Result(shown, process.returncode, _text(out), _text(err), time.monotonic() - begun)
    if late:
        raise CommandFailed(f"still running after {timeout:g} s, killed:\n{result}")
    if check and not result.ok:
        raise CommandFailed(str(result))
    return result


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")


def wait_until(what: str, holds: Callable[[], Value], timeout: float = 30) -> Value:
    """Ask again and again until the answer is true, and return it.

    A failed command counts as "not yet": while a host boots or a service restarts, most of them fail.

    Raises:
        NeverHappened: It was not true in time; the message has the last answer.
    """
    __tracebackhide__ = True
    end, last = time.monotonic() + timeout, "nothing"
    while True:
        asked = time.monotonic()
        try:
            value = holds()
            last = repr(value)
        except CommandFailed as exc:
            value, last = None, str(exc)  # type: ignore[assignment]
        if value:
            return value  # type: ignore[return-value]
        if time.monotonic() > end:
            raise NeverHappened(f"waited {timeout:g} s until {what}; last: {last[-_SHOWN_CHARACTERS:]}")
        # As long as the question took: three workers that only asked would leave the hosts no processor time.
        time.sleep(max(_POLL_S, time.monotonic() - asked))
