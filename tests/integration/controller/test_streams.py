import asyncio
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.support.clock import NOON, FakeClock
from tests.support.controller import FACTS, Appliance, Running, Stream, code_of, prepare, running
from vedette.controller.adapters.grpc import servicers
from vedette.controller.adapters.grpc.guard import MOST_CALLS
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, SlotAssignment, accept
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import unseal
from vedette.wire import convert
from vedette.wire.v1 import admin_pb2, admin_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from vedette.wire.values import (
    BuildRef,
    Condition,
    DesiredState,
    GenerationResult,
    Hello,
    Outcome,
    Severity,
    SlotState,
    SlotStatus,
    Status,
)


async def agent_of(running: Running, name: str) -> Any:
    async with running.admin() as admin:
        return convert.AGENT.from_wire(await admin.GetAgent(admin_pb2.GetAgentRequest(name=name)))


async def state_of(running: Running, name: str) -> str:
    return str((await agent_of(running, name)).state)


def opened(desired: DesiredState, running: Running) -> tuple[Assignment, dict[str, Release]]:
    """Return both documents as an agent verifies them."""
    payload = unseal(desired.assignment, ASSIGNMENT_TYPE, [running.keys.assignment.public])
    releases = [unseal(item, RELEASE_TYPE, [running.keys.release.public]) for item in desired.releases]
    parsed = [Release.from_bytes(item) for item in releases]
    return Assignment.from_bytes(payload), {release.digest: release for release in parsed}


async def desired_from(stream: Stream, running: Running) -> Assignment:
    word = await stream.hear()
    assert isinstance(word, DesiredState)
    assignment, releases = opened(word, running)
    accept(
        assignment, releases, agent_id=assignment.agent_id, highest_sequence=0, highest_digest="", now=assignment.issued
    )
    return assignment


async def end_of(stream: Stream) -> str:
    """Return our code of the error that ended a stream."""
    with pytest.raises(aio.AioRpcError) as caught:
        await stream.hear()
    return code_of(caught.value)


def running_slot(target: SlotAssignment) -> SlotStatus:
    build = BuildRef(model=target.model, version=target.version, build=target.build)
    return SlotStatus(slot=target.slot, state=SlotState.ACTIVE, active=build)


async def test_desired_state_reaches_a_connected_agent_signed_by_both_keys(served: Running):
    edge = await served.enrolled("edge")
    target = served.release()
    async with edge.connected() as stream:
        sequence = await served.controller.rooms.fleet.set_slot(edge.id, target)
        assignment = await desired_from(stream, served)
        assert (assignment.sequence, assignment.agent_id, assignment.slots) == (sequence, edge.id, (target,))
        assert await state_of(served, "edge") == "behind"
        await stream.say(Status(desired_sequence=1, running_sequence=1, slots=(running_slot(target),)))
        await served.changes.until(lambda: _is(served, "edge", "healthy"))
        agent = await agent_of(served, "edge")
    assert agent.slots["flow-threat"].active == agent.slots["flow-threat"].desired == "flow-threat:1"
    assert agent.running_sequence == agent.desired_sequence == 1
    assert agent.address == "127.0.0.1"


async def _is(running: Running, name: str, state: str) -> bool:
    return await state_of(running, name) == state


async def test_an_agent_that_was_away_gets_only_the_newest_assignment(served: Running):
    edge = await served.enrolled()
    for version in (1, 2, 3):
        await served.controller.rooms.fleet.set_slot(edge.id, served.release(version))
    async with edge.connected() as stream:
        assignment = await desired_from(stream, served)
        assert [slot.version for slot in assignment.slots] == [3]
        assert assignment.sequence == 3
        await served.controller.rooms.fleet.set_slot(edge.id, served.release(4))
        assert (await desired_from(stream, served)).sequence == 4


