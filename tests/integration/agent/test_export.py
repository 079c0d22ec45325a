"""Claims about telemetry in files, on the real agent."""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path

from tests.support.daemon import Daemon, enrolled
from tests.support.fake_controller import FakeController
from vedette.models.telemetry_file import batches_of, check_body, read_head
from vedette.wire.convert import BATCH
from vedette.wire.v1 import telemetry_pb2
from vedette.wire.values import TelemetryBatch


def read(path: Path) -> list[TelemetryBatch]:
    source = io.BytesIO(path.read_bytes())
    head = read_head(source)
    at = source.tell()
    check_body(source, head)
    source.seek(at)
    return [BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(body)) for body in batches_of(source, head)]


def waiting(daemon: Daemon) -> list[tuple[int, int]]:
    with sqlite3.connect(daemon.folder / "s/spool.db") as spool:
        return spool.execute("SELECT boot_epoch, sequence FROM batches ORDER BY 1, 2").fetchall()


def names(batches: list[TelemetryBatch]) -> list[tuple[int, int]]:
    return [(batch.boot_epoch, batch.sequence) for batch in batches]


async def test_all_that_waits_is_in_the_file_and_waits_still(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    await controller.stop()
    await daemon.start()
    await daemon.until(lambda _: len(waiting(daemon)) >= 3)
    file = daemon.folder / "edge.telemetry"
    assert await daemon.command("export-telemetry", str(file)) == 0  # while it runs
    exported = names(read(file))
    assert len(exported) >= 3
    assert await daemon.stop() == 0
    assert exported == waiting(daemon)[: len(exported)]
    assert await daemon.command("export-telemetry", str(file)) == 0  # and at rest
    assert names(read(file)) == waiting(daemon)


async def test_what_was_exported_is_sent_by_the_next_link_under_the_same_name(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    port, enrol_port = controller.port, controller.enrol_port
    await controller.stop()
    await daemon.start()
    await daemon.until(lambda _: len(waiting(daemon)) >= 2)
    file = daemon.folder / "edge.telemetry"
    assert await daemon.command("export-telemetry", str(file)) == 0
    await controller.start(port, enrol_port)
    exported = read(file)
    await controller.until(lambda c: c.committed.keys() >= set(names(exported)))
    assert [controller.committed[name] for name in names(exported)] == exported


async def test_an_agent_that_has_nothing_to_tell_still_proves_who_it_is(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    file = daemon.folder / "edge.telemetry"
    assert await daemon.command("export-telemetry", str(file)) == 0
    assert read(file) == []


async def test_a_failed_export_leaves_what_was_there(daemon: Daemon, controller: FakeController) -> None:
    file = daemon.folder / "edge.telemetry"
    file.write_bytes(b"old")
    assert await daemon.command("export-telemetry", str(file)) == 4  # not enrolled
    assert file.read_bytes() == b"old"
    await enrolled(daemon, controller)
    assert await daemon.command("export-telemetry", str(daemon.folder / "none/edge.telemetry")) == 1
    assert await daemon.command("export-telemetry", "/dev/full/x") == 1
    assert not list(daemon.folder.glob(".*"))
