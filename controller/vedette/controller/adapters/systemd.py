"""Tells systemd how the service stands, when it asked to be told.

Source: sd_notify(3): datagrams of ``KEY=value`` lines to the socket named by NOTIFY_SOCKET.
"""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send a state such as ``READY=1``; does nothing outside systemd and never fails."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target:
        return
    address = "\0" + target[1:] if target.startswith("@") else target
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as exc:
        logger.warning("cannot tell systemd %s: %s", state, exc)
