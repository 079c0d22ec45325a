"""Verbs that concern this machine: login, completion, the demo."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from vedette.controller.cli.frame import PROGRAM, verb
from vedette.controller.cli.problems import Failed, Unreachable
from vedette.controller.cli.session import current, login_file, read_context


@click.argument("path", metavar="FILE", type=click.Path())
def _login(path: str) -> None:
    from vedette.wire.v1 import admin_pb2

    file, session = Path(path), current()
    context = read_context(file)
    _keep(login_file(), context.to_toml())
    if file.stat().st_mode & 0o077:
        session.output.note(f"Others can read {path}, and whoever does is an admin. Mend it: chmod 600 {path}")
    said = {"address": context.address, "name": context.name, "file": str(login_file()), "reachable": True}
    client = session.connect(context)
    try:
        client.ask("GetOverview", admin_pb2.GetOverviewRequest(), timeout_s=10)
    except Unreachable as exc:
        said["reachable"] = False
        session.output.note(f"It does not answer now: {exc.why or exc.what}")
    finally:
        client.close()
    if session.output.is_json:
        session.output.json(said)
    else:
        session.output.line(f"vedette now speaks to {context.address} as {context.name}.")


def _keep(path: Path, text: str) -> None:
    """Write a private file whole: nobody else can read it at any time, and no half of it is ever seen."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as target:
            target.write(text)
            target.flush()
            os.fsync(target.fileno())
        temporary.rename(path)
    except OSError as exc:
        raise Failed(
            f"{path} cannot be written", exc.strerror or str(exc), "set XDG_CONFIG_HOME to a folder you own"
        ) from exc


_SHELLS = {
    "bash": f'eval "$({PROGRAM} completion bash)"   in ~/.bashrc',
    "zsh": f'eval "$({PROGRAM} completion zsh)"   in ~/.zshrc, after compinit',
    "fish": f"{PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
}


@click.argument("shell", type=click.Choice(sorted(_SHELLS)))
def _completion(shell: str) -> None:
    click.echo(completion_script(shell), nl=False)
    current().output.note(f"To have it always: {_SHELLS[shell]}")


def completion_script(shell: str) -> str:
    """Return what makes bash, zsh or fish complete this program.

    Raises:
        Failed: There is no completion for this shell.
    """
    from vedette.controller.cli import root

    kind = get_completion_class(shell)
    if kind is None:
        raise Failed(f"there is no completion for {shell}")
    return kind(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source().rstrip("\n") + "\n"


@click.option(
    "--agents", default=3, show_default=True, type=click.IntRange(1, 32), metavar="N", help="How many agents."
)
@click.option(
    "--factor",
    default=12.0,
    show_default=True,
    type=click.FloatRange(0.1, 1000),
    metavar="F",
    help="How many times faster than recorded.",
)
@click.option("--keep", is_flag=True, help="Go on at the end, until Ctrl-C.")
@click.option("--live", metavar="INTERFACE", help="Let softflowd watch this interface for the first agent as well.")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where everything is kept afterwards; a temporary folder when absent.",
)
def _demo(agents: int, factor: float, keep: bool, live: str | None, directory: Path | None) -> int:
    from vedette.controller.demo.command import run_demo

    return run_demo(agents=agents, factor=factor, keep=keep, live=live, directory=directory)


def add_to(group: click.Group) -> None:
    """Add the verbs to a group."""
    verb(
        group,
        "login",
        "Remember a context file, so that every command finds the controller.",
        "vedette login admin.toml",
    )(_login)
    verb(
        group,
        "completion",
        "Print completion for a shell; it completes agents, models, versions and rollouts too.",
        "vedette completion bash",
    )(_completion)
    verb(
        group,
        "demo",
        "Run the whole loop on this machine with real traffic, then clean up.",
        "vedette demo",
        "vedette demo --agents 5 --keep",
    )(_demo)
