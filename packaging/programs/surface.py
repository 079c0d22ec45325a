"""What a program shows of itself, read from its real parser: verbs, flags, arguments, examples.

argparse and click say the same things in different words; behind this module there is one form. What argparse keeps
only in attributes with an underscore (``_actions``) is what other generators read there as well.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from vedette.agent import cli as agent_cli
from vedette.agent import settings as agent_settings
from vedette.controller import __main__ as controller_main
from vedette.controller import settings as controller_settings
from vedette.controller.cli import root as admin_root
from vedette.models.toml_settings import Option, describe_settings

SUPPRESSED = argparse.SUPPRESS


@dataclass(frozen=True, slots=True)
class Flag:
    """An option or an argument.

    Args:
        names: As typed, ``--config``; an argument has none.
        value: The name of its value, as usage lines have it; "" for a switch.
        text: What it does.
        is_required: The command fails without it.
        is_repeatable: It may be given more than once.
        choices: All values there are, when they can be listed.
        completes: "file" or "folder" when its value names one, else "".
    """

    names: tuple[str, ...]
    value: str
    text: str = ""
    is_required: bool = False
    is_repeatable: bool = False
    choices: tuple[str, ...] = ()
    completes: str = ""


@dataclass(frozen=True, slots=True)
class Verb:
    """A command line that can be typed, with those below it."""

    path: str
    summary: str
    text: tuple[str, ...]
    examples: tuple[str, ...]
    flags: tuple[Flag, ...]
    arguments: tuple[Flag, ...]
    verbs: tuple[Verb, ...]

    def leaves(self) -> Iterator[Verb]:
        """Yield the commands that have none below them."""
        if not self.verbs:
            yield self
        for verb in self.verbs:
            yield from verb.leaves()


def agent() -> Verb:
    """Return what ``vedette-agent`` shows."""
    return _from_argparse(agent_cli.command_parser(), "", describe_settings(agent_settings.OPTIONS))


def controller() -> Verb:
    """Return what ``vedette-controller`` shows."""
    return _from_argparse(controller_main.command_parser(), "", describe_settings(controller_settings.OPTIONS))


def admin() -> Verb:
    """Return what ``vedette`` shows."""
    return _from_click(admin_root, "vedette")


def admin_global_flags() -> tuple[Flag, ...]:
    """Return the flags that every command of ``vedette`` takes."""
    return tuple(_click_flag(option) for option in admin_root.global_options)


def tables_of(options: Sequence[Option]) -> dict[str, list[Option]]:
    """Return the keys of a settings file by the table they stand in; "" is what stands before the first table."""
    tables: dict[str, list[Option]] = {"": []}
    for option in options:
        tables.setdefault(option.key.rpartition(".")[0], []).append(option)
    return tables


def _from_argparse(parser: argparse.ArgumentParser, summary: str, settings: str) -> Verb:
    shown = [action for action in parser._actions if action.help is not SUPPRESSED]
    verbs = [action for action in shown if isinstance(action, argparse._SubParsersAction)]
    summaries = {choice.dest: choice.help or "" for action in verbs for choice in action._choices_actions}
    text, examples = _split(f"{parser.description or ''}\n\n{(parser.epilog or '').replace(settings, '')}")
    return Verb(
        path=parser.prog,
        summary=summary,
        text=text,
        examples=examples,
        flags=tuple(_argparse_flag(action, parser) for action in shown if action.option_strings),
        arguments=tuple(
            _argparse_flag(action, parser) for action in shown if not action.option_strings and action not in verbs
        ),
        verbs=tuple(
            _from_argparse(child, summaries[name], settings)
            for action in verbs
            for name, child in action.choices.items()
        ),
    )


def _split(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return paragraphs and examples of a help text: examples are its indented lines."""
    lines = text.splitlines()
    prose = "\n".join("" if _is_title(line) else line for line in lines if not line.startswith("  "))
    paragraphs = tuple(" ".join(part.split()) for part in re.split(r"\n\s*\n", prose) if part.strip())
    return paragraphs, tuple(line[2:] for line in lines if line.startswith("  "))


def _is_title(line: str) -> bool:
    return line.rstrip().endswith(":") and not line.startswith(" ")


def _argparse_flag(action: argparse.Action, parser: argparse.ArgumentParser) -> Flag:
    takes = action.nargs != 0
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    value = str(action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper()))
    return Flag(
        names=tuple(action.option_strings),
        value=value if takes else "",
        text=text[:1].upper() + text[1:],
        is_required=action.required,
        is_repeatable=isinstance(action, argparse._AppendAction),
        choices=tuple(map(str, action.choices or ())),
        completes=_path_kind(action),
    )


def _path_kind(action: argparse.Action) -> str:
    """Return what a value of type Path names: a folder when it is called one."""
    if action.type is not Path:
        return ""
    return "folder" if re.search(r"(^|_)dir|from$", action.dest) else "file"


def _from_click(command: click.Command, path: str) -> Verb:
    """Return a command without the global flags, which all of them share."""
    shared = {id(option) for option in command.global_options}  # type: ignore[attr-defined]
    context = click.Context(command, info_name=path)
    options = [
        item for item in command.get_params(context) if isinstance(item, click.Option) and id(item) not in shared
    ]
    children = command.commands if isinstance(command, click.Group) else {}
    return Verb(
        path=path,
        summary=command.short_help or "",
        text=(" ".join((command.help or "").split()),),
        examples=tuple(command.examples),  # type: ignore[attr-defined]
        flags=tuple(_click_flag(option) for option in options),
        arguments=tuple(
            Flag((), item.make_metavar(context)) for item in command.params if isinstance(item, click.Argument)
        ),
        verbs=tuple(_from_click(child, f"{path} {name}") for name, child in sorted(children.items())),
    )


def _click_flag(option: click.Option) -> Flag:
    context = click.Context(admin_root)
    takes = not (option.is_flag or option.count)
    metavar = option.make_metavar(context).strip("[]") if takes else ""
    default = f" [default: {option.default}]" if option.show_default and takes else ""
    return Flag(
        names=(*option.opts, *option.secondary_opts),
        value=metavar,
        text=f"{option.help or ''}{default}",
        is_required=option.required,
        is_repeatable=option.multiple,
    )
