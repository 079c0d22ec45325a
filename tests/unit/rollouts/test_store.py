"""What is kept of a rollout is what was decided, and only what changed is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rollout_world import MODEL, World, plan_only
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.sqlite.rollouts import MIGRATIONS, SqliteRollouts
from vedette.controller.domain import rollout as machine
from vedette.controller.domain.errors import ControllerError
from vedette.controller.domain.rollout import Standing


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "db.sqlite")
    database.migrate(MIGRATIONS)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> SqliteRollouts:
    return SqliteRollouts(database)


def _stories() -> list[World]:
    worlds = []
    for step in range(6):
        world = World(4)
        world.start("1,100%")
        if step > 0:
            world.downloading(world.order()[0], 100)
            world.tick(1)
        if step > 1:
            world.move(world.order()[0])
            world.tick(1)
        if step > 2:
            world.agents[world.order()[2]].online = False
            world.tick(30)
        if step > 3:
            world.apply("pause")
        if step > 4:
            world.fail(world.order()[1])
            world.tick()
        worlds.append(world)
    return worlds


@pytest.mark.parametrize("step", range(6))
def test_a_rollout_comes_back_as_it_was_kept(store: SqliteRollouts, step: int) -> None:
    rollout = _stories()[step].it
    store.save(rollout, None)
    assert store.load("7") == rollout


def test_saving_what_changed_gives_the_same_as_saving_all(store: SqliteRollouts) -> None:
    world = World(4)
    before = world.start("1,100%")
    store.save(before, None)
    for change in ("move", "tick", "pause", "resume"):
        if change == "move":
            world.move(world.order()[0])
        elif change == "tick":
            world.tick(31)
            world.tick(31)
        else:
            world.apply(change)
        store.save(world.it, before)
        before = world.it
        assert store.load("7") == before


def test_members_that_did_not_change_are_not_written(database: Database, store: SqliteRollouts) -> None:
    world = World(50)
    before = world.start("5,100%")
    store.save(before, None)
    world.move(world.order()[0])
    world.tick(1)
    written: list[str] = []
    with database.transaction() as connection:
        connection.set_trace_callback(written.append)
    store.save(world.it, before)
    with database.transaction() as connection:
        connection.set_trace_callback(None)
    assert sum("INTO rollout_members" in text for text in written) == 1


def test_ids_count_up(store: SqliteRollouts) -> None:
    assert store.next_id() == "1"
    store.save(plan_only(World(2)), None)
    assert store.next_id() == "8"


@pytest.mark.parametrize("rollout_id", ["", "8", "-7", "７", "7 ", "flow-threat:1", "9" * 40])
def test_there_is_no_rollout_of_another_id(store: SqliteRollouts, rollout_id: str) -> None:
    store.save(plan_only(World(2)), None)
    assert store.load(rollout_id) is None


def test_an_ended_rollout_is_unfinished_until_everything_is_taken_back(store: SqliteRollouts) -> None:
    world = World(2)
    started = world.start()
    ended = machine.abort(started, "ana", world.now)
    store.save(ended, None)
    assert store.unfinished() == [ended]
    done = machine.performed(ended, {world.order()[0]: 2})
    store.save(done, ended)
    assert store.unfinished() == []


def test_the_newest_come_first(store: SqliteRollouts) -> None:
    world = World(2)
    rollout = world.start()
    for number in range(1, 6):
        store.save(_numbered(rollout, number), None)
    assert [item.id for item in store.newest(3)] == ["5", "4", "3"]


def _numbered(rollout: machine.Rollout, number: int, **fields: object) -> machine.Rollout:
    return machine.replace(rollout, id=str(number), **fields)  # type: ignore[arg-type]


def test_what_stands_for_an_agent_is_newer_than_what_decided_about_it(store: SqliteRollouts) -> None:
    world = World(2)
    world.move("0", "1", number=1)
    done = world.start("100%", soak_s=0)
    world.obey()
    world.tick()
    assert world.it.has_ended
    for number, name in ((1, "flow-threat:1"), (2, "flow-threat:2"), (3, "flow-threat:3")):
        store.save(_numbered(world.it, number, version=name, selector=f"n{number}"), None)
    store.save(_numbered(done, 4, selector="running"), None)
    standing = store.standing_for("stranger")
    assert standing == [Standing(MODEL, f"flow-threat:{n}", f"n{n}", world.it.ended) for n in (3, 2, 1)]
    assert store.standing_for("0") == []


def test_nothing_is_kept_of_a_save_that_fails(database: Database, store: SqliteRollouts) -> None:
    world = World(2)
    before = world.start()
    store.save(before, None)
    world.apply("abort")
    with database.transaction() as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE INSERT ON rollout_members BEGIN SELECT RAISE(ABORT, 'disk says no'); END"
        )
    with pytest.raises(ControllerError):
        store.save(world.it, before)
    assert store.load("7") == before
