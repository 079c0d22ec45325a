"""What both daemons say to systemd: how they stand, that they live, and their log, with levels and fields.

Rules: nothing here waits for long and nothing here fails. A service manager that is not there is not told; a journal
that takes nothing more costs log entries, which are counted and told of, never a daemon's time. On a terminal, or in a
pipe, the log is plain text on standard error as ever: the journal is spoken to only where standard error is one.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5) on JOURNAL_STREAM, and "Native Journal Protocol",
systemd's docs/JOURNAL_NATIVE_PROTOCOL.md.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from types import TracebackType

logger = logging.getLogger(__name__)

JOURNAL_SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)
_DEBUG_PRIORITY = 7
_STDERR = 2
_NOTIFY_WAIT_S = 5.0
_MOST_CHARACTERS = 512 * 1024  # of one field; a datagram holds about 200 KiB, journald takes 768 MiB
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


def notify(state: str, wait_s: float = _NOTIFY_WAIT_S) -> None:
    """Send a state such as ``READY=1`` to the service manager; without one nothing happens.

    Args:
        state: Lines of ``KEY=value``.
        wait_s: How long it may take when the manager reads nothing. What is said again and again waits 0: a manager
            that is busy for a minute must not stop an event loop that feeds its watchdog.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    target = "\0" + address[1:] if address.startswith("@") else address  # @ is an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(wait_s)
            sender.connect(target)
            sender.sendall(state.encode())
    except OSError as exc:
        logger.debug("service manager was not told %s: %s", state, exc)


def watchdog_interval_s() -> float | None:
    """Return how often to say that we live: half of what the unit allows; None when it has no watchdog."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or pid != str(os.getpid()):
        return None
    return int(microseconds) / 2e6


def fields(
    *,
    code: str = "",
    slot: str = "",
    model: str = "",
    build: str = "",
    agent: str = "",
    rollout: str = "",
    run: str = "",
) -> dict[str, Mapping[str, str]]:
    """Return the ``extra`` of a log call that knows these: the journal keeps them as VEDETTE_CODE, VEDETTE_SLOT, ….

    Args:
        code: Of the error or condition, as docs/errors.md lists it.
        slot: Of the agent.
        model: ``NAME:VERSION``.
        build: Digest.
        agent: Its name.
        rollout: Its id.
        run: Of a training, its id.
    """
    known = {
        "VEDETTE_CODE": code,
        "VEDETTE_SLOT": slot,
        "VEDETTE_MODEL": model,
        "VEDETTE_BUILD": build,
        "VEDETTE_AGENT": agent,
        "VEDETTE_ROLLOUT": rollout,
        "VEDETTE_RUN": run,
    }
    return {"vedette_fields": {name: value for name, value in known.items() if value}}


def log_to_journal_or_stderr(level: int, text_format: str, identifier: str) -> None:
    """Set up the root logger: the journal where standard error is one, else text on standard error.

    Under the journal what ends a thread, or the program, is logged too, as one entry and not as a line per line.
    """
    if not is_journal():
        logging.basicConfig(level=level, format=text_format, stream=sys.stderr)
        return
    logging.basicConfig(level=level, handlers=[JournalHandler(identifier)])
    sys.excepthook = _log_end_of_program
    threading.excepthook = _log_end_of_thread


def is_journal(descriptor: int = _STDERR) -> bool:
    """Return whether a descriptor, else standard error, is what systemd connected to the journal for us."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def _log_end_of_program(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("the program ends", exc_info=(kind, exc, trace))


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None:
        return
    name = ended.thread.name if ended.thread else "?"
    logger.critical("thread %s ends", name, exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback))


class JournalHandler(logging.Handler):
    """Sends each record to the journal as one entry with its fields.

    Args:
        identifier: SYSLOG_IDENTIFIER, the program's name.
        path: The journal's socket.
    """

    def __init__(self, identifier: str, path: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._identifier = identifier
        self._path = path
        self._lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; one that the journal does not take now is counted, and the count told with the next."""
        try:
            entry = entry_of(record, self._identifier)
            if self._lost:
                note = f"log entries before this one that the journal did not take: {self._lost}"
                _send(self._socket, self._path, encoded(self._own(note)))
                self._lost = 0
            _send(self._socket, self._path, encoded(entry))
        except OSError:
            self._lost += 1
        except Exception:  # a record whose arguments do not fit its text: logging tells of it on standard error
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _own(self, text: str) -> list[tuple[str, str]]:
        return [("MESSAGE", text), ("PRIORITY", "4"), ("SYSLOG_IDENTIFIER", self._identifier), ("LOGGER", __name__)]


def entry_of(record: logging.LogRecord, identifier: str) -> list[tuple[str, str]]:
    """Return the journal's fields of a record."""
    message = record.getMessage()
    known = dict(getattr(record, "vedette_fields", {}))
    entry = []
    if record.exc_info and record.exc_info[1] is not None:
        kind, exc, trace = record.exc_info
        message = f"{message}: {traceback.format_exception_only(exc)[-1].strip()}"
        entry.append(("EXCEPTION", "".join(traceback.format_exception(kind, exc, trace))))
    if "VEDETTE_CODE" not in known and (code := _code_in(record)):
        known["VEDETTE_CODE"] = code
    return [
        ("MESSAGE", message),
        ("PRIORITY", str(_priority(record.levelno))),
        ("SYSLOG_IDENTIFIER", identifier),
        ("LOGGER", record.name),
        ("CODE_FUNC", record.funcName or ""),
        ("CODE_LINE", str(record.lineno)),
        *known.items(),
        *entry,
    ]


def _code_in(record: logging.LogRecord) -> str:
    """Return the code of the first error of ours among a record's arguments, else of the one it was logged for."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    for found in (*arguments, record.exc_info[1] if record.exc_info else None):
        if isinstance(found, Exception) and isinstance(code := getattr(found, "code", None), str):
            return str(code)
    return ""


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def encoded(entry: Iterable[tuple[str, str]]) -> bytes:
    """Return fields as the journal's native protocol has them: values with a newline by length, others by line."""
    parts = []
    for name, text in entry:
        value = text[:_MOST_CHARACTERS].encode("utf-8", "replace")
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


def _send(sender: socket.socket, path: str, data: bytes) -> None:
    """Send one entry, in a datagram or, when it is too large for one, in a sealed file of memory.

    Raises:
        OSError: The journal is not there, or full.
    """
    try:
        sender.sendto(data, path)
    except OSError as exc:
        if exc.errno not in _TOO_LARGE:
            raise
        _send_file(sender, path, data)


def _send_file(sender: socket.socket, path: str, data: bytes) -> None:
    file = os.memfd_create("vedette-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)  # journald reads only what can change no more
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))]
        sender.sendmsg([b""], rights, 0, path)
    finally:
        os.close(file)
