"""Claims about a state that cannot be read at a start: its second copy, what is set aside, what begins anew."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.appliance import Appliance
from tests.support.clock import NOON
from tests.support.disks import failing_disk
from tests.support.tiny_models import assigned, flow_rows
from vedette.agent.adapters.inference.serving import Serving
from vedette.agent.adapters.storage.second_copy import MOST_KEPT, SecondCopy, set_aside
from vedette.agent.adapters.storage.state import Documents, State, StateNewer
from vedette.agent.domain.errors import StateDamaged
from vedette.agent.domain.slots import SlotRecord

ONE = Documents(sequence=7, digest="sha256:" + "a" * 64, assignment=b"one", releases=(b"release",))
BAD = "sha256:" + "b" * 64
SLOT = "flow-threat"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state in which something of each kind is stored, left by a killed agent."""
    path = tmp_path / "state.db"
    fill(path)
    return path


def fill(path: Path) -> None:
    with closing(State(path)) as state:
        state.begin_boot()
        state.accept(ONE)
        state.raise_time_floor(NOON)
        state.save_slot_and_quarantine(SlotRecord("s"), BAD, "it lies", NOON)


@contextmanager
def started(path: Path) -> Iterator[State]:
    with closing(State(path, mends=True, is_first=False)) as state:
        yield state


def holds_all(state: State) -> bool:
    return (state.desired, state.time_floor, set(state.quarantine)) == (ONE, NOON, {BAD})


def no_database(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 2000)