async def test_nothing_is_sent_when_the_agent_has_applied_what_is_desired(served: Running):
    edge = await served.enrolled()
    await served.controller.rooms.fleet.set_slot(edge.id, served.release(1))
    async with edge.connected() as stream:
        applied = await desired_from(stream, served)
    async with edge.connected(applied_digest=applied.digest, highest_sequence=1) as stream:
        await served.controller.rooms.fleet.set_slot(edge.id, served.release(2, "other"))
        second = await desired_from(stream, served)
    assert second.sequence == 2
    assert [slot.slot for slot in second.slots] == ["flow-threat", "other"]


async def test_the_same_target_again_issues_nothing(served: Running):
    edge = await served.enrolled()
    target = served.release()
    fleet = served.controller.rooms.fleet
    assert [await fleet.set_slot(edge.id, target) for _ in range(3)] == [1, 1, 1]
    assert await fleet.clear_slot(edge.id, "flow-threat") == 2
    assert await fleet.clear_slot(edge.id, "flow-threat") == 2
    assert await fleet.set_slot(edge.id, target) == 3


async def test_sequences_continue_above_what_an_agent_reports(served: Running):
    """A controller restored from a backup has issued less than its agents have seen."""
    edge = await served.enrolled()
    await served.controller.rooms.fleet.set_slot(edge.id, served.release())
    async with edge.connected(highest_sequence=41, applied_digest="sha256:other") as stream:
        assert (await desired_from(stream, served)).sequence == 42
        await stream.say(Status(desired_sequence=99))
        await served.changes.until(lambda: _has_seen(served, edge, 99))
        assert await served.controller.rooms.fleet.set_slot(edge.id, served.release(2)) == 100


async def _has_seen(running: Running, appliance: Appliance, sequence: int) -> bool:
    status = (await running.controller.rooms.fleet.agent(appliance.id)).status
    return status is not None and status.desired_sequence == sequence


async def test_a_refused_number_is_issued_anew_and_not_for_ever(served: Running):
    edge = await served.enrolled()
    await served.controller.rooms.fleet.set_slot(edge.id, served.release())
    async with edge.connected() as stream:
        for sequence in (1, 2, 3):
            assert (await desired_from(stream, served)).sequence == sequence
            await stream.say(GenerationResult(sequence=sequence, outcome=Outcome.REFUSED, code="sequence-reused"))
        assert (await desired_from(stream, served)).sequence == 4
        await stream.say(GenerationResult(sequence=4, outcome=Outcome.REFUSED, code="sequence-reused"))
        await served.changes.until(lambda: _is(served, edge.name, "degraded"))
        assert (await agent_of(served, edge.name)).desired_sequence == 4


async def test_an_assignment_near_its_end_is_issued_anew_at_the_next_hello(tmp_path: Path):
    clock = FakeClock()
    async with running(prepare(tmp_path / "data"), clock=clock) as served:
        edge = await served.enrolled()
        await served.controller.rooms.fleet.set_slot(edge.id, served.release())
        await clock.advance(60 * 86400)
        async with edge.connected() as stream:
            assignment = await desired_from(stream, served)
    assert assignment.sequence == 2
    assert (assignment.issued - NOON).days == 60


async def test_failures_and_conditions_make_an_agent_degraded(served: Running):
    edge = await served.enrolled()
    await served.controller.rooms.fleet.set_slot(edge.id, served.release())
    async with edge.connected() as stream:
        await desired_from(stream, served)
        await stream.say(Status(desired_sequence=1, attempted_sequence=1, failed_sequence=1))
        await served.changes.until(lambda: _is(served, edge.name, "degraded"))
        trouble = Condition(code="disk-full", severity=Severity.ERROR, text="no room", since=NOON)
        await stream.say(Status(desired_sequence=1, running_sequence=1))
        await served.changes.until(lambda: _is(served, edge.name, "healthy"))
        await stream.say(Status(desired_sequence=1, running_sequence=1, conditions=(trouble,)))
        await served.changes.until(lambda: _is(served, edge.name, "degraded"))
        assert (await agent_of(served, edge.name)).conditions == (trouble,)


async def test_a_second_stream_of_an_agent_ends_the_first(served: Running):
    edge = await served.enrolled()
    async with edge.connected() as first, edge.connected() as second:
        assert await end_of(first) == "stream-replaced"
        await served.controller.rooms.fleet.set_slot(edge.id, served.release())
        assert (await desired_from(second, served)).sequence == 1
        assert served.controller.rooms.fleet.online == 1


