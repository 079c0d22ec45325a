"""Write the manual pages: ``packaging/manuals OUTDIR``.

Each page is a file of ``pages/``: prose, with ``@name`` lines where the program's own parser or settings table speaks.
The date is that of SOURCE_DATE_EPOCH, so one commit gives the same bytes wherever it is built; without it, today.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from programs import surface
from programs.prose import write_prose
from programs.roff import Page
from programs.surface import Flag, Verb
from vedette.agent import settings as agent_settings
from vedette.controller import settings as controller_settings
from vedette.controller.cli import session as admin_session
from vedette.models.toml_settings import Option, shown_default
from vedette.models.version import __version__

PAGES = Path(__file__).with_name("pages")
DOCS = Path(__file__).parents[2] / "docs"
_MANUAL = {1: "User Commands", 5: "File Formats", 8: "System Administration"}
_PROGRAMS = {"vedette": surface.admin, "vedette-agent": surface.agent, "vedette-controller": surface.controller}
_SETTINGS: dict[str, Sequence[Option]] = {
    "vedette": admin_session.OPTIONS,
    "vedette-agent": agent_settings.OPTIONS,
    "vedette-controller": controller_settings.OPTIONS,
}


def main(arguments: Sequence[str]) -> int:
    """Write every page into a folder."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: packaging/manuals OUTDIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(PAGES.glob("*.md")):
        (folder / source.stem).write_text(page_of(source, date=_date()), encoding="ascii")
    return 0


def _date() -> str:
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def page_of(source: Path, *, date: str) -> str:
    """Return the page of a file named ``NAME.SECTION.md``."""
    name, _, section = source.stem.rpartition(".")
    program = name.removesuffix(".toml")
    page = Page(name, int(section), date=date, source=f"vedette {__version__}", manual=_MANUAL[int(section)])
    parts = {
        "synopsis": lambda: _synopsis(page, _PROGRAMS[program]()),
        "commands": lambda: _commands(page, _PROGRAMS[program]()),
        "options": lambda: _flags(page, _own_flags(program)),
        "settings": lambda: _settings(page, _SETTINGS[program]),
        "tables": lambda: _tables(page, _SETTINGS[program]),
    }
    write_prose(page, source.read_text(), lambda part: parts[part]())
    return str(page)


def _own_flags(program: str) -> tuple[Flag, ...]:
    return surface.admin_global_flags() if program == "vedette" else _PROGRAMS[program]().flags


def _synopsis(page: Page, root: Verb) -> None:
    for verb in root.verbs if root.path != "vedette" else (root,):
        page.line(_usage(verb))


def _usage(verb: Verb) -> str:
    if verb.verbs:
        return f"`{verb.path}` [*COMMAND*] [*OPTION*]..."
    flags = [_in_usage(flag) for flag in verb.flags if "--help" not in flag.names]
    # A usage line breaks between its parts, not inside "[--name NAME]".
    parts = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in flags]
    return " ".join([f"`{verb.path}`", *parts, *(_argument(item.value) for item in verb.arguments)])


def _in_usage(flag: Flag) -> str:
    text = f"`{flag.names[-1]}` *{flag.value}*" if flag.value else "|".join(f"`{name}`" for name in flag.names)
    text = text if flag.is_required else f"[{text}]"
    return f"{text}..." if flag.is_repeatable else text


def _argument(name: str) -> str:
    return re.sub(r"[A-Za-z][\w:@|=-]*[\w|]|[A-Z]", r"*\g<0>*", name)


def _commands(page: Page, root: Verb) -> None:
    shared = {flag.names for flag in root.flags}
    for verb in root.leaves():
        page.part(verb.path)
        page.line(_usage(verb))
        for text in _documented(verb) or verb.text:
            page.paragraph(text)
        _flags(page, [item for item in verb.arguments if item.text])
        _flags(page, [flag for flag in verb.flags if flag.names not in shared])
        if verb.examples:
            page.code(line for example in verb.examples for line in _example(example))


def _example(line: str) -> list[str]:
    """Return an example as lines that fit 80 columns; a remark that stands beside it goes above it."""
    command, _, remark = line.partition("   ")
    wrapped = textwrap.wrap(command, 66, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [*([f"# {remark.strip()}"] if remark else []), *(f"{part} \\" for part in wrapped[:-1]), wrapped[-1]]


def _documented(verb: Verb) -> tuple[str, ...]:
    """Return the paragraphs about a command of ``vedette`` in docs/cli.md, which says more than its first screen."""
    text = (DOCS / "cli.md").read_text()
    match = re.search(rf"^### {re.escape(verb.path)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        return ()
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", match[1]) if block.strip()]
    return tuple(re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", block) for block in blocks if not block.startswith("|"))


def _flags(page: Page, flags: Sequence[Flag]) -> None:
    for flag in flags:
        names = ", ".join(f"`{name}`" for name in flag.names)
        text = flag.text if flag.text.endswith((".", "]")) else f"{flag.text}."
        needed = " Required." if flag.is_required and names else ""
        page.entry(f"{names} *{flag.value}*".strip() if flag.value else names, text + needed)


def _settings(page: Page, options: Sequence[Option]) -> None:
    for option in options:
        _setting(page, option, option.key)


def _tables(page: Page, options: Sequence[Option]) -> None:
    """Write the keys under the tables that they stand in, as they are written in the file."""
    for table, its in surface.tables_of(options).items():
        page.part(f"[{table}]" if table else "At the top of the file")
        for option in its:
            _setting(page, option, option.key.rpartition(".")[2])


def _setting(page: Page, option: Option, key: str) -> None:
    meaning = option.text[:1].upper() + option.text[1:]
    page.entry(f"`{key} = {shown_default(option)}`", f"{meaning}. ({option.kind.name})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