def without_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 3] = bytes(4096)
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_a_time_that_is_none(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE facts SET value = '2026-13-99' WHERE name = 'time_floor'")
        file.commit()


def with_a_slot_that_is_none(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE slots SET stage = 'actyve'")
        file.commit()


def with_a_name_that_is_no_text(path: Path) -> None:
    """Flip bits in the schema: SQLite's error then quotes them, and sqlite3 cannot decode its words."""
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    place = data.rindex(b"tableslots") + len(b"table")
    path.write_bytes(data[:place] + b"\xec\x41" + data[place + 2 :])


DAMAGE = [
    no_database,
    without_a_page,
    cut_off,
    with_a_name_that_is_no_text,
    with_a_time_that_is_none,
    with_a_slot_that_is_none,
]
IDS = [damage.__name__ for damage in DAMAGE]


@pytest.mark.parametrize("damage", [*DAMAGE, emptied, Path.unlink])
def test_the_second_copy_takes_the_place_of_a_damaged_state_and_nothing_is_lost(
    path: Path, damage: Callable[[Path], None]
) -> None:
    damage(path)
    with started(path) as state:
        assert holds_all(state)
        assert state.begin_boot() == 2
        assert not state.is_anew
        assert "nothing is lost" in state.damage
        state.attempt(7)
    with started(path) as state:
        assert (state.damage, state.sequences.attempted) == ("", 7)


@pytest.mark.parametrize("damage", DAMAGE, ids=IDS)
def test_a_damaged_state_without_a_copy_begins_anew_and_draws_its_epoch(
    path: Path, damage: Callable[[Path], None]
) -> None:
    damage(path)
    damaged = path.read_bytes()
    no_database(SecondCopy(path).path)
    with started(path) as state:
        assert (state.desired, state.time_floor, state.slots, state.quarantine) == (None, None, {}, {})
        assert "quarantine are lost" in state.damage
        (kept,) = state.kept_aside
        assert kept.read_bytes() == damaged
        epoch = state.begin_boot()
        assert epoch > 2**62
    with started(path) as state:
        assert (state.damage, state.is_anew, state.begin_boot()) == ("", True, epoch + 1)
        state.apply(ONE)
        assert not state.is_anew
    with started(path) as state:
        assert not state.is_anew


@pytest.mark.parametrize("damage", DAMAGE, ids=IDS)
def test_who_only_reads_leaves_a_damaged_state_as_it_is_and_says_so(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StateDamaged, match=str(path)):
        State(path)
    assert path.read_bytes() == before


def test_a_state_that_was_moved_away_with_its_copy_begins_anew_with_a_drawn_epoch(path: Path) -> None:
    for file in path.parent.glob("state.db*"):
        file.unlink()
    with started(path) as state:
        assert state.begin_boot() > 2**62
    with closing(State(path.with_name("first.db"), mends=True)) as state:
        assert state.begin_boot() == 1


def test_the_log_of_a_damaged_file_goes_with_it(tmp_path: Path) -> None:
    names = ("state.db", "state.db-wal", "state.db-shm")
    for name in names:
        (tmp_path / name).write_text(name)
    kept = set_aside(tmp_path / "state.db")
    assert kept is not None
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        kept.name: "state.db",
        f"{kept.name}-wal": "state.db-wal",
    }


def test_a_few_damaged_files_are_kept_and_the_first_stays(path: Path) -> None:
    first = b""
    for number in range(MOST_KEPT + 2):
        path.write_bytes(b"%d" % number * 5000)
        first = first or path.read_bytes()
        with started(path) as state:
            assert holds_all(state)
            kept = state.kept_aside
    assert len(kept) == MOST_KEPT
    assert kept[0].read_bytes() == first
    assert len(list(path.parent.glob("state.db.damaged-*"))) == MOST_KEPT


def test_the_copy_knows_what_is_committed_and_a_disk_without_room_for_it_holds_nothing_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with started(path) as state:
        with monkeypatch.context() as full:
            full.setattr("vedette.agent.adapters.storage.second_copy.replace_file", no_room)
            state.attempt(7)
            assert state.look()
        assert state.look()  # writes what is due
        assert state.sequences.attempted == 7
    no_database(path)
    with started(path) as state:
        assert state.sequences.attempted == 7


def test_a_newer_state_is_neither_set_aside_nor_replaced(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StateNewer), started(path):
        pass
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*damaged*"))


def test_setting_aside_nothing_takes_a_forgotten_log_away(tmp_path: Path) -> None:
    (tmp_path / "state.db-wal").write_bytes(b"old")
    assert set_aside(tmp_path / "state.db") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("has_copy", [True, False])
def test_a_damaged_state_on_a_read_only_disk_is_done_without_until_it_is_writable(
    tmp_path: Path, has_copy: bool
) -> None:
    with failing_disk(tmp_path / "d") as disk:
        path = disk.folder / "state.db"
        fill(path)
        no_database(path)
        if not has_copy:
            SecondCopy(path).path.unlink()
        disk.unmount()
        disk.mount_read_only()
        with started(path) as state:
            assert state.is_read_only
            assert holds_all(state) is has_copy
            assert state.damage
            assert state.begin_boot() > 2**62
            disk.remount("rw")
            assert state.look()
            assert len(state.kept_aside) == 1
            state.raise_time_floor(NOON + timedelta(days=1))
        with closing(State(path)) as state:
            assert state.time_floor == NOON + timedelta(days=1)
            assert (state.desired == ONE) is has_copy


async def test_after_a_loss_the_builds_on_the_disk_are_installed_again_without_a_download(
    appliance: Appliance,
) -> None:
    releases = [appliance.shelf.flow_release(1), appliance.shelf.flow_release(2)]
    for release in releases:
        await appliance.serving.install(assigned(release), release, appliance.fetch)
    await appliance.close()
    for file in appliance.folder.glob("state.db*"):
        file.unlink()
    appliance.shelf.fetched.clear()
    appliance.state = State(appliance.folder / "state.db", mends=True, is_first=False)
    appliance.serving = Serving(appliance.state, appliance.blobs, appliance.settings, appliance.clock)
    await appliance.serving.start()
    await appliance.serving.install(assigned(releases[1]), releases[1], appliance.fetch)
    assert appliance.shelf.fetched == []
    answer = await appliance.serving.infer(SLOT, {"features": flow_rows(2)})
    assert answer.release.version == 2


async def test_after_a_loss_nothing_is_removed_until_an_assignment_is_applied(appliance: Appliance) -> None:
    release = appliance.shelf.flow_release(1)
    await appliance.serving.install(assigned(release), release, appliance.fetch)
    await appliance.close()
    for file in appliance.folder.glob("state.db*"):
        file.unlink()
    appliance.state = State(appliance.folder / "state.db", mends=True, is_first=False)
    appliance.use(replace(appliance.settings, disk_bytes=1))
    assert appliance.serving.collect_garbage() == 0
    appliance.state.apply(ONE)
    assert appliance.serving.collect_garbage() > 0
    assert list((appliance.blobs / "sha256").iterdir()) == []
