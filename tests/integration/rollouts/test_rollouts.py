"""Rollouts over real TLS with the real command line; and with a controller that is killed on the way."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.controller import Running, prepare, running
from tests.support.obedient import Obedient, alive
from vedette.controller.__main__ import main
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.context import AdminContext
from vedette.controller.settings import ControllerSettings
from vedette.models.toml_settings import parse_address

PROGRAM = "from vedette.controller.cli import main; main()"


@dataclass
class Typed:
    """Runs ``vedette`` as a person does, in a process of its own."""

    context: Path

    async def __call__(self, *words: str) -> tuple[int, Any, str]:
        """Return exit code, JSON and what was said beside it."""
        command = ["--context", str(self.context), "--output", "json", *words]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await process.communicate()
        return process.returncode or 0, json.loads(out) if out else None, err.decode()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(prepare(tmp_path / "data")) as made:
        yield made


@pytest.fixture
def vedette(served: Running, tmp_path: Path) -> Typed:
    path = tmp_path / "admin.toml"
    address = f"127.0.0.1:{served.controller.port}"
    path.write_text(replace(served.context, address=address).to_toml())
    return Typed(path)


async def _fleet(served: Running, count: int, bad: tuple[int, ...] = ()) -> list[Obedient]:
    names = [f"edge-{number}" for number in range(count)]
    return [Obedient(served, await served.enrolled(name), bad) for name in names]


async def test_a_session_as_a_person_types_it(served: Running, vedette: Typed) -> None:
    served.release(1)
    agents = await _fleet(served, 3)
    async with alive(*agents):
        _, started, _ = await vedette(
            "rollout", "start", "flow-threat:1", "--to", "", "--waves", "1,100%", "--soak", "1s"
        )
        code, ended, said = await vedette("rollout", "watch", started["rollout"])
        assert (code, ended["state"]) == (0, "succeeded")
        assert "wave 1 (1): 1 moved" in said
        _, listed, _ = await vedette("agent", "ls")
    assert [agent["slots"]["flow-threat"]["active"] for agent in listed] == ["flow-threat:1"] * 3
    assert [agent.served for agent in agents] == [[1], [1], [1]]


async def test_a_bad_version_stops_at_its_canary_and_is_taken_back(served: Running, vedette: Typed) -> None:
    served.release(1)
    served.release(2)
    agents = await _fleet(served, 3, bad=(2,))
    async with alive(*agents):
        for number, expected in ((1, 0), (2, 1)):
            words = ("rollout", "start", f"flow-threat:{number}", "--to", "", "--waves", "1,100%", "--soak", "0s")
            _, started, _ = await vedette(*words)
            code, ended, _ = await vedette("rollout", "watch", started["rollout"])
            assert code == expected
        code, again, err = await vedette("rollout", "pause", started["rollout"])
        _, listed, _ = await vedette("agent", "ls")
    assert (ended["state"], ended["waves"][1]["state"]) == ("stopped", "waiting")
    assert "self-test: row 3 differs" in ended["reason"]
    assert (code, again) == (4, None)
    assert "it has ended: stopped" in err
    assert {agent["slots"]["flow-threat"]["desired"] for agent in listed} == {"flow-threat:1"}
    assert sum(len(agent.served) for agent in agents) == 4  # the canary's second is its return to version 1


async def test_who_is_not_an_admin_cannot_start_a_rollout(served: Running, vedette: Typed) -> None:
    edge = await served.enrolled("edge")
    context = AdminContext.load(vedette.context)
    stolen = replace(context, key=edge.key.decode(), certificate=edge.certificate.decode())
    vedette.context.write_text(stolen.to_toml())
    code, _, err = await vedette("rollout", "start", "flow-threat:1", "--to", "")
    assert code == 4
    assert "agent" in err


class _Elsewhere(Running):
    """Clients of a controller in another process."""

    def __init__(self, config: Path) -> None:
        settings = ControllerSettings.load(config)
        self.controller: Any = _Ports(
            *(parse_address(str(text))[1] for text in (settings.listen, settings.enrol_listen))
        )
        self.context = AdminContext.load(config.parent / "admin.toml")
        self.keys = KeyRing.load(config.parent)


@dataclass
class _Ports:
    port: int
    enrol_port: int


@asynccontextmanager
async def _serving(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _answered(vedette: Typed, *words: str) -> Any:
    """Return the answer once the controller is up."""
    async with asyncio.timeout(60):
        while True:
            code, answer, _ = await vedette(*words)
            if code != 5:
                return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "doom",
    [
        *((f"killed_rollouts {{config}} {saves}") for saves in (1, 2, 3, 5)),
        *(
            f"killed_controller {{config}} AgentStore.{fact} {when}"
            for fact in ("save_desired", "save_result")
            for when in ("before", "after")
        ),
    ],
    ids=lambda words: words.replace("{config} ", "").replace(" ", "-"),
)
async def test_killed_at_any_stored_state_it_goes_on(tmp_path: Path, doom: str) -> None:
    assert main(["init", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]) == 0
    config = tmp_path / "data" / "controller.toml"
    config.write_text(config.read_text().replace("127.0.0.1:7480", ""))
    async with running(ControllerSettings.load(config)) as made:
        made.release(1)
        appliances = [await made.enrolled(f"edge-{number}") for number in range(2)]
    elsewhere = _Elsewhere(config)
    for appliance in appliances:
        appliance._running = elsewhere
    vedette = Typed(config.parent / "admin.toml")
    agents = [Obedient(elsewhere, appliance) for appliance in appliances]
    async with alive(*agents):
        async with _serving(*f"tests.support.{doom}".format(config=config).split()) as doomed:
            await _answered(vedette, "status")
            await vedette("rollout", "start", "flow-threat:1", "--to", "", "--waves", "1,100%", "--soak", "1s")
            assert await asyncio.wait_for(doomed.wait(), 30) == -9
        async with _serving("vedette.controller", "serve", "--config", str(config)):
            [rollout] = await _answered(vedette, "rollout", "ls")
            code, ended, _ = await vedette("rollout", "watch", rollout["rollout"])
    assert (code, ended["state"]) == (0, "succeeded")
    assert [agent.served for agent in agents] == [[1], [1]]
