"""Live traffic for a demo: the real softflowd on an interface of this machine."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from vedette.controller.cli.problems import Failed, Missing, Refused, nearest

# Short, so that a person sees within seconds what he did: softflowd's own default waits minutes for a connection to
# come back to life.
_TIMEOUTS = {"tcp": 20, "tcp.fin": 2, "tcp.rst": 2, "udp": 5, "icmp": 5, "general": 10, "maxlife": 30, "expint": 1}


def check_live(interface: str) -> None:
    """Make sure that softflowd can watch an interface, before anything is started.

    Raises:
        Failed: It is not installed.
        Missing: There is no such interface.
        Refused: The person may not open it.
    """
    if _softflowd() is None:
        raise Failed("--live needs softflowd", "it is not installed", "install it: sudo apt install softflowd")
    names = [name for _, name in socket.if_nameindex()]
    if interface not in names:
        close = nearest(interface, names)
        hint = f"did you mean {close}?" if close else "example: --live lo"
        raise Missing(f"there is no interface {interface}", f"there are {', '.join(names)}", hint)
    if os.geteuid() != 0:
        raise Refused(
            f"--live {interface} needs root",
            "softflowd opens the interface itself",
            f'sudo "$(command -v vedette)" demo --live {interface}',
        )


def live_command(interface: str, port: int, control: Path) -> list[str]:
    """Return the command of a softflowd that exports what it sees of an interface to a collector on this machine."""
    found = _softflowd()
    if found is None:
        raise Failed("--live needs softflowd", "it is not installed", "install it: sudo apt install softflowd")
    timeouts = [word for name, length in _TIMEOUTS.items() for word in ("-t", f"{name}={length}")]
    return [found, "-d", "-v", "9", *timeouts, "-c", str(control), "-i", interface, "-n", f"127.0.0.1:{port}"]


def _softflowd() -> str | None:
    """Return where it is; Debian keeps it in sbin, which is not in everybody's path."""
    return shutil.which("softflowd") or shutil.which("/usr/sbin/softflowd")
