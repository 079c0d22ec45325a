"""The instrument finds what it is for: a program that forgets one sync loses something at one of the cuts."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.powercut.crashes import Crash, crashes
from tests.support.powercut.disk import write_tree
from tests.support.powercut.recording import Recording

WRITER = """
    import json, os, pathlib, sqlite3
    from tests.support.powercut.records import mark
    log = pathlib.Path(os.environ["POWERCUT_LOG"])
    def sync(path):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
"""
REPLACE = """
    for number in range(3):
        pathlib.Path("f.new").write_text(f"{number}")
        sync("f.new")
        os.replace("f.new", "f")
        sync(".")
        mark(log, number)
"""
TRANSACTIONS = """
    base = sqlite3.connect("base", isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = FULL")
    base.execute("PRAGMA wal_autocheckpoint = 3")
    base.execute("CREATE TABLE t (x, filler)")
    for number in range(12):
        base.execute("INSERT INTO t VALUES (?, randomblob(2000))", (number,))
        mark(log, number)
"""


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    (tmp_path / "root").mkdir()
    return Recording(tmp_path / "root", tmp_path / "log")


def run(recording: Recording, code: str) -> None:
    environment = {**os.environ, **recording.environment, "PYTHONPATH": str(Path.cwd())}
    program = textwrap.dedent(WRITER) + textwrap.dedent(code)
    subprocess.run([sys.executable, "-c", program], cwd=recording.root, env=environment, check=True, timeout=60)


def lost(recording: Recording, read: Callable[[Path], int]) -> Iterator[Crash]:
    """Yield the crashes after which the number last told is not there, or nothing can be read."""
    for number, crash in enumerate(crashes(recording.records())):
        folder = recording.root.parent / f"crash-{number}"
        folder.mkdir()
        write_tree(crash.tree, folder)
        try:
            is_there = read(folder) >= (crash.facts[-1] if crash.facts else -1)
        except (ValueError, sqlite3.DatabaseError):
            is_there = False
        if not is_there:
            yield crash


def number_in_file(folder: Path) -> int:
    found = folder / "f"
    return int(found.read_text()) if found.exists() else -1


def newest_row(folder: Path) -> int:
    base = sqlite3.connect(folder / "base")
    try:
        if base.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        if not base.execute("SELECT 1 FROM sqlite_master").fetchone():
            return -1
        rows = [row for (row,) in base.execute("SELECT x FROM t ORDER BY x")]
        return len(rows) - 1 if rows == list(range(len(rows))) else -2
    finally:
        base.close()


def test_a_file_replaced_by_the_rules_is_never_lost(recording: Recording) -> None:
    run(recording, REPLACE)
    assert [str(crash) for crash in lost(recording, number_in_file)] == []


@pytest.mark.parametrize(
    ("forgotten", "models"), [('sync("f.new")', {"ordered", "sized", "strict"}), ('sync(".")', {"strict"})]
)
def test_a_forgotten_sync_of_file_or_folder_is_found(recording: Recording, forgotten: str, models: set[str]) -> None:
    run(recording, REPLACE.replace(forgotten, "pass"))
    assert models <= {crash.model for crash in lost(recording, number_in_file)}


def test_a_committed_transaction_is_never_lost(recording: Recording) -> None:
    run(recording, TRANSACTIONS)
    assert [str(crash) for crash in lost(recording, newest_row)] == []


@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
def test_a_database_that_syncs_less_is_found(recording: Recording, level: str) -> None:
    run(recording, TRANSACTIONS.replace("FULL", level))
    assert "strict" in {crash.model for crash in lost(recording, newest_row)}
