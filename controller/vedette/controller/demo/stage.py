"""How the demo is told: headings, commands, notes and tables that fit the terminal, and waits that move."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from vedette.controller.cli.progress import Meter

_INDENT = 3
_LEAST_COLUMNS, _MOST_COLUMNS = 40, 100


class Stage:
    """Tells a demo on a terminal, or into a file.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._act = 0

    @property
    def columns(self) -> int:
        """Return the cells of a line: the terminal's, within reason."""
        return min(max(self._console.width, _LEAST_COLUMNS), _MOST_COLUMNS)

    @property
    def passed_s(self) -> float:
        """Return how long the demo has run."""
        return time.monotonic() - self._begun

    def heading(self, text: str) -> None:
        """Begin the next act."""
        self._act += 1
        lines = textwrap.wrap(f"{text}  ({self.passed_s:.0f}\N{NO-BREAK SPACE}s)", self.columns - _INDENT)
        self._console.print()
        for place, line in enumerate(lines):
            mark = f"[bold cyan]{self._act:<{_INDENT}}[/]" if place == 0 else " " * _INDENT
            self._print(f"{mark}[bold]{escape(line)}[/]")

    def command(self, text: str) -> None:
        """Show a command before it runs; a long one goes on in the next line, as a shell takes it."""
        lines = textwrap.wrap(
            text, self.columns - _INDENT - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        for place, line in enumerate(lines):
            mark = "[green]$[/] " if place == 0 else "  "
            more = " \\" if place < len(lines) - 1 else ""
            self._print(f"{'':{_INDENT}}{mark}{escape(line)}{more}")

    def note(self, text: str = "") -> None:
        """Say something in as many lines as it needs."""
        for line in textwrap.wrap(text, self.columns - _INDENT, break_on_hyphens=False) or [""]:
            self._print(f"{'':{_INDENT}}{escape(line)}".rstrip())

    def row(self, name: str, text: str, *, wide: int) -> None:
        """Say one thing of a list: its name, and what it is, wrapped beside it."""
        lines = textwrap.wrap(text, max(self.columns - _INDENT - wide - 2, 20), break_on_hyphens=False)
        for place, line in enumerate(lines):
            self._print(f"{'':{_INDENT}}{escape(name) if place == 0 else '':<{wide}}  {escape(line)}")

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
        """Show a table; the first ``texts`` columns stand at the left, numbers at the right."""
        widths = [max(len(line[place]) for line in [titles, *rows]) for place in range(len(titles))]
        for number, cells in enumerate([titles, *rows]):
            parts = [
                f"{c:<{w}}" if place < texts else f"{c:>{w}}"
                for place, (c, w) in enumerate(zip(cells, widths, strict=True))
            ]
            line = escape("  ".join(parts).rstrip())
            self._print(f"{'':{_INDENT}}[bold]{line}[/]" if number == 0 else f"{'':{_INDENT}}{line}")

    def typed(self, text: str) -> None:
        """Show something to copy: never wrapped by us, so that it can be."""
        self._print(f"{'':{_INDENT}}[bold]{escape(text)}[/]")

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something goes on meanwhile; nothing of it stays."""
        with self._console.status(f"[dim]{escape(text)}[/]"):
            yield

    def meter(self, label: str) -> Meter:
        """Return what shows how far a long wait is."""
        return Meter(label, 1.0, stream=sys.stderr, is_bytes=False)

    def _print(self, markup: str) -> None:
        self._console.print(Text.from_markup(markup), soft_wrap=True, highlight=False)
