"""Claims about files between a real controller and real agents that no network joins."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from tests.integration.controller.test_restore_with_an_agent import register, serves
from tests.integration.rollouts.test_rollouts import Typed
from tests.support.controller import Appliance, Running, code_of, prepare, running
from tests.support.daemon import Daemon
from vedette.controller.adapters.pki import CertificateAuthority
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment
from vedette.models.bundle import Bundle, PartKind
from vedette.models.signing import unseal
from vedette.models.telemetry_file import read_head, start_of
from vedette.wire.v1 import admin_pb2, admin_pb2_grpc

DEAD_END = 'controller = ["127.0.0.1:9"]\n'


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(prepare(tmp_path / "data")) as made:
        yield made


@pytest.fixture
def vedette(served: Running, tmp_path: Path) -> Typed:
    path = tmp_path / "admin.toml"
    path.write_text(replace(served.context, address=f"127.0.0.1:{served.controller.port}").to_toml())
    return Typed(path)


@pytest.fixture
async def edge(served: Running, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A real agent, enrolled, whose link leads nowhere."""
    (tmp_path / "edge").mkdir()
    made = Daemon(tmp_path / "edge")
    assert await made.command("enroll", "--token", (await served.token()).encode()) == 0
    made.config.write_text(DEAD_END + made.config.read_text())
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop()


def parts_of(path: Path) -> list[tuple[str, bytes]]:
    return [(part.kind, b"".join(pieces)) for part, pieces in Bundle(io.BytesIO(path.read_bytes()))]


async def test_a_model_reaches_an_island_by_file_and_a_link_finds_both_of_one_mind(
    served: Running, vedette: Typed, edge: Daemon, tmp_path: Path
) -> None:
    async with served.admin() as admin:
        await register(admin, 2)
        await register(admin, 3)
    await edge.start()
    for number in (1, 2):
        file = tmp_path / f"{number}.bundle"
        code, said, err = await vedette("model", "export", f"plain:{number}", str(file), "--for", "name=edge-7")
        assert (code, said["agents"]) == (0, [{"agent": "edge-7", "sequence": number}]), err
        assert said["bytes"] == file.stat().st_size
        assert await edge.command("import", str(file)) == 0
        await edge.until(serves(number))
    assert "plain: plain:1 → plain:2" in edge.log()
    await edge.stop()

    edge.config.write_text(edge.config.read_text().removeprefix(DEAD_END))
    await edge.start()
    await edge.until(lambda report: report["link"]["state"] == "connected")

    async def healthy() -> bool:
        _, agent, _ = await vedette("agent", "show", "edge-7")
        return bool(agent["state"] == "healthy" and agent["running_sequence"] == 2)

    await served.changes.until(healthy)
    assert serves(2)(edge.report())
    assert served.controller.rooms.artifacts.sent_bytes == 0


async def test_a_bundle_without_assignments_is_refused_by_every_appliance(
    served: Running, vedette: Typed, edge: Daemon, tmp_path: Path
) -> None:
    async with served.admin() as admin:
        await register(admin, 2)
    file = tmp_path / "plain.bundle"
    code, said, _ = await vedette("model", "export", "plain", str(file))
    assert (code, said["version"], said["agents"]) == (0, "plain:1", [])
    assert {kind for kind, _ in parts_of(file)} == {PartKind.RELEASE, PartKind.BLOB}
    assert await edge.command("import", str(file)) == 4
    assert "it holds a model and says for no appliance to run it" in edge.log()


async def test_a_file_for_many_has_each_ones_own_assignment(served: Running, vedette: Typed, tmp_path: Path) -> None:
    slot = served.release(1)
    agents = [await served.enrolled(f"edge-{number}", labels={"site": "island"}) for number in range(3)]
    file = tmp_path / "island.bundle"
    words = ("model", "export", "flow-threat:1", str(file), "--for", "site=island")
    code, _, err = await vedette(*words)
    assert code == 0, err
    first = file.read_bytes()
    assert (await vedette(*words))[0] == 0
    assert file.read_bytes() == first
    keys = [served.keys.assignment.public]
    found = [
        Assignment.from_bytes(unseal(envelope, ASSIGNMENT_TYPE, keys))
        for kind, envelope in parts_of(file)
        if kind == PartKind.ASSIGNMENT
    ]
    assert {one.agent_id for one in found} == {agent.id for agent in agents}
    assert {one.slots for one in found} == {(slot,)}


