"""``vedette demo``: takes the options, tells the story, cleans up."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from vedette.controller.cli.problems import Refused, Usage
from vedette.controller.demo.live import check_live
from vedette.controller.demo.programs import DemoError
from vedette.controller.demo.stage import Stage
from vedette.controller.demo.story import Options, Story

MAX_AGENTS = 32
_PREFIX = "vedette-demo-"
_MOST_ROOT_BYTES = 107 - len("/agents/edge-4-porto/state/agent.sock")
"""Of a folder's path: the kernel takes 107 bytes for the path of a unix socket (unix(7))."""


def run_demo(
    *,
    agents: int = 3,
    factor: float = 12.0,
    keep: bool = False,
    live: str | None = None,
    directory: Path | None = None,
) -> int:
    """Run the whole loop on this machine.

    Args:
        agents: How many, 1 to :data:`MAX_AGENTS`.
        factor: How many times faster than recorded the traffic is replayed.
        keep: Go on until Ctrl-C at the end.
        live: Interface that softflowd watches for the first agent as well.
        directory: Empty folder for all state, kept afterwards; a temporary one, removed afterwards, when None.

    Returns:
        An exit code: 0 done, 1 failed, 130 stopped by Ctrl-C.

    Raises:
        CliError: It cannot begin: the folder or the interface cannot be used.
    """
    if live is not None:
        check_live(live)
    console = Console(highlight=False)
    root = _root(directory)
    story = Story(Options(agents=agents, factor=factor, keep=keep, live=live, directory=root), Stage(console))
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell without job control starts background jobs deaf to SIGINT
        signal.signal(number, _as_interrupt)
    try:
        story.run()
        code = 0
    except DemoError as exc:
        console.print("\n[red]The demo stopped.[/red]", escape(str(exc)), soft_wrap=True)
        code = 1
    except KeyboardInterrupt:
        console.print("\nStopping everything that was started …")
        code = 130
    finally:
        _without_interruption(story.stop)
        if directory is None:
            shutil.rmtree(root, ignore_errors=True)
    if code == 130:
        console.print("Stopped; nothing is left behind." if directory is None else f"Stopped; its files are in {root}.")
        return 0 if keep else code
    return code


def _root(directory: Path | None) -> Path:
    """Return the folder for all state, made if need be.

    Raises:
        Refused: It holds something.
        Usage: Its path is too long for the sockets in it, or it cannot be made.
    """
    if directory is None:
        _check_length(Path(tempfile.gettempdir(), f"{_PREFIX}12345678"))
        return Path(tempfile.mkdtemp(prefix=_PREFIX))
    root = directory.absolute()
    _check_length(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        is_empty = not any(root.iterdir())
    except OSError as exc:
        raise Usage(f"{root} cannot be used", exc.strerror or str(exc), "name another folder") from exc
    if not is_empty:
        raise Refused(f"{root} is not empty", "a demo begins with nothing", "name a new folder")
    return root


def _check_length(root: Path) -> None:
    if (length := len(os.fsencode(root))) > _MOST_ROOT_BYTES:
        raise Usage(
            f"{root} is too long a path",
            f"{length} bytes, limit {_MOST_ROOT_BYTES}: there are unix sockets in it",
            "example: vedette demo --directory /tmp/demo",
        )


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _without_interruption(stop: Callable[[], None]) -> None:
    """Clean up even when the person presses Ctrl-C again meanwhile."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