async def test_an_agent_that_leaves_is_silent(served: Running):
    edge = await served.enrolled("edge")
    async with edge.connected() as stream:
        await served.changes.until(lambda: _is(served, "edge", "healthy"))
        await stream.call.done_writing()
        assert await stream.call.read() is aio.EOF
    await served.changes.until(lambda: _is(served, "edge", "silent"))


async def test_a_stream_on_which_nothing_is_said_ends(tmp_path: Path):
    clock = FakeClock()
    async with running(prepare(tmp_path / "data"), clock=clock) as served:
        edge = await served.enrolled()
        async with edge.connected() as stream:
            await clock.advance(3.0)
            served.controller.rooms.fleet.end_silent()
            assert served.controller.rooms.fleet.online == 1
            await clock.advance(0.5)
            served.controller.rooms.fleet.end_silent()
            assert await end_of(stream) == "stream-silent"


@pytest.mark.parametrize("verb", ["RevokeAgent", "RemoveAgent"])
async def test_revoking_or_removing_ends_the_stream_and_every_call_after(served: Running, verb: str):
    edge = await served.enrolled("edge")
    other = await served.enrolled("other")
    async with edge.connected() as stream, other.connected() as bystander:
        async with served.admin() as admin:
            request = admin_pb2.RevokeAgentRequest if verb == "RevokeAgent" else admin_pb2.RemoveAgentRequest
            await getattr(admin, verb)(request(name="edge"))
        async with asyncio.timeout(5):
            ended = await end_of(stream)
        code = "agent-revoked" if verb == "RevokeAgent" else "agent-unknown"
        assert ended == code
        with pytest.raises(aio.AioRpcError) as caught:
            async with edge.connected():
                pass
        assert (code_of(caught.value), caught.value.code()) == (code, grpc.StatusCode.UNAUTHENTICATED)
        await served.controller.rooms.fleet.set_slot(other.id, served.release())
        assert (await desired_from(bystander, served)).sequence == 1


async def test_an_agent_cannot_call_admin_and_an_admin_cannot_be_an_agent(served: Running):
    edge = await served.enrolled()
    async with edge.channel() as channel:
        admin: Any = admin_pb2_grpc.AdminStub(channel)
        with pytest.raises(aio.AioRpcError) as caught:
            await admin.ListAgents(admin_pb2.ListAgentsRequest())
    assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.PERMISSION_DENIED, "method-forbidden")
    pems = (served.context.ca.encode(), served.context.key.encode(), served.context.certificate.encode())
    async with served.channel(served.controller.port, *pems) as channel:
        fleet: Any = fleet_pb2_grpc.FleetStub(channel)
        assert await end_of(Stream(fleet.Connect())) == "method-forbidden"


async def test_certificates_of_strangers_are_refused(served: Running, tmp_path: Path):
    """Another authority, none at all, an admin nobody knows, and an agent's name on another key."""
    authority = served.keys.authority
    async with running(prepare(tmp_path / "other")) as elsewhere:
        foreign = elsewhere.keys.authority.issue_admin("admin")
    for key, certificate in ((foreign.key, foreign.certificate), (None, None)):
        async with served.channel(served.controller.port, authority.pem, key, certificate) as channel:
            stub: Any = admin_pb2_grpc.AdminStub(channel)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.ListAgents(admin_pb2.ListAgentsRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for name in ("stranger", "admin"):
        made = authority.issue_admin(name)
        async with served.channel(served.controller.port, authority.pem, made.key, made.certificate) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.ListAgents(admin_pb2.ListAgentsRequest())
        assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.UNAUTHENTICATED, "admin-unknown")
    edge, impostor = await served.enrolled(), Appliance(served)
    impostor.id, impostor.certificate = edge.id, authority.issue_agent(edge.id, impostor._key.public_key())
    with pytest.raises(aio.AioRpcError) as caught:
        async with impostor.connected():
            pass
    assert code_of(caught.value) == "agent-unknown"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([fleet_pb2.AgentMessage()], "bad-message"),
        ([convert.agent_word_to_wire(Status())], "bad-message"),
        ([convert.agent_word_to_wire(Hello(facts=FACTS, status=Status()))] * 2, "hello-repeated"),
        ([convert.agent_word_to_wire(Hello(facts=FACTS, status=Status(), highest_sequence=2**60))], "sequence-invalid"),
        ([convert.agent_word_to_wire(Hello(facts=FACTS, status=Status(desired_sequence=2**60)))], "sequence-invalid"),
    ],
)
async def test_a_stream_that_breaks_the_contract_ends_with_the_reason(
    served: Running, words: list[fleet_pb2.AgentMessage], code: str
):
    edge = await served.enrolled()
    async with edge.channel() as channel:
        stub: Any = fleet_pb2_grpc.FleetStub(channel)
        call = stub.Connect()
        for word in words:
            await call.write(word)
        with pytest.raises(aio.AioRpcError) as caught:
            await drained(call)
        assert code_of(caught.value) == code
    await served.changes.until(lambda: _is_offline(served))