async def test_an_agent_that_is_connected_is_not_moved_past_the_gates(
    served: Running, vedette: Typed, tmp_path: Path
) -> None:
    served.release(1)
    edge = await served.enrolled("edge-1")
    async with edge.connected():
        code, _, err = await vedette("model", "export", "flow-threat:1", str(tmp_path / "x"), "--for", "")
    assert code == 4
    assert "edge-1 would be moved at once" in err
    assert not (tmp_path / "x").exists()
    code, _, err = await vedette("model", "export", "flow-threat:1", str(tmp_path / "x"), "--for", "site=none")
    assert code == 4
    assert "no agent matches 'site=none'" in err


async def test_who_has_no_admins_certificate_exports_nothing(served: Running, vedette: Typed, tmp_path: Path) -> None:
    edge = await served.enrolled("edge")
    served.release(1)
    async with edge.channel() as channel:
        stub: Any = admin_pb2_grpc.AdminStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ExportModel(admin_pb2.ExportModelRequest(version="flow-threat:1", assign=True)).read()
    assert code_of(caught.value) == "method-forbidden"
    assert served.controller.rooms.fleet.desired_slots(edge.id) == ()


async def exported(edge: Daemon, tmp_path: Path) -> Path:
    """Return what an agent that has run for a moment writes into a file."""
    await edge.start()
    spool = tmp_path / "edge/s/spool.db"

    def waits(_: object) -> bool:
        with sqlite3.connect(spool) as opened:
            return bool(opened.execute("SELECT count(*) > 2 FROM batches").fetchone()[0])

    await edge.until(waits)
    await edge.stop()
    file = tmp_path / "edge.telemetry"
    assert await edge.command("export-telemetry", str(file)) == 0
    return file


async def test_telemetry_by_file_counts_once_however_often_and_by_whatever_way_it_comes(
    served: Running, vedette: Typed, edge: Daemon, tmp_path: Path
) -> None:
    file = await exported(edge, tmp_path)
    code, first, err = await vedette("telemetry", "import", str(file))
    assert code == 0, err
    assert first["counted"] == first["batches"] > 2
    assert (first["agent"], first["refused"]) == ("edge-7", 0)
    _, again, _ = await vedette("telemetry", "import", str(file))
    assert (again["counted"], again["batches"]) == (0, first["batches"])

    edge.config.write_text(edge.config.read_text().removeprefix(DEAD_END))
    await edge.start()
    telemetry = served.controller.rooms.telemetry
    while telemetry.repeated < 2 * first["batches"]:  # noqa: ASYNC110 - the test's time-out ends it
        await asyncio.sleep(0.05)
    assert telemetry.repeated == 2 * first["batches"]


async def test_telemetry_that_is_not_proven_is_not_counted(
    served: Running, vedette: Typed, edge: Daemon, tmp_path: Path
) -> None:
    file = await exported(edge, tmp_path)
    whole = file.read_bytes()
    source = io.BytesIO(whole)
    head = read_head(source)
    stranger = Appliance(served)
    foreign = CertificateAuthority(CertificateAuthority.create("other")).issue_agent(head.agent, stranger.public_key)
    forged = {
        2: [whole[:-1], whole + b"x", whole[:-1] + bytes([whole[-1] ^ 1]), b"garbage" * 9],
        4: [
            start_of(replace(head, certificate=foreign), stranger.key) + whole[source.tell() :],
            start_of(head, stranger.key) + whole[source.tell() :],
            start_of(replace(head, agent="another"), (tmp_path / "edge/s/enrolment/key.pem").read_bytes())
            + whole[source.tell() :],
        ],
    }
    for expected, files in forged.items():
        for data in files:
            (tmp_path / "forged").write_bytes(data)
            code, _, err = await vedette("telemetry", "import", str(tmp_path / "forged"))
            assert code == expected, err
    assert served.controller.rooms.telemetry.batches == 0


async def test_a_revoked_agents_file_is_refused(served: Running, vedette: Typed, edge: Daemon, tmp_path: Path) -> None:
    file = await exported(edge, tmp_path)
    assert (await vedette("agent", "revoke", "edge-7", "--yes"))[0] == 0
    code, _, err = await vedette("telemetry", "import", str(file))
    assert code == 4
    assert "was revoked" in err
    assert served.controller.rooms.telemetry.batches == 0
