"""A false time of day for programs that a test starts, by libfaketime; monotonic clocks stay as they are."""

from __future__ import annotations

import ctypes.util
from datetime import datetime, timedelta
from pathlib import Path

import pytest

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
CAN_LIE = bool(_LIBRARIES) and ctypes.util.find_library("c") is not None
needs_libfaketime = pytest.mark.skipif(not CAN_LIE, reason="libfaketime is not installed")


class FalseTime:
    """What programs that are started from now on take for the time of day, and those that run already, too."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file = folder / "clock"
        self.step(timedelta(0))
        monkeypatch.setenv("LD_PRELOAD", str(_LIBRARIES[0]))
        monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(self._file))
        monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
        monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        monkeypatch.setenv("FAKETIME_DONT_RESET", "1")

    def begin_at(self, at: datetime) -> None:
        """Have it be a time of day now, and go on from there."""
        self.step(at - datetime.now(at.tzinfo))

    def step(self, by: timedelta) -> None:
        """Have it be so far from the right time; clocks that run step at once."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{by.total_seconds():+.0f}\n")
        fresh.replace(self._file)  # a reader never finds half of it
