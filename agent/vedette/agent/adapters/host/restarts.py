"""Starts under a service manager: counted in the runtime directory, paced, and told of while they wait.

systemd restarts after a fixed time; a growing one came with version 254, and Debian 12 has 252. So the unit restarts
after a second and the program itself waits (:mod:`vedette.agent.domain.restarts`). The count outlives a restart, not a
stop or a reboot (``RuntimeDirectoryPreserve=restart``). Run by hand there is no runtime directory, no count, no wait.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from vedette.agent.adapters.storage.files import FileTooLarge, read_file
from vedette.agent.domain.restarts import Start, next_start
from vedette.wire import systemd

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1024
_TELL_S = 5.0
_TELL_MORE_S = 3 * _TELL_S
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedEarly(BaseException):
    """The service manager stopped a start before it took signals itself. No fault, so no handler of faults takes it."""


@contextmanager
def paced_start() -> Iterator[None]:
    """Wait as long as the failures before this start ask for; what ends well within forgets them.

    Raises:
        StoppedEarly: SIGTERM came before the agent took signals itself; the failures are forgotten.
    """
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not folder or not os.environ.get("NOTIFY_SOCKET"):
        yield
        return
    path = Path(folder) / "last-start.json"
    start = next_start(_last(path), time.clock_gettime(time.CLOCK_BOOTTIME))
    with suppress(OSError):  # a wait less is no reason not to start
        path.write_text(json.dumps({"failures": start.failures, "at_s": start.at_s}))
    try:
        _wait(start)
        signal.signal(signal.SIGTERM, _stop)  # until the event loop takes it: a stop is no failure at any instant
        yield
    except StoppedEarly:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _stop(*_: object) -> NoReturn:
    raise StoppedEarly


def _last(path: Path) -> Start | None:
    try:
        found = json.loads(read_file(path, _MAX_FILE_BYTES))
        return Start(int(found["failures"]), float(found["at_s"]))
    except (OSError, FileTooLarge, ValueError, KeyError, TypeError):
        return None


def _wait(start: Start) -> None:
    if not start.wait_s:
        return
    logger.warning(
        "%d failures in a row: this start waits %.0f s; systemctl restart vedette-agent tries at once",
        start.failures,
        start.wait_s,
    )
    ends = time.monotonic() + start.wait_s
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        while (left := ends - time.monotonic()) > 0:
            _tell(f"{start.failures} failures in a row; next try in {left:.0f} s")
            if signal.sigtimedwait(_STOP_SIGNALS, min(left, _TELL_S)) is not None:
                raise StoppedEarly
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _tell(status: str) -> None:
    systemd.notify(f"STATUS={status}\nEXTEND_TIMEOUT_USEC={int(_TELL_MORE_S * 1e6)}")
