"""Programs run under the shim, and the log of what they did to one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.powercut.records import Record, mark, read_log
from tests.support.preload import compiled

_SOURCE = Path(__file__).with_name("shim.c")


class Recording:
    """A log that programs add to while their environment holds :attr:`environment`.

    Args:
        root: An empty folder; what happens below it is recorded.
        log: The log; must lie elsewhere. The compiled shim lies beside it.
    """

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root.resolve()
        self.log = log
        if any(self.root.iterdir()) or log.resolve().is_relative_to(self.root):
            raise ValueError(f"{root} is not empty, or holds its own log")
        log.touch()
        self.environment = {
            "LD_PRELOAD": str(compiled(_SOURCE, log.resolve().with_suffix(".so"), "records writes")),
            "POWERCUT_ROOT": str(self.root),
            "POWERCUT_LOG": str(log.resolve()),
        }

    def mark(self, **fact: Any) -> None:
        """Note that something was answered or seen: every later crash must leave it true."""
        mark(self.log, fact)

    def records(self) -> list[Record]:
        """Return what happened until now."""
        return list(read_log(self.log))
