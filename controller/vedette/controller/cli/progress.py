"""Long waits that move: one line on a terminal, one plain line at each tenth elsewhere. Always on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from vedette.controller.cli.words import clean, size, span

_REDRAW_S = 0.1
_BAR = 20
_COLUMNS, _ROWS = 80, 24


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
        # A line that wraps could not be erased: each redraw would leave one behind.
        self._write(f"\r\x1b[K{fit(f'{bar(self._share())} {self.text()}', terminal_size(self._stream).columns)}")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Return columns and rows of the terminal behind a stream; standard output's are not asked, it may be a file.

    ``COLUMNS`` and ``LINES`` count first, as everywhere.
    """
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        found = os.terminal_size((0, 0))
    columns, rows = (_positive(os.environ.get(name)) for name in ("COLUMNS", "LINES"))
    return os.terminal_size((columns or found.columns or _COLUMNS, rows or found.lines or _ROWS))


def _positive(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def fit(line: str, columns: int) -> str:
    """Return a line cut to what a terminal takes without wrapping."""
    return line if len(line) < columns else line[: max(columns - 2, 0)] + "…"


def bar(part: float, width: int = _BAR) -> str:
    """Return a bar of ``width`` cells, filled to ``part`` (0 to 1)."""
    full = round(max(0.0, min(1.0, part)) * width)
    return "█" * full + "░" * (width - full)
