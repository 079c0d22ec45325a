from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support import tiny_models
from tests.support.memory_files import memory_file
from vedette.agent.adapters.inference.ring import Plan
from vedette.agent.adapters.inference.runner import Runner, Strike
from vedette.agent.adapters.inference.worker import Worker, WorkerSettings
from vedette.agent.adapters.inference.worker_process import Child
from vedette.agent.domain.errors import (
    InferenceError,
    ModelFailed,
    Overloaded,
    WorkerCrashed,
    WorkerTimeout,
)
from vedette.agent.domain.priority import Priority
from vedette.models.release import TensorSpec

SMALL = WorkerSettings(nice=0, max_rows=64, in_flight=1, load_timeout_s=30.0)
FINE, DRAG, ERR = 0, 4, 9
Array = npt.NDArray[Any]


@asynccontextmanager
async def running(
    model: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    folder: Path,
    *,
    settings: WorkerSettings = SMALL,
    strikes: list[Strike] | None = None,
) -> AsyncIterator[Runner]:
    plan = Plan.of(inputs, outputs, max_rows=settings.max_rows, variable_bytes=65536)

    async def spawn() -> Worker:
        with memory_file(model) as descriptor:
            return await Worker.start(
                descriptor, plan, settings, lambda: Child.start(folder / "empty", 30.0, settings.admit)
            )

    seen: list[Strike] = [] if strikes is None else strikes
    runner = Runner(plan, settings, spawn, seen.append)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.abandon()


def flow_runner(folder: Path, settings: WorkerSettings = SMALL) -> Any:
    return running(
        tiny_models.flow_model(), tiny_models.FLOW_INPUTS, tiny_models.FLOW_OUTPUTS, folder, settings=settings
    )


def tripwire_runner(folder: Path, settings: WorkerSettings, strikes: list[Strike] | None = None) -> Any:
    inputs, outputs = tiny_models.ROW_TRIPWIRE_INPUTS, tiny_models.TRIPWIRE_OUTPUTS
    return running(tiny_models.row_tripwire_model(), inputs, outputs, folder, settings=settings, strikes=strikes)


def batches_of(runner: Runner) -> list[int]:
    """Return a list that gets the rows of each batch."""
    rows: list[int] = []
    runner.on_batch = lambda count, *_: rows.append(count)
    return rows


def row(kind: int, rows: int = 1) -> dict[str, Array]:
    return {"x": np.arange(1, rows + 1, dtype=np.float32), "kind": np.full(rows, kind, np.int64)}


async def stopped(runner: Runner) -> list[int]:
    """Stop the workers, give each a batch that it cannot begin, and return their processes."""
    for pid in runner.pids:
        os.kill(pid, signal.SIGSTOP)
    return list(runner.pids)


