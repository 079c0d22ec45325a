"""A person at a terminal: a real interactive shell on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])|[\x00\x07\r]")


def _plain(text: str) -> str:
    """Return what a reader sees: no colours, and a character that was stepped back over is gone."""
    return re.sub(r".\x08", "", _ESCAPES.sub("", text))


class Terminal:
    """A program on a terminal of 200 columns.

    Args:
        command: The program.
        environment: All of its environment.
        folder: Where it runs.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: os.PathLike[str]) -> None:
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.chdir(folder)
            size = {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
            os.execvpe(command[0], list(command), {**environment, **size})  # noqa: S606 - the shell is the program
        self._seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._terminal)

    def type(self, text: str) -> None:
        """Type; what was shown before is forgotten."""
        self._seen = ""
        os.write(self._terminal, text.encode())

    def until(self, pattern: str, timeout_s: float = 20.0) -> str:
        """Wait until what is shown since the last typing matches; return it without colours and moves.

        Raises:
            AssertionError: It did not in that time.
        """
        end = time.monotonic() + timeout_s
        while not re.search(pattern, shown := _plain(self._seen)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._terminal], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} in {shown!r}")
            self._seen += os.read(self._terminal, 65536).decode(errors="replace")
        return shown
