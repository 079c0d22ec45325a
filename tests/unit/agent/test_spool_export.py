"""Claims about what a spool hands out for a file, beside the agent that goes on with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.unit.agent.test_spool import window
from vedette.agent.adapters.storage.spool import Spool, handed_out
from vedette.agent.domain.errors import StateError
from vedette.wire.convert import BATCH
from vedette.wire.v1 import telemetry_pb2

MANY = 40  # more than are marked at once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def filled(path: Path, count: int = MANY) -> Spool:
    spool = Spool(path, 1 << 30, boot_epoch=3)
    for _ in range(count):
        spool.append([window()])
    return spool


def names(bodies: list[bytes]) -> list[tuple[int, int]]:
    batches = [BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(body)) for body in bodies]
    return [(batch.boot_epoch, batch.sequence) for batch in batches]


def held(path: Path) -> dict[int, int]:
    with sqlite3.connect(path) as opened:
        return dict(opened.execute("SELECT sequence, hold FROM batches").fetchall())


def test_all_that_waits_is_handed_out_in_order_and_each_time_the_same(path: Path) -> None:
    filled(path)
    with handed_out(path) as bodies:
        first = list(bodies())
        assert names(first) == [(3, sequence) for sequence in range(1, MANY + 1)]
        assert list(bodies()) == first


def test_what_was_handed_out_is_marked_as_sent_and_what_comes_meanwhile_is_in_the_next_file(path: Path) -> None:
    spool = filled(path)
    with handed_out(path) as bodies:
        spool.append([window()])
        assert len(names(list(bodies()))) == MANY
        spool.acknowledge(3, 1)  # the agent goes on, and the file keeps what it had
        assert len(names(list(bodies()))) == MANY
    assert set(held(path).items()) >= {(sequence, 2) for sequence in range(2, MANY + 1)}
    assert held(path)[MANY + 1] == 0
    with handed_out(path) as bodies:
        assert names(list(bodies()))[-1] == (3, MANY + 1)


def test_nothing_is_deleted_by_it(path: Path) -> None:
    spool = filled(path, 3)
    before = spool.bytes_waiting
    with handed_out(path) as bodies:
        list(bodies())
    assert Spool(path, 1 << 30, boot_epoch=4).bytes_waiting == before


def test_a_file_that_is_no_spool_is_an_error_of_ours(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError), handed_out(path):
        pass
