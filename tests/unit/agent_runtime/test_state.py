from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.disks import full_disk
from vedette.agent.adapters.storage.reserve import RESERVE_BYTES
from vedette.agent.adapters.storage.state import Documents, Migration, Sequences, State
from vedette.agent.domain.errors import DiskFull, StateError
from vedette.agent.domain.slots import SlotRecord
from vedette.models.assignment import SlotAssignment
from vedette.wire.values import SlotState

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def build(version: int) -> SlotAssignment:
    return SlotAssignment("m", "m", version, f"sha256:{version:064x}", f"sha256:{version + 100:064x}")


def reopened(state: State, *migrations: Migration) -> State:
    state.close()
    return State(state.path, migrations)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state.db")


def test_a_slot_record_survives_reopening(state: State) -> None:
    record = SlotRecord("m", build(2), build(1), build(3), SlotState.STAGED, 3, "because")
    state.save_slot(record, b"release of 3")
    again = reopened(state)
    assert again.slots == {"m": record}
    assert again.slot("m") == record
    assert again.slot("other") == SlotRecord("other")
    assert again.release(build(3).release) == b"release of 3"
    again.close()


def test_a_release_leaves_with_the_last_slot_that_names_it(state: State) -> None:
    state.save_slot(SlotRecord("m", candidate=build(1), stage=SlotState.DOWNLOADING), b"one")
    state.save_slot(SlotRecord("m", active=build(1), candidate=build(2), stage=SlotState.DOWNLOADING), b"two")
    assert (state.release(build(1).release), state.release(build(2).release)) == (b"one", b"two")
    state.save_slot(SlotRecord("m", active=build(2), stage=SlotState.ACTIVE))
    assert (state.release(build(1).release), state.release(build(2).release)) == (None, b"two")
    state.close()


def test_quarantine_and_rollback_are_one_fact_and_the_first_reason_stays(state: State) -> None:
    record = SlotRecord("m", active=build(1), stage=SlotState.ACTIVE)
    state.save_slot_and_quarantine(record, build(2).build, "died thrice", NOON)
    state.save_slot_and_quarantine(record, build(2).build, "another", NOON + timedelta(days=1))
    again = reopened(state)
    found = again.quarantine[build(2).build]
    assert (found.reason, found.since, again.slot("m")) == ("died thrice", NOON, record)
    again.close()


def test_the_boot_epoch_grows_with_each_start_and_never_repeats(state: State) -> None:
    assert state.boot_epoch == 0
    assert state.begin_boot() == 1
    again = reopened(state)
    assert again.boot_epoch == 1
    assert again.begin_boot() == 2
    again.close()


def test_the_time_floor_only_rises(state: State) -> None:
    assert state.time_floor is None
    state.raise_time_floor(NOON)
    state.raise_time_floor(NOON - timedelta(days=365))
    assert reopened(state).time_floor == NOON


def test_four_sequences_and_the_highest_are_kept_apart(state: State) -> None:
    seventh = Documents(7, "sha256:7", b"assignment", (b"first", b"", b"third"))
    state.accept(seventh)
    state.attempt(7)
    state.fail(7)
    state.apply(Documents(6, "sha256:6", b"older", ()))
    state.accept(Documents(5, "sha256:5", b"lower", ()))
    again = reopened(state)
    assert again.sequences == Sequences(highest=7, desired=5, attempted=7, failed=7, running=6)
    assert again.desired == Documents(5, "sha256:5", b"lower", ())
    assert again.applied == Documents(6, "sha256:6", b"older", ())
    again.accept(seventh)
    assert again.desired == seventh
    again.close()


def test_a_transaction_that_raises_leaves_nothing(state: State) -> None:
    def half_a_fact() -> None:
        with state.transaction() as connection:
            connection.execute("INSERT INTO facts VALUES ('boot_epoch', 9)")
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        half_a_fact()
    assert state.boot_epoch == 0
    state.close()


def test_another_adapters_migration_runs_once_and_whole(tmp_path: Path) -> None:
    good = Migration("spool-1", ("CREATE TABLE spool (id INTEGER PRIMARY KEY)", "INSERT INTO spool VALUES (1)"))
    state = reopened(State(tmp_path / "state.db", (good,)), good)
    with state.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM spool").fetchone()[0] == 1
    bad = Migration("spool-2", ("INSERT INTO spool VALUES (2)", "INSERT INTO nowhere VALUES (1)"))
    state.close()
    with pytest.raises(StateError, match="nowhere"):
        State(tmp_path / "state.db", (good, bad))
    with sqlite3.connect(tmp_path / "state.db") as raw:
        assert raw.execute("SELECT count(*) FROM spool").fetchone()[0] == 1
        assert raw.execute("SELECT name FROM migrations ORDER BY name").fetchall() == [("spool-1",), ("state-1",)]
    raw.close()


@pytest.mark.parametrize("damage", [b"this is no database at all, but long enough to be one" * 100])
def test_a_damaged_file_is_a_typed_error_that_names_it(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "state.db").write_bytes(damage)
    with pytest.raises(StateError, match=r"state\.db"):
        State(tmp_path / "state.db")


def test_a_folder_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"absent/state\.db"):
        State(tmp_path / "absent" / "state.db")


def test_a_record_that_cannot_be_read_is_a_typed_error(state: State) -> None:
    state.save_slot(SlotRecord("m", active=build(1), stage=SlotState.ACTIVE), None)
    with state.transaction() as connection:
        connection.execute("UPDATE slots SET stage = 'dancing'")
    with pytest.raises(StateError, match="dancing"):
        _ = state.slots
    state.close()


def test_a_full_disk_is_a_typed_error_and_what_was_stored_stays(tmp_path: Path) -> None:
    State(tmp_path / "state.db").close()
    state = State(tmp_path / "state.db", max_pages=24)
    record = SlotRecord("m", active=build(1), stage=SlotState.ACTIVE)
    state.save_slot(record)
    with pytest.raises(DiskFull, match=r"state\.db"):
        state.save_slot(SlotRecord("m", candidate=build(2), stage=SlotState.DOWNLOADING), bytes(1_000_000))
    assert state.slot("m") == record
    assert state.begin_boot() == 1
    state.close()


def test_a_full_disk_costs_the_reserve_and_room_brings_it_back(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    reserve = tmp_path / "state.db.reserve"
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    with state.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    state.close()
    state = State(tmp_path / "state.db", max_pages=pages)
    with pytest.raises(DiskFull):
        state.save_slot(SlotRecord("m", candidate=build(2), stage=SlotState.DOWNLOADING), bytes(1_000_000))
    assert not state.reserve.is_there
    assert state.begin_boot() == 1
    assert state.reserve.is_there
    state.close()


@pytest.mark.root
def test_on_a_truly_full_disk_a_start_and_a_quarantine_are_still_written_down(tmp_path: Path) -> None:
    with full_disk(tmp_path) as fill:
        state = State(tmp_path / "state.db")
        state.begin_boot()
        state.close()
        fill()
        state = State(tmp_path / "state.db")
        assert state.begin_boot() == 2
        fallen = SlotRecord("m", active=build(1), stage=SlotState.ACTIVE)
        state.save_slot_and_quarantine(fallen, build(2).build, "died thrice", NOON)
        assert not state.reserve.is_there
        again = reopened(state)
        assert (again.slot("m"), list(again.quarantine)) == (fallen, [build(2).build])
        again.close()


def test_the_file_is_readable_by_its_owner_alone(state: State) -> None:
    assert state.path.stat().st_mode & 0o777 == 0o600
    state.close()
