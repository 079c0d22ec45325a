"""A backup of yesterday is put back: nobody is moved back, nothing is given out twice, and it says so."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from tests.integration.controller.test_streams import desired_from
from tests.support.controller import Appliance, Running, code_of, prepare, running
from vedette.controller.__main__ import main
from vedette.controller.domain.errors import Refused
from vedette.controller.settings import ControllerSettings
from vedette.models.assignment import SlotAssignment
from vedette.wire.v1 import admin_pb2
from vedette.wire.values import BuildRef, SlotState, SlotStatus, Status

Change = Callable[[Running], Awaitable[Any]]


def runs(*targets: SlotAssignment, sequence: int) -> dict[str, Any]:
    """Return the hello of an agent that serves these."""
    slots = tuple(
        SlotStatus(
            slot=target.slot,
            state=SlotState.ACTIVE,
            active=BuildRef(model=target.model, version=target.version, build=target.build),
        )
        for target in targets
    )
    status = Status(desired_sequence=sequence, attempted_sequence=sequence, running_sequence=sequence, slots=slots)
    return {"status": status, "highest_sequence": sequence, "applied_digest": f"sha256:of-{sequence}"}


class Story:
    """A controller that is backed up, goes on, and is restored; the appliance ``edge`` lives through all of it."""

    def __init__(self, folder: Path) -> None:
        self.settings: ControllerSettings = prepare(folder / "data")
        self.config = folder / "data" / "controller.toml"
        self.backup = folder / "backup.tar"

    async def before(self, *changes: Change) -> Appliance:
        """Enrol the appliance, make the changes, back up while serving."""
        async with running(self.settings) as served:
            edge = await served.enrolled("edge")
            for change in changes:
                await change(served)
            words = ["backup", "--config", str(self.config), str(self.backup)]
            assert await asyncio.to_thread(main, words) == 0
        return edge

    async def after(self, *changes: Change) -> None:
        """Make changes that the backup does not have."""
        async with running(self.settings) as served:
            for change in changes:
                await change(served)

    def restore(self) -> None:
        assert main(["restore", str(self.backup), "--data-dir", str(self.settings.data_dir), "--yes"]) == 0


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def assign(version: int, model: str = "flow-threat") -> Change:
    async def change(served: Running) -> int:
        fleet = served.controller.rooms.fleet
        return await fleet.set_slot((await fleet.agent("edge")).id, served.release(version, model))

    return change


def register(version: int) -> Change:
    async def change(served: Running) -> SlotAssignment:
        return served.release(version)

    return change


async def shown(served: Running, name: str = "edge") -> Any:
    async with served.admin() as admin:
        return await admin.GetAgent(admin_pb2.GetAgentRequest(name=name))


async def test_an_agent_that_runs_what_was_lost_is_held_until_a_person_decides(story: Story):
    edge = await story.before(assign(1))
    lost: list[SlotAssignment] = []

    async def go_on(served: Running) -> None:
        lost.append(served.release(2))

    await story.after(go_on, assign(2))
    story.restore()
    async with running(story.settings) as served:
        edge._running = served
        async with edge.connected(**runs(lost[0], sequence=2)) as stream:
            agent = await shown(served)
            assert [item.code for item in agent.conditions] == ["held-after-restore"]
            assert "flow-threat:2" in agent.conditions[0].text
            assert agent.desired_sequence == 1  # nothing was issued

            target = served.release(3)
            assert target.version == 3  # 2 was given out
            await served.controller.rooms.fleet.set_slot(edge.id, target)
            told = await desired_from(stream, served)
            assert (told.sequence, [slot.version for slot in told.slots]) == (3, [3])
            assert not (await shown(served)).conditions


async def test_a_held_agent_stays_held_over_a_restart(story: Story):
    edge = await story.before(assign(1))
    lost: list[SlotAssignment] = []

    async def go_on(served: Running) -> None:
        lost.append(served.release(2))

    await story.after(go_on, assign(2))
    story.restore()
    for _ in range(2):
        async with running(story.settings) as served:
            edge._running = served
            async with edge.connected(**runs(lost[0], sequence=2)):
                agent = await shown(served)
                assert ([item.code for item in agent.conditions], agent.desired_sequence) == (["held-after-restore"], 1)


async def test_an_agent_that_went_on_to_a_known_version_keeps_it_under_a_higher_number(story: Story):
    edge = await story.before(register(1), register(2), assign(1))
    await story.after(assign(2), assign(1), assign(2))
    story.restore()
    async with running(story.settings) as served:
        edge._running = served
        second = served.release(2)
        async with edge.connected(**runs(second, sequence=4)) as stream:
            told = await desired_from(stream, served)
        assert (told.sequence, told.slots) == (5, (second,))
        assert not (await shown(served)).conditions


async def test_a_held_slot_is_not_emptied_by_a_decision_about_another(story: Story):
    edge = await story.before(assign(1))
    lost: list[SlotAssignment] = []

    async def go_on(served: Running) -> None:
        lost.append(served.release(1, "other"))

    await story.after(go_on, assign(1, "other"))
    story.restore()
    async with running(story.settings) as served:
        edge._running = served
        known = served.release(1)
        async with edge.connected(**runs(known, lost[0], sequence=2)):
            with pytest.raises(Refused, match="is held"):
                await served.controller.rooms.fleet.set_slot(edge.id, served.release(9))
            with pytest.raises(Refused, match="is held"):
                await served.controller.rooms.fleet.clear_slot(edge.id, "flow-threat")
            rollouts = served.controller.rooms.rollouts
            with pytest.raises(Refused, match="are held by what they run in other slots"):
                await rollouts.begin("flow-threat:1", "", ["100%"], soak_s=0, timeout_s=60, by="t")


async def test_an_agent_that_did_not_move_is_asked_for_what_was_wanted(story: Story):
    edge = await story.before(register(1), assign(1), assign(2))
    story.restore()
    async with running(story.settings) as served:
        edge._running = served
        first = served.release(1)
        async with edge.connected(**runs(first, sequence=1)) as stream:
            told = await desired_from(stream, served)
    assert (told.sequence, [slot.version for slot in told.slots]) == (2, [2])


async def test_a_rollout_of_before_goes_on_but_moves_nobody_back(story: Story):
    async def roll_out(served: Running) -> None:
        served.release(1)
        await served.controller.rooms.rollouts.begin("flow-threat:1", "", ["100%"], soak_s=0, timeout_s=600, by="t")
        await served.controller.rooms.rollouts.tick()

    edge = await story.before(roll_out)
    lost: list[SlotAssignment] = []

    async def go_on(served: Running) -> None:
        await served.controller.rooms.rollouts.abort("1", "t")
        lost.append(served.release(2))

    await story.after(go_on, assign(2))
    story.restore()
    async with running(story.settings) as served:
        edge._running = served
        rollouts = served.controller.rooms.rollouts
        assert (await rollouts.rollout("1")).state == "running"
        async with edge.connected(**runs(lost[0], sequence=2)):
            await rollouts.tick()
            rollout = await rollouts.rollout("1")
            (member,) = rollout.waves[0].members
            assert (rollout.state, member.state) == ("stopped", "superseded")
            assert "moved on" in member.reason
            agent = await served.controller.rooms.fleet.agent("edge")
            assert (agent.desired_sequence, bool(agent.held)) == (1, True)
        begun = await rollouts.begin("flow-threat:1", "", ["100%"], soak_s=0, timeout_s=600, by="t")
        assert begun.rollout == "2"


async def test_an_agent_enrolled_after_the_backup_is_told_to_enrol_again(story: Story):
    await story.before()
    late: list[Appliance] = []

    async def enrol(served: Running) -> None:
        late.append(await served.enrolled("late"))

    await story.after(enrol)
    story.restore()
    async with running(story.settings) as served:
        late[0]._running = served
        with pytest.raises(aio.AioRpcError) as caught:
            async with late[0].connected():
                pytest.fail("it was taken in")
    assert code_of(caught.value) == "agent-unknown"
    assert "restored from a backup" in (caught.value.details() or "")
    assert "enrol it again" in (caught.value.details() or "")


async def test_what_was_revoked_stays_revoked_and_tokens_of_before_are_spent(story: Story):
    tokens: list[Any] = []

    async def make_token(served: Running) -> None:
        tokens.append(await served.token())

    edge = await story.before(make_token)

    async def revoke(served: Running) -> None:
        await served.controller.rooms.fleet.revoke("edge")

    await story.after(revoke)
    story.restore()
    async with running(story.settings) as served:
        edge._running = served
        with pytest.raises(aio.AioRpcError) as caught:
            async with edge.connected():
                pytest.fail("it was taken in")
        assert code_of(caught.value) == "agent-revoked"
        with pytest.raises(aio.AioRpcError) as caught:
            await served.enrol(Appliance(served), tokens[0])
        assert code_of(caught.value) == "token-revoked"


async def test_a_running_controller_is_not_restored_over(story: Story, capsys: pytest.CaptureFixture[str]):
    await story.before()
    async with running(story.settings):
        words = ["restore", str(story.backup), "--data-dir", str(story.settings.data_dir), "--yes"]
        assert await asyncio.to_thread(main, words) == 4
    assert "stop it first" in capsys.readouterr().err


async def test_restore_asks_and_without_a_terminal_refuses(
    story: Story, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    await story.before()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["restore", str(story.backup), "--data-dir", str(story.settings.data_dir)]) == 4
    said = capsys.readouterr()
    assert "the same controller with 1 agents" in said.out
    assert "add --yes" in said.err
    assert not list(story.settings.data_dir.glob("before-restore-*"))