def go_on(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


async def test_what_waits_while_the_worker_is_busy_shares_one_batch(tmp_path: Path) -> None:
    asked = [tiny_models.flow_rows(1 + seed % 3, seed) for seed in range(12)]
    async with flow_runner(tmp_path) as runner:
        batches = batches_of(runner)
        answers = await asyncio.gather(*(runner.infer({"features": rows}) for rows in asked))
    for rows, answer in zip(asked, answers, strict=True):
        for name, want in tiny_models.flow_outputs(rows).items():
            assert answer[name].shape == want.shape
            np.testing.assert_allclose(answer[name], want, atol=1e-6)
    assert batches == [1, sum(map(len, asked)) - 1]


async def test_a_joined_batch_has_at_most_the_rows_of_one(tmp_path: Path) -> None:
    async with flow_runner(tmp_path) as runner:
        batches = batches_of(runner)
        await asyncio.gather(*(runner.infer({"features": tiny_models.flow_rows(30)}) for _ in range(6)))
    assert batches == [30, 60, 60, 30]


async def test_a_lone_request_waits_for_nobody(tmp_path: Path) -> None:
    async with flow_runner(tmp_path) as runner:
        batches = batches_of(runner)
        for _ in range(3):
            await runner.infer({"features": tiny_models.flow_rows(2)})
    assert batches == [2, 2, 2]


async def test_requests_for_other_outputs_share_no_batch_and_get_what_they_asked_for(tmp_path: Path) -> None:
    wants: list[tuple[str, ...]] = [(), ("label",), ("label",), ("score", "label"), ()]
    async with flow_runner(tmp_path) as runner:
        batches = batches_of(runner)
        rows = tiny_models.flow_rows(2)
        answers = await asyncio.gather(*(runner.infer({"features": rows}, outputs=names) for names in wants))
    assert [set(answer) for answer in answers] == [set(names or tiny_models.flow_outputs(rows)) for names in wants]
    assert batches == [2, 4, 2, 2]
    np.testing.assert_array_equal(answers[1]["label"], tiny_models.flow_outputs(rows)["label"])


async def test_the_first_to_be_answered_is_who_matters_most_then_who_came_first(tmp_path: Path) -> None:
    done: list[str] = []

    async def ask(runner: Runner, name: str, priority: Priority) -> None:
        # Each as large as a batch, so that none is joined.
        await runner.infer({"features": tiny_models.flow_rows(64)}, priority=priority)
        done.append(name)

    order = [("shadow", 3), ("flow 1", 1), ("evidence", 2), ("flow 2", 1), ("program 1", 0), ("program 2", 0)]
    async with flow_runner(tmp_path) as runner:
        asked = [asyncio.create_task(ask(runner, "busy", Priority.SHADOW))]
        asked += [asyncio.create_task(ask(runner, name, Priority(priority))) for name, priority in order]
        await asyncio.gather(*asked)
    assert done == ["busy", "program 1", "program 2", "flow 1", "flow 2", "evidence", "shadow"]


async def test_in_a_full_queue_the_youngest_of_lower_priority_gives_way(tmp_path: Path) -> None:
    settings = replace(SMALL, queue=3, deadline_s=20.0)
    features = {"features": tiny_models.flow_rows(1)}
    async with flow_runner(tmp_path, settings) as runner:
        pids = await stopped(runner)
        kinds = [Priority.FLOW, Priority.FLOW, Priority.EXPLAIN, Priority.EXPLAIN, Priority.PROGRAM, Priority.EXPLAIN]
        asked = [asyncio.create_task(runner.infer(features, priority=kind)) for kind in kinds]
        await asyncio.sleep(0)
        assert runner.waiting == 3
        go_on(pids)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [dict, dict, dict, Overloaded, dict, Overloaded]


async def test_a_flow_never_takes_the_place_of_the_appliances_own_program(tmp_path: Path) -> None:
    settings = replace(SMALL, queue=1, deadline_s=20.0)
    features = {"features": tiny_models.flow_rows(1)}
    async with flow_runner(tmp_path, settings) as runner:
        pids = await stopped(runner)
        kinds = [Priority.FLOW, Priority.PROGRAM, Priority.FLOW, Priority.PROGRAM]
        asked = [asyncio.create_task(runner.infer(features, priority=kind)) for kind in kinds]
        await asyncio.sleep(0)
        go_on(pids)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [dict, dict, Overloaded, Overloaded]


async def test_the_refused_are_told_when_to_come_again(tmp_path: Path) -> None:
    settings = replace(SMALL, queue=1)
    features = {"features": tiny_models.flow_rows(1)}
    async with flow_runner(tmp_path, settings) as runner:
        answers = await asyncio.gather(*(runner.infer(features) for _ in range(3)), return_exceptions=True)
    refused = answers[2]
    assert isinstance(refused, Overloaded)
    assert 0.01 <= refused.retry_after_s <= 30.0


async def test_an_error_in_a_joined_batch_is_only_that_requests_error_and_nobody_runs_thrice(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    kinds = [FINE] * 20
    kinds[7] = ERR
    async with tripwire_runner(tmp_path, SMALL, strikes) as runner:
        batches = batches_of(runner)
        asked = (runner.infer(row(kind, rows=1 + place % 2)) for place, kind in enumerate(kinds))
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [place for place, answer in enumerate(answers) if isinstance(answer, BaseException)] == [7]
    assert isinstance(answers[7], ModelFailed)
    assert all(answer["y"].tolist() == [2.0, 4.0][: 1 + place % 2] for place, answer in _good(answers))
    rows = sum(1 + place % 2 for place in range(20))
    assert sum(batches) == 1 + 2 * (rows - 1)  # the first alone, the others once together and once alone
    assert (strikes, runner.restarts) == ([], 0)


def _good(answers: Sequence[Any]) -> list[tuple[int, Mapping[str, Array]]]:
    return [(place, answer) for place, answer in enumerate(answers) if isinstance(answer, dict)]


async def test_a_poisonous_request_in_a_joined_batch_costs_two_workers_and_no_other_answer(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    settings = replace(SMALL, deadline_s=2.0, grace_s=0.2, memory_bytes=1024**3)
    kinds = [FINE, FINE, FINE, DRAG, FINE, FINE]
    async with tripwire_runner(tmp_path, settings, strikes) as runner:
        asked = (runner.infer(row(kind)) for kind in kinds)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[3], WorkerTimeout)
    assert [place for place, _ in _good(answers)] == [0, 1, 2, 4, 5]
    assert len(strikes) == 2


async def test_a_worker_killed_under_a_joined_batch_costs_no_answer(tmp_path: Path) -> None:
    settings = replace(SMALL, deadline_s=20.0)
    async with flow_runner(tmp_path, settings) as runner:
        pids = await stopped(runner)
        asked = [asyncio.create_task(runner.infer({"features": tiny_models.flow_rows(2, s)})) for s in range(9)]
        await asyncio.sleep(0)
        os.kill(pids[0], signal.SIGKILL)
        answers = await asyncio.gather(*asked)
    for seed, answer in enumerate(answers):
        want = tiny_models.flow_outputs(tiny_models.flow_rows(2, seed))["score"]
        np.testing.assert_allclose(answer["score"], want, atol=1e-6)


async def test_a_request_that_kills_every_worker_is_tried_twice_and_never_again(tmp_path: Path) -> None:
    settings = replace(SMALL, deadline_s=20.0)
    killed: list[int] = []
    async with flow_runner(tmp_path, settings) as runner:
        asked = asyncio.create_task(runner.infer({"features": tiny_models.flow_rows(1)}))

        def poison(pid: int) -> None:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

        dispatch = runner._dispatch
        runner._dispatch = lambda worker, jobs: (
            os.kill(worker.pid, signal.SIGSTOP),
            dispatch(worker, jobs),
            poison(worker.pid),
        )
        with pytest.raises(WorkerCrashed):
            await asked
    assert len(killed) == 2


async def test_several_workers_share_the_load_by_what_each_has_in_flight(tmp_path: Path) -> None:
    settings = replace(SMALL, workers=2, deadline_s=20.0)
    async with flow_runner(tmp_path, settings) as runner:
        first, second = runner.pids
        os.kill(first, signal.SIGSTOP)
        stuck = asyncio.create_task(runner.infer({"features": tiny_models.flow_rows(1)}))
        await asyncio.sleep(0)
        # The first is busy, so all others are answered by the second though nothing of the first comes back.
        answers = [await runner.infer({"features": tiny_models.flow_rows(1)}) for _ in range(5)]
        assert len(answers) == 5
        assert not stuck.done()
        os.kill(first, signal.SIGCONT)
        await stuck
        assert runner.pids == (first, second)


async def test_with_one_worker_dead_the_other_answers(tmp_path: Path) -> None:
    settings = replace(SMALL, workers=2)
    async with flow_runner(tmp_path, settings) as runner:
        first, second = runner.pids
        os.kill(first, signal.SIGKILL)
        for _ in range(20):
            await runner.infer({"features": tiny_models.flow_rows(1)})
        assert second in runner.pids


async def test_a_model_whose_rows_are_not_its_inputs_rows_is_joined_no_more(tmp_path: Path) -> None:
    specs = ([TensorSpec("x", "float32", (-1,))], [TensorSpec("y", "float32", (-1,))])
    asked = [np.array([1.0, -1.0, seed + 1.0], np.float32) for seed in range(5)]
    async with running(tiny_models.ragged_model(), *specs, tmp_path) as runner:
        for _ in range(2):
            answers = await asyncio.gather(*(runner.infer({"x": x}) for x in asked))
            assert [answer["y"].tolist() for answer in answers] == [[1.0, seed + 1.0] for seed in range(5)]


KINDS = [
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
]


def _values(kind: str, shape: tuple[int, ...]) -> Array:
    if kind == "bytes":
        made = np.empty(shape, object)
        made.reshape(-1)[:] = [f"wort {place} \u00e9\0".encode() for place in range(made.size)]
        return made
    return (np.arange(int(np.prod(shape))) % 7).reshape(shape).astype(kind)


@pytest.mark.parametrize("rows", [0, 1, 3, 200])
async def test_every_kind_of_tensor_goes_in_and_comes_out(tmp_path: Path, rows: int) -> None:
    specs = [TensorSpec(f"t{place}", kind, (-1, 2)) for place, kind in enumerate([*KINDS, "bytes"])]
    inputs = {spec.name: _values(spec.dtype, (rows, 2)) for spec in specs}
    async with running(tiny_models.echo_model(specs), specs, tiny_models.echoed(specs), tmp_path) as runner:
        got = await runner.infer(inputs)
    for name, array in inputs.items():
        back = got[f"{name}_out"]
        assert (back.dtype, back.shape, back.tolist()) == (array.dtype, array.shape, array.tolist())


@pytest.mark.parametrize("kind", ["float32", "bytes"])
@pytest.mark.parametrize("shape", [(), (1, 4), (-1, -1, 2)], ids=["scalar", "fixed batch", "open"])
async def test_every_shape_of_tensor_goes_in_and_comes_out(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    specs = [TensorSpec("t", kind, shape)]
    values = _values(kind, tuple(3 if size == -1 else size for size in shape))
    async with running(tiny_models.echo_model(specs), specs, tiny_models.echoed(specs), tmp_path) as runner:
        for names in ((), ("t_out",)):
            got = await runner.infer({"t": values}, outputs=names)
            assert (got["t_out"].shape, got["t_out"].tolist()) == (values.shape, values.tolist())


async def test_no_rows_for_a_model_that_also_has_other_tensors_are_the_models_answer(tmp_path: Path) -> None:
    specs = [TensorSpec("rows", "float32", (-1,)), TensorSpec("whole", "float32", (2,))]
    inputs = {"rows": np.empty(0, np.float32), "whole": np.array([5.0, 6.0], np.float32)}
    async with running(tiny_models.echo_model(specs), specs, tiny_models.echoed(specs), tmp_path) as runner:
        got = await runner.infer(inputs)
    assert (got["rows_out"].shape, got["whole_out"].tolist()) == ((0,), [5.0, 6.0])


async def test_an_error_names_the_limit_of_strings(tmp_path: Path) -> None:
    specs = [TensorSpec("t", "bytes", (-1,))]
    async with running(tiny_models.echo_model(specs), specs, tiny_models.echoed(specs), tmp_path) as runner:
        big = np.array([b"x" * 70_000], object)
        with pytest.raises(InferenceError, match="limit 65528"):
            await runner.infer({"t": big})
        assert (await runner.infer({"t": np.array([b"y"], object)}))["t_out"].tolist() == [b"y"]
