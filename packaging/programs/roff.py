"""Writing manual pages: man(7) macros that groff and mandoc both show well at 80 columns.

Text may hold ``code`` in backticks, shown bold, and *words* in asterisks, shown underlined or italic. Everything else
stands for itself: whatever roff would take as a command is escaped here and nowhere else.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

_SPECIAL = {
    "\\": "\\e",
    "-": "\\-",
    "\N{NO-BREAK SPACE}": "\\~",
    "→": "\\(->",
    "–": "\\(en",
    "×": "\\(mu",
    "≤": "\\(<=",
    "≥": "\\(>=",
    "~": "\\(ti",
    "^": "\\(ha",
    "`": "\\(ga",
}
_MARKED = re.compile(r"`([^`]+)`|\*([^*\s][^*]*)\*")


class Page:
    """One manual page, written from top to bottom.

    Args:
        name: As in ``man NAME``.
        section: Its section of the manual.
        date: ISO date shown in the footer.
        source: Program and version, shown in the footer.
        manual: Title of the manual, shown in the header.
    """

    def __init__(self, name: str, section: int, *, date: str, source: str, manual: str) -> None:
        title = " ".join(f'"{item}"' for item in (name.upper(), section, date, source, manual))
        # No hyphenation and a ragged edge: a flag or a path that is cut at a line's end cannot be copied.
        # groff's .EE turns hyphenation on again, as the register HY says.
        self._lines = [f".TH {title}", ".nh", ".ad l", ".nr HY 0"]

    def section(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f".SH {_quoted(title.upper())}")

    def part(self, title: str) -> None:
        """Begin a part of a section."""
        self._lines.append(f".SS {_quoted(title)}")

    def paragraph(self, text: str) -> None:
        """Write a paragraph."""
        if not self._lines[-1].startswith((".SH", ".SS")):
            self._lines.append(".PP")
        self._lines += _wrapped(_marked(text))

    def line(self, text: str) -> None:
        """Write a line that ends where it ends, as in a synopsis; its further lines hang."""
        self._lines += [".HP 4", *_wrapped(_marked(text))]

    def entry(self, term: str, text: str) -> None:
        """Write a term and, indented below it, what it means."""
        self._lines += [".TP", _guarded(_marked(term)), *_wrapped(_marked(text))]

    def item(self, text: str) -> None:
        """Write an item of a list."""
        self._lines += [".IP \\(bu 3", *_wrapped(_marked(text))]

    def code(self, lines: Iterable[str]) -> None:
        """Write lines as they are, indented."""
        self._lines += [".PP", ".RS 4", ".EX", *(_plain(line) or "\\&" for line in lines), ".EE", ".RE"]

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def _marked(text: str) -> str:
    parts, end = [], 0
    for match in _MARKED.finditer(text):
        bold, italic = match.groups()
        shown = f"\\fB{_escaped(bold)}\\fR" if bold else f"\\fI{_escaped(italic)}\\fR"
        parts += [_escaped(text[end : match.start()]), shown]
        end = match.end()
    return "".join([*parts, _escaped(text[end:])])


def _wrapped(text: str) -> list[str]:
    """Return a paragraph as lines of source; roff fills them anew, so where they end means nothing."""
    return [_guarded(line) for line in textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)]


def _plain(text: str) -> str:
    return _guarded(_escaped(text))


def _escaped(text: str) -> str:
    text = text.replace(".…", "...").replace("…", "...")  # a terminal without Unicode shows nothing for it
    return "".join(_SPECIAL.get(c, c if ord(c) < 128 else f"\\[u{ord(c):04X}]") for c in text)


def _guarded(text: str) -> str:
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', "\\(dq") + '"'
