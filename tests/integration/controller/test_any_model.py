"""Models of every shape, by the real programs: registered and rolled out with ``vedette``, asked by tritonclient."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.any_models import CASES
from tests.support.controller_process import Client, program
from tests.support.daemon import Daemon
from tests.support.oip import ClientProcess
from tests.support.triton_calls import infer
from vedette.models.golden import mismatch
from vedette.models.release import Tolerance

IN_CI = ("words", "several", "half", "detector")
CHOSEN = tuple(CASES) if os.environ.get("VEDETTE_ANY_MODEL") else IN_CI


async def vedette(config: Path, *words: str) -> str:
    context = str(config.parent / "admin.toml")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vedette.controller.cli", "--context", context, *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.slow
async def test_models_of_any_shape_are_registered_rolled_out_and_asked(
    config: Path, systemd: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "agent").mkdir()
    agent = Daemon(tmp_path / "agent")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(program(config, systemd))
        assert await agent.command("enroll", "--token", (await Client(config).token()).encode()) == 0
        await agent.start()
        triton = ClientProcess()
        stack.callback(triton.close)
        stack.push_async_callback(agent.stop)
        for name in CHOSEN:
            case = CASES[name]
            file = tmp_path / f"{name}.onnx"
            file.write_bytes(case.make().SerializeToString())
            said = await vedette(config, "model", "register", str(file), "--name", name)
            assert f"{name}:1 is registered, tensor" in said
            assert ("each row for itself" in said) is case.row_wise
            await vedette(config, "rollout", "start", f"{name}:1", "--to", "", "--waves", "100%", "--soak", "0s")
            await agent.until(lambda r, name=name: (r["slots"].get(name) or {}).get("active") is not None)
            found, model, version, _ = await triton.run(
                infer, f"unix:{agent.folder}/s/inference.sock", name, dict(case.asked)
            )
            wanted = {key: np.asarray(value, found[key].dtype) for key, value in case.wanted.items()}
            assert (model, version) == (name, "1")
            assert mismatch(wanted, found, Tolerance(1e-3, 1e-3)) is None
        counters = agent.metrics()
        assert all(f'vedette_agent_model_rows_total{{slot="{name}"}}' in counters for name in CHOSEN)