async def drained(call: Any) -> None:
    while await call.read() is not aio.EOF:
        pass
    await call


async def _is_offline(running: Running) -> bool:
    return running.controller.rooms.fleet.online == 0


async def test_observers_hear_in_order_and_one_that_fails_harms_nobody(served: Running):
    heard: list[Any] = []

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    class Observer:
        async def on_enrolled(self, agent_id: str) -> None:
            heard.append("enrolled")

        async def on_presence(self, agent_id: str, *, is_online: bool) -> None:
            heard.append(is_online)

        async def on_status(self, agent_id: str, status: Status) -> None:
            heard.append(status.desired_sequence)

        async def on_result(self, agent_id: str, result: GenerationResult) -> None:
            heard.append(str(result.outcome))

    served.controller.rooms.fleet.subscribe(Broken())  # type: ignore[arg-type]
    served.controller.rooms.fleet.subscribe(Observer())
    edge = await served.enrolled()
    await served.controller.rooms.fleet.set_slot(edge.id, served.release())
    async with edge.connected() as stream:
        await stream.say(Status(desired_sequence=1))
        applied = GenerationResult(sequence=1, outcome=Outcome.APPLIED)
        await stream.say(applied)
        await stream.say(applied)
        await stream.say(GenerationResult(sequence=7, outcome=Outcome.FAILED))
        await stream.call.done_writing()
        await stream.hear()
        assert await stream.call.read() is aio.EOF
    await served.changes.until(lambda: _is_offline(served))
    assert heard == ["enrolled", True, 0, 1, "applied", False]


async def _has_judged(running: Running, appliance: Appliance) -> bool:
    return (await running.controller.rooms.fleet.agent(appliance.id)).result is not None


async def test_a_restart_restores_everything(tmp_path: Path):
    settings = prepare(tmp_path / "data")
    async with running(settings) as served:
        edge = await served.enrolled("edge", labels={"site": "s1"})
        await served.enrolled("gone")
        target = served.release()
        await served.controller.rooms.fleet.set_slot(edge.id, target)
        async with edge.connected() as stream:
            await desired_from(stream, served)
            await stream.say(Status(desired_sequence=1, running_sequence=1, slots=(running_slot(target),)))
            await stream.say(GenerationResult(sequence=1, outcome=Outcome.APPLIED))
            await served.changes.until(lambda: _has_judged(served, edge))
        await served.controller.rooms.fleet.revoke("gone")
        before = await served.controller.rooms.fleet.agent("edge")
    async with running(settings) as served:
        after = await served.controller.rooms.fleet.agent("edge")
        for name in ("labels", "facts", "enrolled", "seen", "status", "result", "slots", "desired_sequence", "address"):
            assert getattr(after, name) == getattr(before, name), name
        assert await state_of(served, "edge") == "silent"
        assert await state_of(served, "gone") == "revoked"
        edge._running = served
        async with edge.connected() as stream:
            assert (await desired_from(stream, served)).slots == (target,)
            assert await served.controller.rooms.fleet.set_slot(edge.id, target) == 1


