"""A package is unpacked under the running agent, and taken back again."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.watched_agent import PREFIX


async def test_all_code_is_loaded_before_the_agent_says_that_it_is_ready(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    daemon.process = await daemon._spawn("run", module=("tests.support.watched_agent",))
    await daemon.until(lambda r: r["running"] and active(r) == 1)
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    await controller.until(lambda c: c.committed)
    controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
    await daemon.until(lambda r: active(r) == 2)
    controller.drop_streams()
    await controller.until(lambda c: len(c.hellos) > 1)
    await controller.stop()
    await daemon.until(lambda r: "controller-unreachable" in [c["code"] for c in r["conditions"]])
    assert daemon.metrics()["vedette_agent_workers"] == 1
    assert await daemon.stop() == 0
    before, ready, after = daemon.log().partition("runs as edge-7")
    assert ready
    assert f"{PREFIX}vedette.agent.app\n" in before
    assert [line for line in after.splitlines() if line.startswith(PREFIX)] == []


async def test_what_a_newer_version_stored_serves_after_a_downgrade(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    await controller.until(lambda c: c.committed)  # the first boot has told something
    await daemon.stop(signal.SIGKILL)
    newer(daemon)
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
    await daemon.until(lambda r: active(r) == 2)
    await controller.until(lambda c: len({epoch for epoch, _ in c.committed}) == 2)
    assert daemon.metrics()["vedette_agent_spool_damaged_total"] == 0


def newer(daemon: Daemon) -> None:
    """Change the files as a newer, compatible version does: tables, columns and fields more."""
    with closing(sqlite3.connect(daemon.settings.state_dir / "state.db")) as state:
        state.execute("INSERT INTO migrations VALUES ('state-99', '2030-01-01T00:00:00Z')")
        state.execute("CREATE TABLE wishes (wish TEXT)")
        for table in ("facts", "slots", "releases", "quarantine", "documents"):
            state.execute(f"ALTER TABLE {table} ADD COLUMN note TEXT NOT NULL DEFAULT ''")
        state.execute("UPDATE slots SET active = json_set(active, '$.priority', 7)")
        state.commit()
    with closing(sqlite3.connect(daemon.settings.state_dir / "spool.db")) as spool:
        spool.execute("ALTER TABLE batches ADD COLUMN priority INTEGER NOT NULL DEFAULT 0")
        spool.commit()


async def test_a_state_that_an_older_version_cannot_keep_is_refused_untouched(daemon: Daemon) -> None:
    await daemon.start()
    assert await daemon.stop() == 0
    path = daemon.settings.state_dir / "state.db"
    with closing(sqlite3.connect(path)) as state:
        state.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    assert await daemon.command("run") == 4
    assert await daemon.command("status") == 4
    assert path.read_bytes() == before
    assert "its format is 99, this version reads 1\ninstall that version again" in daemon.log()
