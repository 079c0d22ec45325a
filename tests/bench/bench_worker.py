"""What isolating a model in a worker costs, against the same session in one process, and how soon a dead one is back.

The baseline is ``InferenceSession.run`` in a child process of its own, so that this process stays an agent's: without
onnxruntime. Rounds of both alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.support.memory_files import memory_file
from tests.support.tiny_models import mlp_model, mlp_rows, mlp_specs
from vedette.agent.adapters.ring import Plan
from vedette.agent.adapters.runner import Runner
from vedette.agent.adapters.worker import Worker, WorkerSettings
from vedette.agent.adapters.worker_process import Child

_BATCH = 256
_ROUNDS = 7
_SECONDS = 0.4
_SINGLES = 1500


def run() -> dict[str, float]:
    """Return rows per second at batch 256, microseconds at batch 1, start, recovery and memory."""
    return asyncio.run(_measure())


async def _measure() -> dict[str, float]:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    baseline = context.Process(target=_baseline, args=(theirs, mlp_model()), daemon=True)
    baseline.start()
    with tempfile.TemporaryDirectory() as folder:
        runner, spawn_s = await _start(Path(folder) / "empty")
        try:
            figures = await _compare(runner, ours)
            figures |= await _recover(runner)
            figures["start to first answer ms"] = spawn_s * 1e3
            figures |= _memory(runner)
        finally:
            await runner.abandon()
    ours.send(None)
    baseline.join()
    if "onnxruntime" in sys.modules:
        raise RuntimeError("the agent's process loaded onnxruntime")
    return figures


async def _start(workdir: Path) -> tuple[Runner, float]:
    settings = WorkerSettings(nice=0)
    inputs, outputs = mlp_specs()
    plan = Plan.of(inputs, outputs, max_rows=settings.max_rows, variable_bytes=settings.variable_bytes)

    async def spawn() -> Worker:
        with memory_file(mlp_model()) as model:
            return await Worker.start(
                model, plan, settings, lambda: Child.start(workdir, settings.load_timeout_s, settings.admit)
            )

    runner = Runner(plan, settings, spawn)
    begun = time.perf_counter()
    await runner.start()
    await runner.infer({"features": mlp_rows(1)})
    return runner, time.perf_counter() - begun


async def _compare(runner: Runner, baseline: Connection) -> dict[str, float]:
    rows = mlp_rows(_BATCH)

    async def ask() -> None:
        await runner.infer({"features": rows})

    one, two, alone = [], [], []
    for _ in range(_ROUNDS):
        one.append(await _rate([ask]))
        two.append(await _rate([ask, ask]))
        alone.append(_remote(baseline, "rate"))
    single = await _singles(runner)
    alone_single = _remote(baseline, "singles")
    return {
        "in process batch 256 rows/s": statistics.median(alone),
        "isolated batch 256 rows/s": statistics.median(one),
        "isolated batch 256 two in flight rows/s": statistics.median(two),
        "isolated share of in process": statistics.median(b / a for a, b in zip(alone, two, strict=True)),
        "in process batch 1 p50 us": float(np.median(alone_single)),
        "isolated batch 1 p50 us": float(np.median(single)),
        "isolated batch 1 p99 us": float(np.percentile(single, 99)),
    }


async def _rate(askers: list[Callable[[], Awaitable[None]]]) -> float:
    """Return rows per second of callers that each ask again as soon as they are answered."""
    begun = time.perf_counter()
    counts = await asyncio.gather(*(_ask_until(asker, begun + _SECONDS) for asker in askers))
    return sum(counts) * _BATCH / (time.perf_counter() - begun)


async def _ask_until(ask: Callable[[], Awaitable[None]], end: float) -> int:
    count = 0
    while time.perf_counter() < end:
        await ask()
        count += 1
    return count


async def _singles(runner: Runner) -> list[float]:
    rows = mlp_rows(1)
    took = []
    for _ in range(_SINGLES):
        begun = time.perf_counter()
        await runner.infer({"features": rows})
        took.append((time.perf_counter() - begun) * 1e6)
    return took


async def _recover(runner: Runner) -> dict[str, float]:
    took = []
    for _ in range(3):
        pid = runner.pids[0]
        begun = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await runner.infer({"features": mlp_rows(1)})
        took.append((time.perf_counter() - begun) * 1e3)
    return {"kill to next answer ms": statistics.median(took)}


def _memory(runner: Runner) -> dict[str, float]:
    worker = psutil.Process(runner.pids[0]).memory_full_info()
    agent = psutil.Process().memory_full_info()
    return {
        "worker PSS MB": worker.pss / 1e6,
        "worker USS MB": worker.uss / 1e6,
        "this process PSS MB": agent.pss / 1e6,
    }


def _remote(baseline: Connection, what: str) -> Any:
    baseline.send(what)
    return baseline.recv()


def _baseline(control: Connection, model: bytes) -> None:
    """Answer "rate" and "singles" with figures of a session in this process, until told to end."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch, single = {"features": mlp_rows(_BATCH)}, {"features": mlp_rows(1)}
    while (what := control.recv()) is not None:
        begun, count, took = time.perf_counter(), 0, []
        while what == "rate" and time.perf_counter() < begun + _SECONDS:
            session.run(None, batch)
            count += 1
        for _ in range(_SINGLES if what == "singles" else 0):
            at = time.perf_counter()
            session.run(None, single)
            took.append((time.perf_counter() - at) * 1e6)
        control.send(took if took else count * _BATCH / (time.perf_counter() - begun))
