"""The program itself: started, stopped, killed."""

import asyncio
import contextlib
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc import aio

from tests.integration.controller.test_telemetry import window
from tests.support.controller import Appliance, code_of, running
from tests.support.controller_process import Client, program
from vedette.controller.__main__ import main
from vedette.controller.settings import ControllerSettings
from vedette.wire import convert
from vedette.wire.v1 import admin_pb2
from vedette.wire.values import TelemetryBatch

MOST_RESIDENT_BYTES = 200 * 1024 * 1024
HEAVY = re.compile(r"/(onnxruntime|onnx|sklearn|lightgbm|pyarrow|scipy|pandas)/")


async def report(appliance: Appliance) -> None:
    batch = TelemetryBatch(boot_epoch=1, sequence=1, windows=(window(),))
    async with appliance.telemetry() as stub:
        await stub.Report(convert.BATCH.to_wire(batch))


async def test_a_batch_committed_before_a_kill_counts_once_when_it_is_repeated(config: Path, systemd: socket.socket):
    module = "tests.support.stuck_controller"
    async with program(config, systemd, module, str(config)) as process:
        edge = await Client(config).enrolled("edge")
        sending = asyncio.create_task(report(edge))
        assert process.stdout
        assert await process.stdout.readline() == b"committed\n"
        process.kill()
        with pytest.raises(aio.AioRpcError) as caught:
            await sending
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with running(ControllerSettings.load(config)) as served:
        edge._running = served
        await report(edge)
        assert (served.controller.rooms.telemetry.batches, served.controller.rooms.telemetry.repeated) == (0, 1)
        async with served.admin() as admin:
            agent = await admin.GetAgent(admin_pb2.GetAgentRequest(name="edge"))
    assert agent.rows == 100


async def test_a_terminated_controller_tells_its_agents_and_ends_well(config: Path, systemd: socket.socket):
    async with program(config, systemd) as process:
        edge = await Client(config).enrolled("edge")
        async with edge.connected() as stream:
            process.send_signal(signal.SIGTERM)
            with pytest.raises(aio.AioRpcError) as caught:
                await stream.hear()
        assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "controller-stopping")
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert systemd.recv(100) == b"STOPPING=1"


async def test_the_event_loop_feeds_the_watchdog_and_a_hung_one_does_not(
    config: Path, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    async with program(config, systemd) as process:
        for _ in range(3):
            fed = (await asyncio.to_thread(systemd.recv, 1000)).decode().splitlines()
            assert fed[0] == "WATCHDOG=1"
            assert fed[1].startswith("STATUS=0 of 0 agents online; port ")
        process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(_drained, systemd)
        process.send_signal(signal.SIGCONT)
        assert (await asyncio.to_thread(systemd.recv, 1000)).startswith(b"WATCHDOG=1")


def _drained(systemd: socket.socket) -> None:
    """Read until nothing comes for five times as long as something should; what was on its way counts as read."""
    systemd.settimeout(1.0)
    with contextlib.suppress(TimeoutError):
        for _ in range(10):
            systemd.recv(100)
        pytest.fail("a stopped controller goes on feeding the watchdog")
    systemd.settimeout(30)


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def test_a_server_is_small_and_loads_no_training_library(config: Path, systemd: socket.socket):
    async with program(config, systemd) as process:
        for number in range(3):
            await report(await Client(config).enrolled(f"edge-{number}"))
        maps = await asyncio.to_thread(_proc, process.pid, "maps")
        status = await asyncio.to_thread(_proc, process.pid, "status")
        limits = await asyncio.to_thread(_proc, process.pid, "limits")
    assert HEAVY.findall(maps) == []
    assert re.search(r"Max core file size +0 +0", limits)  # its memory holds every key
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident
    assert int(resident[1]) * 1024 < MOST_RESIDENT_BYTES


async def test_only_tls_1_3_is_spoken(config: Path, systemd: socket.socket):
    def handshake(port: int, version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(("127.0.0.1", port), 10) as raw, context.wrap_socket(raw) as wrapped:
            return wrapped.version()

    async with program(config, systemd):
        ports = Client(config).controller
        for port in (ports.port, ports.enrol_port):
            assert await asyncio.to_thread(handshake, port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
            with pytest.raises(OSError):  # noqa: PT011 - an alert or a reset, by version of OpenSSL
                await asyncio.to_thread(handshake, port, ssl.TLSVersion.TLSv1_2)


async def test_a_second_controller_on_the_same_data_or_port_is_refused(
    config: Path, tmp_path: Path, systemd: socket.socket, capsys: pytest.CaptureFixture[str]
):
    async with program(config, systemd):
        assert await asyncio.to_thread(main, ["serve", "--config", str(config)]) == 4
        assert "another controller serves" in capsys.readouterr().err
        assert main(["check", "--config", str(config)]) == 0
        assert main(["init", "--data-dir", str(tmp_path / "other"), "--listen", "127.0.0.1:0"]) == 0
        other = tmp_path / "other" / "controller.toml"
        listen = ControllerSettings.load(config).listen
        other.write_text(re.sub(r"^listen = .*$", f'listen = "{listen}"', other.read_text(), flags=re.MULTILINE))
        command = [sys.executable, "-m", "vedette.controller", "serve", "--config", str(other)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cannot listen on {listen}" in done.stderr
    assert "Traceback" not in done.stderr
