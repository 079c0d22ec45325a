from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vedette.wire import systemd


class Journal:
    """What journald does with a datagram of its native protocol."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)
        self._socket.bind(self.path)

    def entry(self) -> dict[str, str]:
        data, descriptors, _, _ = socket.recv_fds(self._socket, 2**20, 1)
        for descriptor in descriptors:
            with pytest.raises(PermissionError):  # sealed
                os.ftruncate(descriptor, 0)
            with os.fdopen(descriptor, "rb") as file:
                file.seek(0)
                data = file.read()
        return parsed(data)

    def close(self) -> None:
        self._socket.close()


def parsed(data: bytes) -> dict[str, str]:
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
            data = rest
        else:
            (size,) = struct.unpack_from("<Q", rest)
            name, value = line, rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            data = rest[9 + size :]
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    yield made
    made.close()


@pytest.fixture
def log(journal: Journal) -> Iterator[logging.Logger]:
    handler = systemd.JournalHandler("vedette-test", journal.path)
    made = logging.Logger("vedette.some.part")
    made.addHandler(handler)
    yield made
    handler.close()


class LinkCut(Exception):
    """An error as both daemons have them: with a code."""

    code = "link-cut"


@pytest.mark.parametrize(("level", "priority"), [(10, "7"), (20, "6"), (30, "4"), (40, "3"), (50, "2"), (35, "4")])
def test_a_level_becomes_a_priority_of_syslog(journal: Journal, log: logging.Logger, level: int, priority: str):
    log.log(level, "%d flows", 7)
    entry = journal.entry()
    assert (entry["MESSAGE"], entry["PRIORITY"]) == ("7 flows", priority)
    assert (entry["SYSLOG_IDENTIFIER"], entry["LOGGER"]) == ("vedette-test", "vedette.some.part")


def test_what_a_log_call_knows_can_be_searched_for(journal: Journal, log: logging.Logger):
    log.warning("fell", extra=systemd.fields(code="out-of-memory", slot="flow-threat", model="flow-threat:3"))
    entry = journal.entry()
    known = {name: value for name, value in entry.items() if name.startswith("VEDETTE_")}
    assert known == {
        "VEDETTE_CODE": "out-of-memory", "VEDETTE_SLOT": "flow-threat", "VEDETTE_MODEL": "flow-threat:3"
    }  # fmt: skip


def test_the_code_of_a_logged_error_needs_no_word_of_its_own(journal: Journal, log: logging.Logger):
    error = LinkCut("no answer: time out after 5 s")
    log.warning("attempt %d: %s", 3, error)
    assert journal.entry()["VEDETTE_CODE"] == "link-cut"
    log.warning("%s", error, extra=systemd.fields(code="another"))
    assert journal.entry()["VEDETTE_CODE"] == "another"
    log.warning("%s", ValueError("none of ours"))
    assert "VEDETTE_CODE" not in journal.entry()


def test_text_of_several_lines_arrives_whole_and_can_forge_no_field(journal: Journal, log: logging.Logger):
    log.error("first\nPRIORITY=0\nthird")
    entry = journal.entry()
    assert (entry["MESSAGE"], entry["PRIORITY"]) == ("first\nPRIORITY=0\nthird", "3")


def test_an_exception_is_named_in_the_message_and_traced_in_a_field(journal: Journal, log: logging.Logger):
    try:
        raise LinkCut("no answer: why")
    except LinkCut:
        log.exception("batch %d is lost", 4)
    entry = journal.entry()
    assert entry["MESSAGE"].startswith("batch 4 is lost: ")
    assert "LinkCut: no answer: why" in entry["MESSAGE"]
    assert entry["EXCEPTION"].startswith("Traceback (most recent call last):\n")
    assert entry["VEDETTE_CODE"] == "link-cut"


def test_what_is_too_large_for_a_datagram_goes_by_a_sealed_file(journal: Journal, log: logging.Logger):
    log.error("%s", "x" * 400_000)
    assert journal.entry()["MESSAGE"] == "x" * 400_000


def test_a_field_is_cut_at_its_limit(journal: Journal, log: logging.Logger):
    log.error("%s", "é" * 600_000)
    assert journal.entry()["MESSAGE"] == "é" * 524_288


def test_no_text_breaks_the_protocol(journal: Journal, log: logging.Logger):
    log.error("a lone surrogate %s", "\ud800")
    assert journal.entry()["MESSAGE"] == "a lone surrogate ?"


def test_a_full_journal_never_holds_the_daemon_and_its_gap_is_told(journal: Journal, log: logging.Logger):
    sent = 0
    done = threading.Event()

    def flood() -> None:
        nonlocal sent
        for sent in range(1, 5001):
            log.info("entry %d", sent)
        done.set()

    threading.Thread(target=flood, daemon=True).start()
    assert done.wait(20), f"the log call after entry {sent} never came back"

    taken = 0
    journal._socket.setblocking(False)
    try:
        while journal.entry():
            taken += 1
    except BlockingIOError:
        pass
    journal._socket.settimeout(10)
    log.info("the next")
    assert journal.entry()["MESSAGE"].endswith(f"did not take: {5000 - taken}")
    assert journal.entry()["MESSAGE"] == "the next"


def test_a_journal_that_is_gone_costs_no_more_than_its_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    handler = systemd.JournalHandler("vedette-test", str(tmp_path / "absent"))
    handler.handle(logging.LogRecord("n", logging.INFO, "f", 1, "lost", (), None))
    journal = Journal(tmp_path / "absent")
    handler.handle(logging.LogRecord("n", logging.INFO, "f", 1, "kept", (), None))
    assert journal.entry()["MESSAGE"].endswith("did not take: 1")
    assert journal.entry()["MESSAGE"] == "kept"
    journal.close()
    handler.close()
    assert capsys.readouterr().err == ""


_PROGRAM = """
import json, logging, sys, threading
from vedette.wire import systemd
systemd.JournalHandler.__init__.__defaults__ = (sys.argv[1],)
systemd.log_to_journal_or_stderr(logging.INFO, "%(levelname)s %(message)s", "vedette-test")
logging.getLogger("vedette").warning("told")
thread = threading.Thread(target=lambda: 1 / 0, name="collector"); thread.start(); thread.join()
raise LookupError("the end")
"""


def run_program(journal: Journal, stderr: object, stream: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, journal.path],
        stderr=stderr, env={**os.environ, "JOURNAL_STREAM": stream}, text=True, timeout=60, check=False,
    )  # type: ignore[call-overload, no-any-return]  # fmt: skip


def test_the_journal_is_used_where_standard_error_is_one(journal: Journal, tmp_path: Path):
    with (tmp_path / "stderr").open("w") as stderr:
        found = os.fstat(stderr.fileno())
        run_program(journal, stderr, f"{found.st_dev}:{found.st_ino}")

    entries = [journal.entry() for _ in range(3)]
    assert [(entry["PRIORITY"], entry["MESSAGE"]) for entry in entries] == [
        ("4", "told"),
        ("2", "thread collector ends: ZeroDivisionError: division by zero"),
        ("2", "the program ends: LookupError: the end"),
    ]
    assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_elsewhere_the_log_stays_text(journal: Journal, stream: str):
    ended = run_program(journal, subprocess.PIPE, stream)
    assert ended.stderr.startswith("WARNING told\n")
    assert "LookupError: the end" in ended.stderr


def test_the_service_manager_is_told_and_its_watchdog_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    systemd.notify("STOPPING=1")  # nobody listens any more: no error
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval_s() is None


def test_a_service_manager_that_reads_nothing_holds_no_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        done = threading.Event()

        def feed() -> None:
            for _ in range(5000):
                systemd.notify("WATCHDOG=1", wait_s=0)
            systemd.notify("READY=1", wait_s=0.1)
            done.set()

        threading.Thread(target=feed, daemon=True).start()
        assert done.wait(20)
