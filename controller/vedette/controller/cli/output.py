"""What a command prints: JSON or tables on standard output, notes and errors on standard error.

Only the result goes to standard output, so that ``vedette … --output json | jq`` always works. Tables fit the terminal
(100 columns when there is none), cut the least useful column first and say what was cut. Colour only repeats what the
words say.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any, TextIO

from vedette.controller.cli.problems import CliError
from vedette.controller.cli.words import clean, utc

WIDTH_WITHOUT_TERMINAL = 100
_LEAST_FREE = 24

_STYLES = {
    "healthy": "32", "succeeded": "32", "moved": "32", "passed": "32", "quiet": "32", "running": "36",
    "behind": "33", "paused": "33", "soaking": "36", "moving": "36", "assigned": "36", "unreachable": "33",
    "silent": "33", "degraded": "31", "failed": "31", "refused": "31", "stopped": "31", "shifted": "31",
    "revoked": "2", "aborted": "33", "not enough rows": "2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Args:
        title: Its heading.
        rank: What goes first when the table is too wide: the highest. 0 is never cut.
        right: Numbers stand at the right.
        free: Free text of any length: shortened to what room is left, but to no less than 24 cells.
    """

    title: str
    rank: int = 0
    right: bool = False
    free: bool = False


class Output:
    """Writes results and notes.

    Args:
        form: ``table`` or ``json``.
        color: ``auto``, ``always`` or ``never``.
    """

    def __init__(self, form: str = "table", color: str = "auto") -> None:
        self.is_json = form == "json"
        self._color = color

    def json(self, value: Any) -> None:
        """Print a result as one JSON document."""
        print(json.dumps(plain(value), indent=2), flush=True)

    def line(self, text: str = "") -> None:
        """Print a line of a result for people."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Print something beside the result."""
        print(text, file=sys.stderr, flush=True)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print a table that fits, and say which columns did not."""
        cells = [[clean(cell) for cell in row] for row in rows]
        kept = fitting(columns, cells, self._width())
        cut = [column.title for place, column in enumerate(columns) if place not in kept]
        widths = _widths(columns, cells, kept, self._width())
        self.line(self._row([columns[place].title for place in kept], columns, kept, widths, is_head=True))
        for row in cells:
            self.line(self._row([row[place] for place in kept], columns, kept, widths))
        if cut:
            self.note(f"Not shown, too wide: {', '.join(cut)}. A wider terminal or --output json has all.")

    def _row(
        self,
        cells: Sequence[str],
        columns: Sequence[Column],
        kept: Sequence[int],
        widths: Mapping[int, int],
        *,
        is_head: bool = False,
    ) -> str:
        parts = []
        for whole, place in zip(cells, kept, strict=True):
            cell = _shortened(whole, widths[place])
            pad = " " * (widths[place] - _width_of(cell))
            shown = self.styled(cell, "1" if is_head else _STYLES.get(cell, ""))
            parts.append(pad + shown if columns[place].right else shown + pad)
        return "   ".join(parts).rstrip()

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print names and values, one pair a line; pairs with nothing to say are left out."""
        said = [(name, clean(value)) for name, value in pairs if value]
        wide = max((len(name) for name, _ in said), default=0)
        for name, value in said:
            self.line(f"{name:<{wide}}   {self.styled(value, _STYLES.get(value, ''))}")

    def styled(self, text: str, style: str) -> str:
        """Return a text in a style (an ANSI number) if standard output takes colour."""
        return f"\x1b[{style}m{text}\x1b[0m" if style and self.colours(sys.stdout) else text

    def colours(self, stream: TextIO) -> bool:
        """Tell whether colour goes to a stream: asked for, or a terminal and ``NO_COLOR`` is not set."""
        if self._color != "auto":
            return self._color == "always"
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _width(self) -> int:
        if sys.stdout.isatty() or "COLUMNS" in os.environ:
            return shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns
        return WIDTH_WITHOUT_TERMINAL

    def error(self, error: CliError) -> None:
        """Print what happened, why, and what to do."""
        head = "\x1b[31mError\x1b[0m" if self.colours(sys.stderr) else "Error"
        self.note(f"{head}: {clean(error.what)}")
        for text in (error.why, error.remedy):
            if text:
                self.note(f"  {clean(text)}")


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the places of the columns that fit in ``width``, cutting the highest rank first, then from the right."""
    kept = list(range(len(columns)))
    while True:
        total = sum(_column_width(columns, rows, place) for place in kept) + 3 * (len(kept) - 1)
        worst = max(kept, key=lambda place: (columns[place].rank, place))
        if total <= width or columns[worst].rank == 0:
            return kept
        kept.remove(worst)


def _column_width(columns: Sequence[Column], rows: Sequence[Sequence[str]], place: int) -> int:
    """Return what a column needs at least."""
    whole = _whole_width(columns, rows, place)
    return min(whole, _LEAST_FREE) if columns[place].free else whole


def _whole_width(columns: Sequence[Column], rows: Sequence[Sequence[str]], place: int) -> int:
    return max([_width_of(columns[place].title), *(_width_of(row[place]) for row in rows)])


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int], width: int
) -> dict[int, int]:
    """Return the width of each kept column; free text gets the room that is left."""
    widths = {place: _column_width(columns, rows, place) for place in kept}
    room = width - sum(widths.values()) - 3 * (len(kept) - 1)
    for place in kept:
        if columns[place].free and room > 0:
            more = min(room, _whole_width(columns, rows, place) - widths[place])
            widths[place] += more
            room -= more
    return widths


def _shortened(text: str, width: int) -> str:
    if _width_of(text) <= width:
        return text
    while text and _width_of(text) > width - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def _width_of(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def plain(value: Any) -> Any:
    """Return a view as JSON takes it: fields by name, times in UTC, words for states."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, datetime):
        return utc(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
