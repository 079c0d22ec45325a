"""What isolating a model in a worker costs, against the same session in one process, and how soon a dead one is back.

The baseline is ``InferenceSession.run`` in a child process of its own, so that this process stays an agent's: without
onnxruntime. Short rounds of both alternate, so that a busy machine slows both; a share is the median of the rounds'.
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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.support import tiny_models
from tests.support.memory_files import memory_file
from vedette.agent.adapters.inference.ring import Plan
from vedette.agent.adapters.inference.runner import Runner
from vedette.agent.adapters.inference.worker import Worker, WorkerSettings
from vedette.agent.adapters.inference.worker_process import Child, Nursery
from vedette.models.release import TensorSpec

_ROUNDS = 21
_SECONDS = 0.1
_BATCHES = (1, 256)
_IN_FLIGHT = (1, 2)


@dataclass(frozen=True)
class _Subject:
    name: str
    model: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    width: int

    def rows(self, count: int) -> dict[str, Any]:
        return {"features": np.random.default_rng(count).normal(size=(count, self.width)).astype(np.float32)}


def run() -> dict[str, float]:
    """Return rows per second, microseconds of an answer, replacement and memory, for a perceptron and for trees."""
    specs = tiny_models.mlp_specs()
    trees = (tiny_models.TREE_INPUTS, tiny_models.TREE_OUTPUTS, tiny_models.TREE_FEATURES)
    subjects = (
        _Subject("MLP", tiny_models.mlp_model(), *specs, specs[0][0].shape[1]),
        _Subject("trees", tiny_models.tree_model(), *trees),
    )
    figures: dict[str, float] = {}
    for subject in subjects:
        figures |= asyncio.run(_measure(subject))
    figures |= asyncio.run(_replacement(subjects[0]))
    if "onnxruntime" in sys.modules:
        raise RuntimeError("the agent's process loaded onnxruntime")
    return figures


@asynccontextmanager
async def _runner(subject: _Subject, nursery: bool = True) -> AsyncIterator[tuple[Runner, Nursery]]:
    settings = WorkerSettings(nice=0)
    plan = Plan.of(subject.inputs, subject.outputs, max_rows=settings.max_rows, variable_bytes=settings.variable_bytes)
    with tempfile.TemporaryDirectory() as folder:
        warm = Nursery(Path(folder) / "empty", 30.0, settings.admit)

        async def child() -> Child:
            return await (warm.child() if nursery else Child.start(Path(folder) / "empty", 30.0, settings.admit))

        async def spawn() -> Worker:
            with memory_file(subject.model) as model:
                return await Worker.start(model, plan, settings, child)

        runner = Runner(plan, settings, spawn)
        try:
            await runner.start()
            yield runner, warm
        finally:
            await runner.abandon()
            await warm.close()


async def _measure(subject: _Subject) -> dict[str, float]:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    baseline = context.Process(target=_baseline, args=(theirs, subject), daemon=True)
    baseline.start()
    figures: dict[str, float] = {}
    async with _runner(subject) as (runner, _):
        for rows in _BATCHES:
            figures |= await _compare(subject, runner, ours, rows, baseline.pid or 0)
    ours.send(None)
    baseline.join()
    return figures


async def _compare(
    subject: _Subject, runner: Runner, baseline: Connection, rows: int, baseline_pid: int
) -> dict[str, float]:
    alone: dict[int, list[list[float]]] = {count: [] for count in _IN_FLIGHT}
    isolated: dict[int, list[list[float]]] = {count: [] for count in _IN_FLIGHT}
    spent: dict[str, list[float]] = {"in process": [], **{f"isolated, {count} in flight": [] for count in _IN_FLIGHT}}
    for _ in range(_ROUNDS):
        for count in _IN_FLIGHT:  # each round of ours has one of theirs just before it
            before = _cpu_us(baseline_pid)
            baseline.send(rows)
            alone[count].append(baseline.recv())
            spent["in process"].append((_cpu_us(baseline_pid) - before) / len(alone[count][-1]))
            before = _cpu_us(os.getpid(), *runner.pids)
            isolated[count].append(await _round(runner, subject.rows(rows), count))
            took = _cpu_us(os.getpid(), *runner.pids) - before
            spent[f"isolated, {count} in flight"].append(took / len(isolated[count][-1]))
    what = f"{subject.name} batch {rows}"
    figures = _told(f"{what} in process", [one for rounds in alone.values() for one in rounds], rows)
    figures |= {f"{what} {how} CPU us": statistics.median(us) for how, us in spent.items()}
    for count, took in isolated.items():
        figures |= _told(f"{what} isolated, {count} in flight", took, rows)
        shares = [len(ours) / len(theirs) for ours, theirs in zip(took, alone[count], strict=True)]
        figures[f"{what} isolated, {count} in flight share"] = statistics.median(shares)
        figures[f"{what} isolated, {count} in flight best share"] = max(shares)
    added = [np.median(ours) - np.median(theirs) for ours, theirs in zip(isolated[1], alone[1], strict=True)]
    figures[f"{what} isolated adds p50 us"] = float(np.median(added))
    figures[f"{what} isolated adds least p50 us"] = float(min(added))
    return figures


def _cpu_us(*pids: int) -> float:
    """Return the processor time of all threads of processes: the first word of proc(5) schedstat."""
    files = (file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(file.read_text().split()[0]) for file in files) / 1e3


def _told(what: str, rounds: list[list[float]], rows: int) -> dict[str, float]:
    took = np.concatenate(rounds)
    return {
        f"{what} rows/s": statistics.median(len(one) * rows / _SECONDS for one in rounds),
        f"{what} p50 us": float(np.percentile(took, 50)),
        f"{what} p99 us": float(np.percentile(took, 99)),
    }


async def _round(runner: Runner, inputs: dict[str, Any], askers: int) -> list[float]:
    """Return how long each answer took of callers that ask again as soon as they are answered."""
    took: list[float] = []
    end = time.perf_counter() + _SECONDS

    async def ask() -> None:
        while (begun := time.perf_counter()) < end:
            await runner.infer(inputs)
            took.append((time.perf_counter() - begun) * 1e6)

    await asyncio.gather(*(ask() for _ in range(askers)))
    return took


async def _replacement(subject: _Subject) -> dict[str, float]:
    figures = {}
    for name, nursery in (("started", False), ("forked", True)):
        async with _runner(subject, nursery) as (runner, warm):
            took = []
            for _ in range(7):
                begun = time.perf_counter()
                os.kill(runner.pids[0], signal.SIGKILL)
                await runner.infer(subject.rows(1))
                took.append((time.perf_counter() - begun) * 1e3)
            figures[f"kill to next answer, {name} ms"] = statistics.median(took)
            pids = (*runner.pids, *([warm.pid] if warm.pid is not None else []))
            figures[f"one worker, {name}, PSS MB"] = sum(
                psutil.Process(pid).memory_full_info().pss / 1e6 for pid in pids
            )
    return figures


def _baseline(control: Connection, subject: _Subject) -> None:
    """Answer each number of rows with how long runs of a session in this process took, until told to end."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(subject.model, options, providers=["CPUExecutionProvider"])
    while (rows := control.recv()) is not None:
        inputs, took = subject.rows(rows), []
        end = time.perf_counter() + _SECONDS
        while (begun := time.perf_counter()) < end:
            session.run(None, inputs)
            took.append((time.perf_counter() - begun) * 1e6)
        control.send(took)
