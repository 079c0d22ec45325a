"""The processes of a demo: started in sessions of their own, all stopped, whatever happens.

A terminal's Ctrl-C reaches only the demo itself, which then stops its programs in order. Should the demo be killed, the
kernel ends them (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_GRACE_S = 8.0
_TAIL_LINES = 12


class DemoError(Exception):
    """The demo cannot go on; the text says what happened, why, and what to look at."""


class Programs:
    """Starts programs and stops them again, last first.

    Args:
        logs: Folder for one log file a program.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a program in the background."""
        parent = os.getpid()
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 - no thread of ours holds a lock at this point
            )
        self._running.append((name, process))
        return process

    def pids(self) -> dict[str, int]:
        """Return the process of each program that runs, by its name."""
        return {name: process.pid for name, process in self._running}

    def check(self) -> None:
        """Make sure that everything still runs.

        Raises:
            DemoError: A program has ended by itself; the text holds the end of its log.
        """
        for name, process in self._running:
            if process.poll() is not None:
                raise DemoError(
                    f"{name} ended with exit code {process.returncode}. The end of its log:\n{self.tail(name)}\n"
                    f"vedette demo --directory DIR keeps the whole log in DIR/logs/{name}.log"
                )

    def tail(self, name: str) -> str:
        """Return the last lines of a program's log."""
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def until(self, what: str, reached: Callable[[], Any], *, within_s: float, every_s: float = 0.25) -> Any:
        """Wait until ``reached`` returns something true, and return it.

        Raises:
            DemoError: It did not in time, or a program ended meanwhile.
        """
        deadline = time.monotonic() + within_s
        while not (found := reached()):
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"waited {within_s:.0f} s for {what}, in vain")
            time.sleep(every_s)
        return found

    def stop(self) -> None:
        """Stop everything, last started first; kill what does not stop in time. May be called again."""
        for _, process in reversed(self._running):
            process.terminate()  # the program itself: it ends its children in its own order
        deadline = time.monotonic() + _GRACE_S
        for _, process in reversed(self._running):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        self._running.clear()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent; runs in the child, before exec."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent was gone before the request
        os._exit(1)


def program(name: str) -> list[str]:
    """Return the command of one of the three programs, in this very installation."""
    module = {
        "vedette": "vedette.controller.cli",
        "vedette-controller": "vedette.controller",
        "vedette-agent": "vedette.agent",
    }[name]
    return [sys.executable, "-P", "-m", module]


def free_ports(count: int, kind: socket.SocketKind) -> list[int]:
    """Return ports of the loopback address that nobody listens on just now."""
    held = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


class Admin:
    """Runs ``vedette`` as a person would, and reads the JSON it prints.

    Args:
        context: The admin's context file.
        say: Shows a command before it runs.
    """

    def __init__(self, context: Path, say: Callable[[str], None]) -> None:
        self._context = context
        self._say = say

    def __call__(self, *arguments: str, quiet: bool = False, silent: bool = False) -> Any:
        """Run a verb and return what it printed as JSON.

        Args:
            arguments: Of the program.
            quiet: Show nothing at all, unless it fails.
            silent: Show the command and none of its progress; else that goes to the terminal.

        Raises:
            DemoError: It failed; the text is what it said.
        """
        if not quiet:
            self._say(" ".join(["vedette", *(_shown(argument) for argument in arguments)]))
        done = subprocess.run(
            [*program("vedette"), "--context", str(self._context), *arguments, "--output", "json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet or silent else None,
            start_new_session=True,  # Ctrl-C is for the demo: this one would say that its work goes on, and it does not
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip() if done.stderr else "it says why above"
            raise DemoError(f"vedette {' '.join(arguments)} ended with exit code {done.returncode}.\n{said}")
        return json.loads(done.stdout) if done.stdout.strip() else None


def _shown(argument: str) -> str:
    """Return an argument as one would type it, long paths by their last parts."""
    if argument.startswith("/"):
        return "/".join(["…", *Path(argument).parts[-2:]])
    return f"'{argument}'" if not argument or set(argument) & set(" ()*!&") else argument
