"""An admin's context that is lost or leaked: made anew, and the former one is worth nothing."""

from pathlib import Path

import grpc
import pytest
from grpc import aio

from tests.support.controller import Appliance, Running, running
from vedette.controller.__main__ import main
from vedette.controller.context import AdminContext
from vedette.controller.settings import ControllerSettings
from vedette.wire.v1 import admin_pb2


def renewed(config: Path) -> int:
    return main(["admin", "--config", str(config), "--yes"])


async def overview(served: Running, context: AdminContext) -> admin_pb2.Overview:
    """Ask as the admin of this context."""
    served.context = context
    async with served.admin() as admin:
        return await admin.GetOverview(admin_pb2.GetOverviewRequest())


async def test_the_new_context_opens_and_the_former_one_is_refused(config: Path):
    former = AdminContext.load(config.parent / "admin.toml")
    assert renewed(config) == 0
    context = AdminContext.load(config.parent / "admin.toml")
    async with running(ControllerSettings.load(config)) as served:
        await overview(served, context)
        with pytest.raises(aio.AioRpcError) as caught:
            await overview(served, former)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert str(caught.value.details()).splitlines()[0] == "the controller does not know this admin"
    assert "vedette login FILE" in str(caught.value.details())
    assert (context.ca, context.address, context.name) == (former.ca, former.address, former.name)
    assert (config.parent / "admin.toml").stat().st_mode & 0o777 == 0o600


async def test_agents_notice_nothing(config: Path):
    async with running(ControllerSettings.load(config)) as served:
        edge: Appliance = await served.enrolled("edge")
    assert renewed(config) == 0
    async with running(ControllerSettings.load(config)) as served:
        edge._running = served
        async with edge.connected():
            assert (await overview(served, AdminContext.load(config.parent / "admin.toml"))).online == 1


async def test_a_controller_that_serves_must_be_stopped_first(config: Path, capsys: pytest.CaptureFixture[str]):
    before = (config.parent / "admin.toml").read_text()
    async with running(ControllerSettings.load(config)):
        assert renewed(config) == 4
    assert "stop it first" in capsys.readouterr().err
    assert (config.parent / "admin.toml").read_text() == before


def test_nothing_is_done_when_there_is_nobody_to_ask(config: Path, capsys: pytest.CaptureFixture[str]):
    before = (config.parent / "admin.toml").read_text()
    assert main(["admin", "--config", str(config)]) == 4
    assert "add --yes" in capsys.readouterr().err
    assert (config.parent / "admin.toml").read_text() == before


def test_who_may_not_write_there_is_told_who_may(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("os.access", lambda path, mode: path != config.parent)  # root may do anything
    assert renewed(config) == 4
    assert "run it as root" in capsys.readouterr().err


async def test_a_lost_context_is_made_anew_where_agents_connect_to(config: Path):
    (config.parent / "admin.toml").unlink()
    (config.parent / "admin.toml.new").write_text("cut by a power failure")
    assert renewed(config) == 0
    context = AdminContext.load(config.parent / "admin.toml")
    assert context.address == ControllerSettings.load(config).addresses[0]
    assert not (config.parent / "admin.toml.new").exists()
    async with running(ControllerSettings.load(config)) as served:
        await overview(served, context)
