import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vedette.controller.adapters.sqlite.database import Database, Migration, script
from vedette.controller.domain.errors import DiskFull, StoreFailed

THINGS = script(
    "things-1", "CREATE TABLE things (name TEXT PRIMARY KEY); -- note; here\nINSERT INTO things VALUES ('a');"
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "controller.db")
    made.migrate([THINGS])
    yield made
    made.close()


def names(database: Database) -> list[str]:
    with database.transaction() as connection:
        return [row["name"] for row in connection.execute("SELECT name FROM things ORDER BY name")]


def insert(database: Database, name: str) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO things VALUES (?)", (name,))


def test_migrations_run_once(database: Database):
    database.migrate([THINGS])
    assert names(database) == ["a"]


def test_damage_that_sqlite_cannot_put_into_words_is_told_as_any_other(tmp_path: Path, database: Database):
    database.close()
    path = tmp_path / "controller.db"
    data = path.read_bytes()
    place = data.rindex(b"tablethings") + len(b"table")
    path.write_bytes(data[:place] + b"\xec\x41" + data[place + 2 :])  # in the schema, which its error quotes
    with pytest.raises(StoreFailed, match="database failed"):
        Database(path).migrate([THINGS])


def test_a_failed_migration_leaves_no_trace_and_is_repeated(database: Database):
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO things VALUES ('half')")
        raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        database.migrate([Migration("half", half)])
    assert names(database) == ["a"]
    database.migrate([script("half", "INSERT INTO things VALUES ('whole');")])
    assert names(database) == ["a", "whole"]


def test_a_migration_cut_inside_a_statement_is_refused(database: Database):
    with pytest.raises(ValueError, match="inside a statement"):
        database.migrate([script("cut", "INSERT INTO things VALUES ('x'")])


def test_migrations_of_a_newer_controller_are_named(database: Database):
    assert database.unknown_migrations([]) == ("things-1",)
    assert database.unknown_migrations([THINGS]) == ()


def test_a_transaction_that_raises_changes_nothing(database: Database):
    def fail() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO things VALUES ('b')")
            raise KeyError("later")

    with pytest.raises(KeyError, match="later"):
        fail()
    assert names(database) == ["a"]


def test_nested_transactions_are_refused_and_the_outer_one_goes_on(database: Database):
    with database.transaction() as connection:
        with pytest.raises(RuntimeError, match="already open"), database.transaction():
            pass
        connection.execute("INSERT INTO things VALUES ('b')")
    assert names(database) == ["a", "b"]


def test_transactions_of_threads_wait_for_each_other(database: Database):
    with database.transaction() as connection:
        thread = threading.Thread(target=insert, args=(database, "c"))
        thread.start()
        connection.execute("INSERT INTO things VALUES ('b')")
        seen = [row["name"] for row in connection.execute("SELECT name FROM things ORDER BY name")]
    thread.join()
    assert seen == ["a", "b"]
    assert names(database) == ["a", "b", "c"]


async def test_coroutines_get_results_and_typed_errors(database: Database):
    await asyncio.gather(*(database.run(insert, database, str(i)) for i in range(5)))
    assert await database.run(names, database) == ["0", "1", "2", "3", "4", "a"]
    with pytest.raises(StoreFailed, match="database failed") as caught:
        await database.run(insert, database, "a")
    assert "SQLITE_CONSTRAINT" in caught.value.why


def test_a_full_disk_is_typed_and_the_database_goes_on(tmp_path: Path):
    database = Database(tmp_path / "small.db", max_pages=12)
    database.migrate([THINGS])
    with pytest.raises(DiskFull, match="no room"):
        insert(database, "x" * 100_000)
    insert(database, "small")
    assert names(database) == ["a", "small"]
    database.close()


def test_the_file_is_private_and_durable(database: Database):
    assert database.path.stat().st_mode & 0o777 == 0o600
    with database.transaction() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / "x.db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StoreFailed, match="failed"):
        Database(tmp_path / "x.db")
    with pytest.raises(StoreFailed, match="a file of the controller failed"):
        Database(tmp_path / "absent" / "x.db")


def test_damage_finds_orphans(database: Database):
    assert database.damage() is None
    database.migrate([script("parts", "CREATE TABLE parts (thing TEXT REFERENCES things (name));")])
    other = sqlite3.connect(database.path)
    with other:
        other.execute("INSERT INTO parts VALUES ('nobody')")
    other.close()
    assert database.damage() == "a row of parts refers to a missing row of things"
