"""Values of work done in child processes: its limits, its log, and its death."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from vedette.controller.domain.errors import ControllerError


class JobCrashed(ControllerError):
    """A child ended without a result: killed, out of memory or past its deadline. Its log says more."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What one child may use."""

    memory_bytes: int = 3 << 30  # of address space: importing the training libraries alone takes 1.8 GiB of it
    memory_setting: str = "training.memory"  # named in the message when it is not enough
    file_bytes: int = 8 << 30  # of any file it writes
    deadline_s: float = 4 * 3600
    niceness: int = 10
    threads: int = 1


@dataclass(slots=True)
class Log:
    """The end of a child's log: the newest lines, within bytes."""

    most_bytes: int = 256 * 1024
    lines: deque[str] = field(default_factory=deque)
    held: int = 0

    def add(self, line: bytes) -> None:
        """Append a line; the oldest go when there is no room."""
        text = line.decode("utf-8", "replace").rstrip()
        self.lines.append(text)
        self.held += len(text) + 1
        while self.held > self.most_bytes and len(self.lines) > 1:
            self.held -= len(self.lines.popleft()) + 1