async def test_labels_are_set_removed_and_selected(served: Running):
    await served.enrolled("edge", labels={"site": "s1"})
    await served.enrolled("other")
    async with served.admin() as admin:
        agent = await admin.LabelAgent(
            admin_pb2.LabelAgentRequest(name="edge", set={"ring": "canary"}, remove=["site", "absent"])
        )
        found = await admin.ListAgents(admin_pb2.ListAgentsRequest(selector="ring in (canary), name!=other"))
        with pytest.raises(aio.AioRpcError) as caught:
            await admin.ListAgents(admin_pb2.ListAgentsRequest(selector="ring=(x)"))
        with pytest.raises(aio.AioRpcError) as missing:
            await admin.GetAgent(admin_pb2.GetAgentRequest(name="egde"))
    assert dict(agent.labels) == {"ring": "canary"}
    assert [item.name for item in found.agents] == ["edge"]
    assert code_of(caught.value) == "selector-invalid"
    assert "the nearest name is edge" in str(missing.value.details())


async def test_an_unknown_release_or_agent_cannot_be_desired(served: Running):
    edge = await served.enrolled()
    target = SlotAssignment("m", "m", 1, "sha256:" + "0" * 64, "sha256:" + "1" * 64)
    with pytest.raises(Exception, match="no such signed release"):
        await served.controller.rooms.fleet.set_slot(edge.id, target)
    with pytest.raises(Exception, match="no agent"):
        await served.controller.rooms.fleet.set_slot("a-none", target)
    await served.controller.rooms.fleet.revoke(edge.id)
    with pytest.raises(Exception, match="revoked"):
        await served.controller.rooms.fleet.set_slot(edge.id, served.release())


async def test_an_agent_has_so_many_calls_at_once_and_others_go_on(served: Running):
    greedy, other = await served.enrolled(), await served.enrolled()
    async with greedy.channel() as channel:
        stub: Any = fleet_pb2_grpc.FleetStub(channel)
        calls = [stub.Connect() for _ in range(40)]
        ends = [asyncio.create_task(_ended(call)) for call in calls]
        refused = islice(asyncio.as_completed(ends), 40 - MOST_CALLS["agent"])
        codes = [await asyncio.wait_for(end, 10) for end in refused]
        async with other.connected():
            pass
        for call in calls:
            call.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
    assert set(codes) == {"calls-too-many"}
    async with greedy.connected():
        pass


async def _ended(call: Any) -> str:
    with pytest.raises(aio.AioRpcError) as caught:
        await drained(call)
    return code_of(caught.value)


async def test_a_stream_without_hello_ends(served: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servicers, "HELLO_S", 0.05)
    edge = await served.enrolled()
    async with edge.channel() as channel:
        stub: Any = fleet_pb2_grpc.FleetStub(channel)
        assert await _ended(stub.Connect()) == "hello-missing"


async def test_statuses_wait_for_room_on_a_full_disk(served: Running):
    edge = await served.enrolled()
    database = served.controller.database

    def limit_pages(extra: int) -> None:
        with database.transaction() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + extra}")

    def stored() -> str:
        with database.transaction() as connection:
            status = connection.execute("SELECT length(status) FROM agents").fetchone()[0]
        return "small" if not status or status < 100_000 else "large"

    limit_pages(0)
    large = Status(slots=tuple(SlotStatus(slot=str(i), state=SlotState.FAILED, reason="x" * 4000) for i in range(16)))
    large = Status(slots=large.slots, conditions=condition_texts(16))
    async with edge.connected(status=large) as stream:
        fleet = served.controller.rooms.fleet
        assert not await fleet._statuses.write_now()
        assert stored() == "small"
        assert (await fleet.agent(edge.id)).status == large
        limit_pages(100_000)
        assert await fleet._statuses.write_now()
        assert stored() == "large"
        assert stream.call.done() is False


def condition_texts(count: int) -> tuple[Condition, ...]:
    return tuple(Condition(code=str(i), severity=Severity.INFO, text="y" * 4000, since=NOON) for i in range(count))
