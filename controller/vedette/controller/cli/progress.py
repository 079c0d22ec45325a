"""Long waits that move: one line on a terminal, one plain line at each tenth elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from vedette.controller.cli.words import clean, size, span

_REDRAW_S = 0.1
_BAR = 20


class Meter:
    """Shows how far something has come.

    Args:
        label: What it is.
        total: All of it, bytes; or 1.0 for a share.
        stream: Where it shows.
        monotonic: Seconds that never go back.
        is_bytes: Amounts and rates are bytes; otherwise only the share is told.
    """

    def __init__(
        self,
        label: str,
        total: float,
        *,
        stream: TextIO | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        is_bytes: bool = True,
    ) -> None:
        self._label = clean(label)
        self._total = total
        self._stream = stream or sys.stderr
        self._monotonic = monotonic
        self._is_bytes = is_bytes
        self._began = monotonic()
        self._drawn = float("-inf")
        self._tenth = -1
        self._done = 0.0
        self._step = ""

    def update(self, done: float, step: str = "") -> None:
        """Show that ``done`` of the total is reached; ``step`` says what goes on now."""
        is_new = clean(step) != self._step
        self._done, self._step = done, clean(step)
        if self._stream.isatty():
            if is_new or self._monotonic() - self._drawn >= _REDRAW_S:
                self._draw()
        elif self._tenths() > self._tenth:
            self._tenth = self._tenths()
            self._write(self.text() + "\n")

    def close(self) -> None:
        """End the line on a terminal; nothing elsewhere, where the last tenth has said it."""
        if self._stream.isatty():
            self._draw()
            self._write("\n")

    def text(self) -> str:
        """Return the line: label, share, amounts, rate, time left, step."""
        parts = [f"{self._label}  {100 * self._share():.0f} %"]
        passed = self._monotonic() - self._began
        if self._is_bytes:
            parts.append(f"{size(self._done)} of {size(self._total)}")
            if passed > 0:
                parts.append(f"{size(self._done / passed)}/s")
        if 0 < self._share() < 1 and passed >= 1:
            parts.append(f"about {span(passed * (1 - self._share()) / self._share())} left")
        return "  ".join([*parts, self._step]).rstrip()

    def _share(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 1.0

    def _tenths(self) -> int:
        return int(10 * self._share() + 1e-9)

    def _draw(self) -> None:
        self._drawn = self._monotonic()
        self._write(f"\r\x1b[K{bar(self._share())} {self.text()}")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def bar(part: float, width: int = _BAR) -> str:
    """Return a bar of ``width`` cells, filled to ``part`` (0 to 1)."""
    full = round(max(0.0, min(1.0, part)) * width)
    return "█" * full + "░" * (width - full)
