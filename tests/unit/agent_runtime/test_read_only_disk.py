"""Claims about state and spool on a real disk that becomes read-only, fails, and is mended."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.clock import NOON
from tests.support.disks import FailingDisk, failing_disk
from vedette.agent.adapters.storage.reserve import Reserve
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.adapters.storage.state import Documents, State
from vedette.agent.domain.errors import StateReadOnly
from vedette.wire.values import Window

pytestmark = pytest.mark.root

FIRST = Documents(sequence=7, digest="sha256:" + "a" * 64, assignment=b"one", releases=(b"release",))
SECOND = Documents(sequence=8, digest="sha256:" + "b" * 64, assignment=b"two", releases=())
FAULTS: list[Callable[[FailingDisk], None]] = [lambda disk: disk.remount("abort"), FailingDisk.fail]
IDS = ["read-only", "failing"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    with failing_disk(tmp_path / "d") as made:
        yield made


@contextmanager
def opened_state(disk: FailingDisk) -> Iterator[State]:
    with closing(State(disk.folder / "state.db")) as state:
        yield state


def window(rows: int = 3) -> Window:
    return Window(start=NOON, end=NOON, slot="s", rows=rows)


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_state_is_read_refuses_to_change_and_goes_on_when_the_disk_is_mended(
    disk: FailingDisk, fault: Callable[[FailingDisk], None]
) -> None:
    with opened_state(disk) as state:
        assert state.begin_boot() == 1
        state.accept(FIRST)
        fault(disk)
        with pytest.raises(StateReadOnly, match="takes no writes"):
            state.accept(SECOND)
        assert state.is_read_only
        assert state.desired == FIRST
        assert (state.sequences.highest, state.boot_epoch) == (7, 1)
        assert not state.look()
        disk.mend()
        assert state.look()
        assert state.desired == FIRST
        state.accept(SECOND)
    with opened_state(disk) as state:
        assert state.desired == SECOND
        assert state.begin_boot() == 2


def test_a_mount_point_without_its_disk_is_not_taken_for_it(disk: FailingDisk) -> None:
    with (
        opened_state(disk) as state,
        closing(Spool(disk.folder / "spool.db", 1 << 20, boot_epoch=4)) as spool,
    ):
        state.accept(FIRST)
        disk.remount("abort")
        assert not _stored(state)
        spool.append([window()])
        disk.unmount()
        assert not state.look()
        spool.append([window()])
        assert list(disk.folder.iterdir()) == []
        disk.mount()


def test_reading_finds_a_failed_disk_too(disk: FailingDisk) -> None:
    with opened_state(disk) as state:
        state.accept(FIRST)
        disk.fail()
        with pytest.raises(StateReadOnly):
            state.attempt(7)
        assert state.desired == FIRST


def test_what_a_mended_disk_lost_is_written_again(disk: FailingDisk) -> None:
    with opened_state(disk) as state:
        state.accept(FIRST)
        disk.remount("abort")
        assert not _stored(state)
        disk.mend()
        with closing(sqlite3.connect(disk.folder / "state.db")) as other:
            other.execute("DELETE FROM documents")
            other.commit()
        assert state.look()
    with opened_state(disk) as state:
        assert state.desired == FIRST


def _stored(state: State) -> bool:
    try:
        state.attempt(7)
    except StateReadOnly:
        return False
    return True


def test_a_start_on_a_read_only_disk_reads_what_a_killed_agent_left_in_its_log(
    disk: FailingDisk, tmp_path: Path
) -> None:
    killed = State(disk.folder / "state.db")
    killed.accept(FIRST)
    assert (disk.folder / "state.db-wal").stat().st_size > 0
    _left_as_it_is(disk, killed)
    with opened_state(disk) as state:
        assert state.is_read_only
        assert state.desired == FIRST
        uncounted = state.begin_boot()
        assert 2**62 <= uncounted < 2**63
        assert state.boot_epoch == uncounted
    with opened_state(disk) as state:
        assert state.begin_boot() != uncounted
        disk.remount("rw")
        assert state.look()
        state.accept(SECOND)
    with opened_state(disk) as state:
        assert state.begin_boot() == 1


def _left_as_it_is(disk: FailingDisk, killed: State) -> None:
    """Mount read-only what a kill leaves: closing would empty the log."""
    files = {path.name: path.read_bytes() for path in disk.folder.iterdir() if path.is_file()}
    killed.close()
    for name, data in files.items():
        (disk.folder / name).write_bytes(data)
    (disk.folder / "state.db-shm").unlink()
    disk.unmount()
    disk.mount_read_only()


def test_a_first_start_on_a_read_only_disk_knows_nothing_and_stores_later(disk: FailingDisk) -> None:
    disk.unmount()
    disk.mount_read_only()
    with opened_state(disk) as state:
        assert (state.slots, state.desired, state.time_floor) == ({}, None, None)
        with pytest.raises(StateReadOnly):
            state.accept(FIRST)
        disk.remount("rw")
        state.accept(FIRST)
        assert not state.is_read_only
        assert Reserve(state.path).is_there
    with opened_state(disk) as state:
        assert state.desired == FIRST


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_telemetry_waits_in_memory_is_sent_from_there_and_returns_to_the_disk(
    disk: FailingDisk, fault: Callable[[FailingDisk], None]
) -> None:
    with closing(Spool(disk.folder / "spool.db", 1 << 20, boot_epoch=4)) as spool:
        spool.append([window()])
        fault(disk)
        spool.append([window()])
        spool.append([window()])
        assert _oldest(spool) == (4, 2)
        spool.acknowledge(4, 2)
        assert _oldest(spool) == (4, 3)
        disk.mend()
        spool.append([window()])
        assert _drained(spool) == [(4, 1), (4, 3), (4, 4)]
        assert spool.batches_dropped == 0


def test_telemetry_in_memory_has_a_small_budget_and_what_goes_becomes_a_gap(
    disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette.agent.adapters.storage.spool.MEMORY_BYTES", 400)
    with closing(Spool(disk.folder / "spool.db", 1 << 20, boot_epoch=4)) as spool:
        disk.remount("abort")
        for _ in range(40):
            spool.append([window()])
        assert spool.bytes_waiting <= 400
        first = spool.oldest()
        assert first is not None
        (gap,) = first.gaps
        assert (gap.first_sequence, gap.rows) == (1, 3 * spool.batches_dropped)


def test_a_spool_begun_on_a_read_only_disk_takes_what_comes_and_keeps_what_was_there(disk: FailingDisk) -> None:
    with closing(Spool(disk.folder / "spool.db", 1 << 20, boot_epoch=1)) as spool:
        spool.append([window()])
    disk.unmount()
    disk.mount_read_only()
    with closing(Spool(disk.folder / "spool.db", 1 << 20, boot_epoch=2)) as spool:
        assert spool.oldest() is None
        spool.append([window()])
        assert _oldest(spool) == (2, 1)
        disk.remount("rw")
        spool.append([window()])
        assert _drained(spool) == [(1, 1), (2, 1), (2, 2)]


def test_telemetry_in_a_shelter_outlives_the_process_and_returns_to_the_disk(disk: FailingDisk, tmp_path: Path) -> None:
    shelter = tmp_path / "shelter.db"

    def opened(boot_epoch: int) -> Spool:
        return Spool(disk.folder / "spool.db", 1 << 20, boot_epoch, shelter=shelter)

    with closing(opened(1)) as spool:
        spool.append([window()])
        disk.remount("abort")
        spool.append([window()])
        spool.append([window()])
        spool.acknowledge(*_oldest(spool))
    with closing(opened(2)) as spool:
        assert spool.is_read_only
        spool.append([window()])
        assert _oldest(spool) == (1, 3)
    disk.mend()
    with closing(opened(3)) as spool:
        assert not spool.is_read_only
        assert list(tmp_path.glob("shelter*")) == []
        assert _drained(spool) == [(1, 1), (1, 3), (2, 1)]


@pytest.mark.parametrize("shelter", ["absent/spool.db", "damaged"])
def test_without_a_good_shelter_telemetry_waits_in_the_process(disk: FailingDisk, tmp_path: Path, shelter: str) -> None:
    (tmp_path / "damaged").write_bytes(b"garbage" * 1000)
    with closing(Spool(disk.folder / "spool.db", 1 << 20, 1, shelter=tmp_path / shelter)) as spool:
        disk.remount("abort")
        spool.append([window()])
        assert _oldest(spool) == (1, 1)
        disk.mend()
        assert _drained(spool) == [(1, 1)]


def _oldest(spool: Spool) -> tuple[int, int]:
    batch = spool.oldest()
    assert batch is not None
    return batch.boot_epoch, batch.sequence


def _drained(spool: Spool) -> list[tuple[int, int]]:
    found = []
    while (batch := spool.oldest()) is not None:
        found.append((batch.boot_epoch, batch.sequence))
        spool.acknowledge(batch.boot_epoch, batch.sequence)
    return found
