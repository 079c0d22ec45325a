"""The hand-written part of a manual page: a small part of Markdown, and lines that stand for generated parts.

Understood: ``## Section``, ``### Part``, paragraphs, ``- item``, indented or fenced code, tables of two columns (term
and meaning), ``code`` and *emphasis*, links (only their text is shown). A line ``@name`` is handed to a callback.
Anything else that Markdown has would show as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from programs.roff import Page

_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def write_prose(page: Page, text: str, generated: Callable[[str], None]) -> None:
    """Write Markdown to a page; ``generated`` is called with the name after each ``@``."""
    for block in _blocks(text):
        _write_block(page, block, generated)


def _write_block(page: Page, block: list[str], generated: Callable[[str], None]) -> None:
    first = block[0]
    if first.startswith("### "):
        page.part(first[4:])
    elif first.startswith("## "):
        page.section(first[3:])
    elif first.startswith("@"):
        generated(first[1:].strip())
    elif first.startswith(("    ", "```")):
        page.code(line.removeprefix("    ") for line in block if not line.startswith("```"))
    elif first.startswith("| "):
        _write_table(page, block)
    elif first.startswith("- "):
        for item in re.split(r"\n(?=- )", "\n".join(block)):
            page.item(_joined(item[2:]))
    else:
        page.paragraph(_joined("\n".join(block)))


def _write_table(page: Page, rows: list[str]) -> None:
    for row in rows[2:]:  # the first names the columns, the second is the rule below it
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip("| "))]
        if len(cells) != 2:
            raise ValueError(f"a table of a manual page has two columns, this row has {len(cells)}: {row}")
        page.entry(_joined(cells[0]), _joined(cells[1]))


def _joined(text: str) -> str:
    return " ".join(_LINK.sub(r"\1", text).split())


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield runs of lines that belong together; headings and ``@`` lines stand alone."""
    block: list[str] = []
    is_fenced = False
    for line in text.splitlines():
        is_fence = line.startswith("```")
        if block and not is_fenced and (not line.strip() or line.startswith(("#", "@")) or is_fence):
            yield block
            block = []
        if line.strip() or is_fenced:
            block.append(line)
        if block and (line.startswith(("## ", "### ", "@")) and not is_fenced):
            yield block
            block = []
        is_fenced ^= is_fence
        if is_fence and not is_fenced:
            yield block
            block = []
    if block:
        yield block
