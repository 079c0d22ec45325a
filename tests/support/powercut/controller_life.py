"""The life of a controller, recorded: the real program, and marks of everything that it answered."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnxruntime import __version__ as onnxruntime_version

from tests.integration.controller.test_telemetry import window
from tests.integration.training.test_admin_verbs import data, labels, upload
from tests.support import onnx_models
from tests.support.controller import FACTS, Appliance, Stream
from tests.support.controller_process import Client, program
from tests.support.learning import CAPTURES
from tests.support.obedient import Obedient, alive
from tests.support.powercut.recording import Recording
from tests.support.powercut.records import Record
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment
from vedette.models.documents import digest_of
from vedette.models.signing import unseal
from vedette.wire import convert
from vedette.wire.v1 import admin_pb2
from vedette.wire.values import TelemetryBatch

DATA = "data"
UNRECORDED = (f"{DATA}/staging",)  # jobs work there, in processes with an environment of their own
ABLE = replace(FACTS, runtimes={"onnxruntime": onnxruntime_version})


class _Able(Appliance):
    """An appliance whose runtime suits the model."""

    @asynccontextmanager
    async def connected(self, **hello: Any) -> AsyncIterator[Stream]:
        async with super().connected(**{"facts": ABLE, **hello}) as stream:
            yield stream


class _Told(Obedient):
    """An agent that notes which assignments it was given, before it obeys."""

    def __init__(self, running: Client, appliance: Appliance, recording: Recording) -> None:
        super().__init__(running, appliance)
        self._recording = recording
        self.has_obeyed = asyncio.Event()

    async def _follow(self, stream: Stream, envelope: bytes) -> None:
        assignment = Assignment.from_bytes(unseal(envelope, ASSIGNMENT_TYPE, [self._running.keys.assignment.public]))
        self._recording.mark(agent=assignment.agent_id, sequence=assignment.sequence, digest=assignment.digest)
        await super()._follow(stream, envelope)
        self.has_obeyed.set()


async def recorded_life(folder: Path) -> list[Record]:
    """Record a controller: made, used for everything it stores, killed, and used again."""
    root = folder / "disk"
    root.mkdir()
    recording = Recording(root, folder / "log")
    with pytest.MonkeyPatch.context() as environment, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(str(folder / "notify"))
        for name, value in recording.environment.items():
            environment.setenv(name, value)
        command = [sys.executable, "-m", "vedette.controller", "init", "--listen", "127.0.0.1:0", "--data-dir"]
        init = await asyncio.create_subprocess_exec(*command, str(root / DATA), stdout=subprocess.DEVNULL)
        assert await init.wait() == 0
        recording.mark(made=True)
        made = root / DATA / "controller.toml"
        config = folder / "controller.toml"
        text = made.read_text().replace('data_dir = "."', f'data_dir = "{root / DATA}"').replace("127.0.0.1:7480", "")
        config.write_text(text)  # elsewhere: no change goes unrecorded
        client = Client(made)
        async with program(config, systemd):
            agents = await _first_day(client, recording)
        async with program(config, systemd):
            await _second_day(client, recording, agents)
    return recording.records()


async def _first_day(client: Client, recording: Recording) -> list[_Told]:
    """Everything but the end of the rollout, in whose midst the program is killed."""
    agents = [await _enrolled(client, recording, f"edge-{number}") for number in range(2)]
    raw = onnx_models.linear().SerializeToString()
    capture = CAPTURES / "shifted/softflowd-v9.pcap.gz"
    async with client.admin() as admin:
        await admin.LabelAgent(admin_pb2.LabelAgentRequest(name="edge-0", set={"site": "s1"}))
        recording.mark(labelled="edge-0")
        imported = await data(admin, capture)
        recording.mark(imported=digest_of(capture.read_bytes()), rows=imported.rows)
        recording.mark(windows=(await labels(admin, CAPTURES / "shifted/labels.json")).windows)
        snapshot = await admin.CreateSnapshot(admin_pb2.CreateSnapshotRequest(dataset="lab"))
        recording.mark(snapshot=snapshot.snapshot, digest=snapshot.digest)
        request = upload(admin_pb2.RegisterModelRequest, raw, model="plain", file_name="plain.onnx")
        version = await admin.RegisterModel(request)
        recording.mark(version=version.version)
        await _reported(agents[0], recording, 1)
        async with alive(*agents):
            waves = {"waves": ["1", "100%"], "soak_s": 1}
            started = await admin.StartRollout(
                admin_pb2.StartRolloutRequest(version="plain:1", **waves)  # type: ignore[arg-type]
            )
            recording.mark(rollout=started.rollout, state=admin_pb2.RolloutState.Name(started.state))
            await agents[0].has_obeyed.wait()  # the first wave is one agent: the first by name
    return agents


async def _second_day(client: Client, recording: Recording, agents: list[_Told]) -> None:
    async with client.admin() as admin, alive(*agents):
        listed = await admin.ListRollouts(admin_pb2.ListRolloutsRequest())
        request = admin_pb2.GetRolloutRequest(rollout=listed.rollouts[0].rollout)
        async for rollout in admin.WatchRollout(request):
            recording.mark(rollout=rollout.rollout, state=admin_pb2.RolloutState.Name(rollout.state))
        await _reported(agents[0], recording, 2)
        await admin.RevokeAgent(admin_pb2.RevokeAgentRequest(name="edge-1"))
        recording.mark(revoked="edge-1")


async def _enrolled(client: Client, recording: Recording, name: str) -> _Told:
    token = await client.token()
    recording.mark(token=token.token_id)
    appliance = _Able(client)
    await client.enrol(appliance, token, name=name, facts=ABLE)
    recording.mark(enrolled=name, id=appliance.id)
    return _Told(client, appliance, recording)


async def _reported(agent: _Told, recording: Recording, sequence: int) -> None:
    batch = TelemetryBatch(boot_epoch=1, sequence=sequence, windows=(window(),))
    async with agent._appliance.telemetry() as stub:
        await stub.Report(convert.BATCH.to_wire(batch))
    recording.mark(batch=sequence)
