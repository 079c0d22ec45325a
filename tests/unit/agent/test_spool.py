"""Claims about the spool: nothing is counted twice, nothing is lost unsaid."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.clock import NOON
from tests.support.disks import BALLAST, full_disk
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.domain.errors import DiskFull, StateError
from vedette.wire.values import Gap, TelemetryBatch, Window

BIG = 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def window(rows: int = 1, profile: bytes = b"") -> Window:
    return Window(start=NOON, end=NOON + timedelta(seconds=60), slot="s", rows=rows, profile=profile)


def drain(spool: Spool) -> list[TelemetryBatch]:
    """Acknowledge everything and return it."""
    sent = []
    while (batch := spool.oldest()) is not None:
        sent.append(batch)
        spool.acknowledge(batch.boot_epoch, batch.sequence)
    return sent


def told(batches: list[TelemetryBatch]) -> tuple[int, int]:
    """Return rows that arrived and rows that were told as lost."""
    arrived = sum(w.rows for b in batches for w in b.windows)
    return arrived, sum(g.rows for b in batches for g in b.gaps)


def test_batches_are_numbered_from_one_and_leave_in_order(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=3)
    for rows in (10, 20, 30):
        spool.append([window(rows)])
    assert [(b.boot_epoch, b.sequence, b.windows[0].rows) for b in drain(spool)] == [(3, 1, 10), (3, 2, 20), (3, 3, 30)]
    assert spool.is_empty
    spool.append([window()])
    assert [b.sequence for b in drain(spool)] == [4]


def test_the_oldest_stays_the_oldest_until_it_is_acknowledged(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=1)
    spool.append([window(1)])
    spool.append([window(2)])
    assert spool.oldest() == spool.oldest()


def test_a_restart_sends_what_the_last_run_left_before_its_own(path: Path) -> None:
    first = Spool(path, BIG, boot_epoch=1)
    first.append([window(5)])
    first.close()
    second = Spool(path, BIG, boot_epoch=2)
    second.append([window(6)])
    assert [(b.boot_epoch, b.sequence) for b in drain(second)] == [(1, 1), (2, 1)]


def test_over_budget_the_oldest_become_one_gap_and_no_row_is_lost_unsaid(path: Path) -> None:
    spool = Spool(path, 5_000, boot_epoch=1)
    for rows in range(1, 101):
        spool.append([window(rows, os.urandom(300))])
        assert spool.bytes_waiting <= 5_000
    batches = drain(spool)
    assert batches[0].gaps == (
        Gap(first_sequence=1, last_sequence=batches[0].sequence, rows=batches[0].gaps[0].rows, reason="spool full"),
    )
    assert [b.sequence for b in batches] == list(range(batches[0].sequence, 101))
    assert sum(told(batches)) == sum(range(1, 101))


def test_a_batch_that_is_being_sent_is_not_dropped(path: Path) -> None:
    spool = Spool(path, 2_000, boot_epoch=1)
    spool.append([window(7, os.urandom(800))])
    sending = spool.oldest()
    for _ in range(10):
        spool.append([window(1, os.urandom(800))])
    assert spool.oldest() == sending
    batches = drain(spool)
    arrived, lost = told(batches)
    assert arrived + lost == 17
    assert spool.batches_dropped == lost > 0
    assert sum(told(batches)) == 17


def test_a_batch_the_controller_will_never_take_becomes_a_gap_and_a_refused_gap_goes(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=1)
    spool.append([window(9)])
    spool.append([window(1)])
    spool.refuse(1, 1, "refused: too-large")
    batch = spool.oldest()
    assert batch is not None
    assert batch.gaps == (Gap(first_sequence=1, last_sequence=1, rows=9, reason="refused: too-large"),)
    spool.refuse(1, 1, "refused: again")
    assert [b.sequence for b in drain(spool)] == [2]


def test_a_full_disk_loses_the_batch_and_the_next_one_says_so(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=1)
    spool.append([window(1)])
    pages = spool._open().execute("PRAGMA page_count").fetchone()[0]
    spool._open().execute(f"PRAGMA max_page_count = {pages}")
    for rows in (20, 30):
        with pytest.raises(DiskFull):
            spool.append([window(rows, os.urandom(100_000))])
    spool._open().execute("PRAGMA max_page_count = 1000000")
    spool.append([window(4)])
    batches = drain(spool)
    assert [b.sequence for b in batches] == [1, 4]
    assert batches[1].gaps == (Gap(first_sequence=2, last_sequence=3, rows=50, reason="disk failed"),)


def test_a_damaged_file_costs_telemetry_and_nothing_else(path: Path) -> None:
    path.write_bytes(b"this is no database, and long enough to be taken for one" * 100)
    spool = Spool(path, BIG, boot_epoch=1)
    assert spool.times_damaged == 1
    spool.append([window()])
    assert len(drain(spool)) == 1


def test_damage_that_sqlite_cannot_put_into_words_costs_telemetry_and_nothing_else(path: Path) -> None:
    Spool(path, BIG, boot_epoch=1).close()
    data = path.read_bytes()
    place = data.rindex(b"tablebatches") + len(b"table")
    path.write_bytes(data[:place] + b"\xec\x41" + data[place + 2 :])  # in the schema, which its error quotes
    spool = Spool(path, BIG, boot_epoch=2)
    assert spool.times_damaged == 1
    spool.append([window()])
    assert len(drain(spool)) == 1


def test_damage_that_shows_while_it_is_used_is_mended_at_the_next_use(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=1)
    for _ in range(20):
        spool.append([window(7, os.urandom(20_000))])
    spool._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._open().execute("PRAGMA cache_size = 0")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 300_000)
    with pytest.raises(StateError):
        drain(spool)
    spool.append([window()])
    assert spool.times_damaged == 1
    assert told(drain(spool)) == (1, 0)


def test_a_file_that_cannot_be_opened_now_is_kept_and_opened_later_and_nothing_is_lost(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=1)
    spool.append([window(5)])
    spool.close()
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    spool = Spool(path, BIG, boot_epoch=2)
    spool.append([window(6)])
    path.rmdir()
    spool.append([window(6)])  # nothing lies there now: no reason to begin another
    path.with_suffix(".away").rename(path)
    spool.append([window(7)])
    assert (spool.times_damaged, spool.batches_dropped) == (0, 0)
    assert told(drain(spool)) == (24, 0)


@pytest.mark.root
def test_on_a_truly_full_disk_it_opens_sends_and_deletes_and_counts_what_it_loses(tmp_path: Path) -> None:
    with full_disk(tmp_path) as fill:
        path = tmp_path / "spool.db"
        spool = Spool(path, BIG, boot_epoch=1)
        for rows in range(1, 101):
            spool.append([window(rows, bytes(10_000))])
        spool.close()
        fill()
        spool = Spool(path, BIG, boot_epoch=2)
        assert spool.times_damaged == 0
        for _ in range(3):
            with pytest.raises(DiskFull, match=r"spool\.db: \d+ bytes free"):
                spool.append([window(1000, os.urandom(50_000))])
        assert told(drain(spool)) == (5050, 0)
        assert spool.is_empty
        (tmp_path / BALLAST).unlink()
        spool.append([window(1)])
        assert told(drain(spool)) == (1, 3000)
        assert spool.reserve.is_there
        spool.close()


def test_a_flipped_bit_in_a_batch_is_told_as_a_gap(path: Path) -> None:
    spool = Spool(path, BIG, boot_epoch=1)
    spool.append([window(5)])
    spool.append([window(6)])
    spool.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE batches SET body = x'FFFF' WHERE sequence = 1")
    connection.close()
    batches = drain(Spool(path, BIG, boot_epoch=2))
    assert batches[0].gaps == (Gap(first_sequence=1, last_sequence=1, rows=5, reason="damaged on disk"),)
    assert batches[1].windows[0].rows == 6


_CHILD = """
import sys
from datetime import datetime, UTC
from pathlib import Path
from vedette.agent.adapters.storage.spool import Spool
from vedette.wire.values import Window
spool = Spool(Path(sys.argv[1]), 10**9, boot_epoch=int(sys.argv[2]))
at = datetime(2026, 1, 1, tzinfo=UTC)
for number in range(1, 10**6):
    spool.append([Window(start=at, end=at, slot="s", rows=number)])
    print("stored", int(sys.argv[2]), number, flush=True)
    if number % 3 == 0:
        batch = spool.oldest()
        spool.acknowledge(batch.boot_epoch, batch.sequence)
        print("gone", batch.boot_epoch, batch.sequence, flush=True)
"""


def test_a_killed_agent_neither_forgets_what_it_stored_nor_repeats_what_was_acknowledged(path: Path) -> None:
    stored: set[tuple[int, int]] = set()
    gone: set[tuple[int, int]] = set()
    for epoch, lines in enumerate((5, 17, 40), start=1):
        command = [sys.executable, "-c", _CHILD, str(path), str(epoch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(lines)]
            child.send_signal(signal.SIGKILL)
            said += child.stdout.readlines()
        for word, at, number in (line.split() for line in said if line.endswith("\n")):
            (stored if word == "stored" else gone).add((int(at), int(number)))
    left = {(b.boot_epoch, b.sequence) for b in drain(Spool(path, BIG, boot_epoch=9))}
    assert not gone & left
    # Each run may have been killed between deleting one batch and saying so.
    assert len(stored - gone - left) <= 3
