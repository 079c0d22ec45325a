"""How commands are made: flags that work before and after the verb, help that teaches, the nearest word for a typo.

Every command takes the global flags; the last one given counts. The first screen of a command says what it does in a
line, shows examples, then the options in groups.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from vedette.controller.cli.problems import Refused, Usage, nearest
from vedette.controller.cli.session import Session

PROGRAM = "vedette"

_HELP = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    session = context.find_object(Session)
    if session is not None and parameter.name and value not in (None, False):
        session.flags[parameter.name] = value


def _globals() -> list[click.Option]:
    def option(*names: str, text: str, **more: Any) -> click.Option:
        return click.Option([*names], help=text, expose_value=False, callback=_store, is_eager=True, **more)

    where = "Controller and credentials; else VEDETTE_CONTEXT, else the last login."
    settings = "Settings of this program; else ~/.config/vedette/config.toml."
    return [
        option("--context", metavar="FILE", type=click.Path(), text=where),
        option("--config", metavar="FILE", type=click.Path(), text=settings),
        option("--output", type=click.Choice(["table", "json"]), text="How the result is printed (table)."),
        option("--color", type=click.Choice(["auto", "always", "never"]), text="When to colour (auto)."),
        option("--verbose", is_flag=True, text="Show stack traces."),
    ]


class _Taught:
    """What commands and groups share: global flags, and the order of their help."""

    examples: tuple[str, ...]
    global_options: list[click.Option]

    def _format(self, command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"{(command.help or '').strip()}\n\n")
        command.format_usage(context, formatter)
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"{'':{formatter.current_indent}}{text}\n" for text in self.examples))
        if isinstance(command, click.Group):
            command.format_commands(context, formatter)
        own = [item for item in command.params if isinstance(item, click.Option) and item not in self.global_options]
        self._write_options("Options", context, formatter, own)
        self._write_options("Global options, before or after the verb", context, formatter, self.global_options)

    @staticmethod
    def _write_options(
        title: str, context: click.Context, formatter: click.HelpFormatter, options: list[click.Option]
    ) -> None:
        records = [record for option in options if (record := option.get_help_record(context))]
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


class Command(_Taught, click.Command):
    """A verb. ``examples`` are whole command lines."""

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **more: Any) -> None:
        self.examples = examples
        self.global_options = _globals()
        more["context_settings"] = _HELP
        super().__init__(*args, **more)
        self.params = [*self.params, *self.global_options]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb, once it is certain that its result can be printed as asked for."""
        session = ctx.find_object(Session)
        if session is not None:
            _ = session.output  # reads the settings: a mistake there must not come up after something was done
        return super().invoke(ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first screen of the verb."""
        self._format(self, ctx, formatter)


class Group(_Taught, click.Group):
    """A noun with its verbs; alone it shows them, unless it does something by itself."""

    command_class = Command

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **more: Any) -> None:
        self.examples = examples
        self.global_options = _globals()
        more.setdefault("invoke_without_command", True)
        more["context_settings"] = _HELP
        super().__init__(*args, **more)
        self.params = [*self.params, *self.global_options]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first screen of the noun."""
        self._format(self, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that is meant.

        Raises:
            Usage: There is none; the nearest one is named.
        """
        if (
            args
            and not ctx.resilient_parsing
            and not args[0].startswith("-")
            and self.get_command(ctx, args[0]) is None
        ):
            close = nearest(args[0], self.commands)
            raise Usage(
                f"{ctx.command_path} has no command {args[0]!r}",
                f"it has {', '.join(sorted(self.commands))}",
                f"did you mean: {ctx.command_path} {close}" if close else f"see: {ctx.command_path} --help",
            )
        return super().resolve_command(ctx, args)


Group.group_class = Group


def noun(name: str, text: str, *examples: str) -> Group:
    """Return a group that, alone, shows its help."""

    def show() -> None:
        context = click.get_current_context()
        if context.invoked_subcommand is None:
            click.echo(context.get_help())

    return Group(name, help=text, short_help=text.rstrip("."), examples=examples, callback=show)


def verb(group: click.Group, name: str, text: str, *examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator that makes a function a verb of a group."""

    def decorate(function: Callable[..., Any]) -> Command:
        command = Command(
            name,
            callback=function,
            params=list(reversed(getattr(function, "__click_params__", []))),  # what the decorators below left
            help=text,
            short_help=text.split(". ", maxsplit=1)[0].rstrip("."),
            examples=examples,
        )
        group.add_command(command)
        return command

    return decorate


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Raises:
        Refused: The person said no, or there is nobody to ask and ``--yes`` was not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nothing was done", "there is no terminal to ask on", "--yes does it without asking")
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was done", "you did not say yes")


YES = click.option("--yes", is_flag=True, help="Do it without asking.")
