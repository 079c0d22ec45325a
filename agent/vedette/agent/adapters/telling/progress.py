"""How far a command has come, on standard error: one line that moves on a terminal, nothing in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_REDRAW_S = 0.1
_CELLS = 20


class Meter:
    """Shows how much of something is done."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._drawn_s = float("-inf")
        self._is_shown = False

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are reached."""
        now_s = time.monotonic()
        if self._stream.isatty() and (done >= total or now_s - self._drawn_s >= _REDRAW_S):
            self._drawn_s, self._is_shown = now_s, True
            share = done / total if total else 1.0
            bar = "█" * round(_CELLS * share) + "░" * (_CELLS - round(_CELLS * share))
            self._stream.write(f"\r\x1b[K{bar} {self._label}  {share:.0%}  {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")
            self._stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._is_shown:
            self._stream.write("\n")
            self._is_shown = False
