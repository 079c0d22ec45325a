"""``vedette demo``: takes the options, tells the story, cleans up."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console
from vedette.controller.demo.programs import DemoError
from vedette.controller.demo.story import Options, Story

MAX_AGENTS = 32


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
    """
    console = Console(highlight=False)
    root = Path(tempfile.mkdtemp(prefix="vedette-demo-")) if directory is None else directory
    root.mkdir(parents=True, exist_ok=True)
    story = Story(Options(agents=agents, factor=factor, keep=keep, live=live, directory=root), console)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        story.run()
        code = 0
    except DemoError as exc:
        console.print(f"\n[red]The demo stopped.[/red] {exc}", soft_wrap=True, markup=True)
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
