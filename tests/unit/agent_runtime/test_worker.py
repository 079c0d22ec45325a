from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.support import tiny_models
from tests.support.memory_files import memory_file
from vedette.agent.adapters.inference.ring import RECORD, Kind, Plan, create_ring
from vedette.agent.adapters.inference.runner import Retired, Runner, Strike
from vedette.agent.adapters.inference.worker import Batch, RowPace, Worker, WorkerSettings
from vedette.agent.adapters.inference.worker_process import Child, Nursery, has_room
from vedette.agent.domain.errors import (
    InferenceError,
    InvalidRequest,
    ModelFailed,
    ModelRefused,
    OutOfMemory,
    Overloaded,
    SpawnFailed,
    WorkerCrashed,
    WorkerTimeout,
)
from vedette.models.release import TensorSpec

SMALL = WorkerSettings(nice=0, max_rows=64, deadline_s=1.0, grace_s=1.0, load_timeout_s=30.0)


def plan_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], settings: WorkerSettings = SMALL) -> Plan:
    return Plan.of(inputs, outputs, max_rows=settings.max_rows, variable_bytes=65536)


FLOW_PLAN = plan_of(tiny_models.FLOW_INPUTS, tiny_models.FLOW_OUTPUTS)
TRIPWIRE_PLAN = plan_of(tiny_models.TRIPWIRE_INPUTS, tiny_models.TRIPWIRE_OUTPUTS)


def nursery_in(folder: Path) -> Nursery:
    return Nursery(folder / "empty", 30.0, SMALL.admit)


def spawner(
    model: bytes, plan: Plan, workdir: Path, settings: WorkerSettings, nursery: Nursery | None = None
) -> Callable[[], Awaitable[Worker]]:
    async def spawn() -> Worker:
        with memory_file(model) as descriptor:
            child = nursery.child if nursery is not None else lambda: child_of(workdir, settings)
            return await Worker.start(descriptor, plan, settings, child)

    return spawn


async def child_of(workdir: Path, settings: WorkerSettings) -> Child:
    return await Child.start(workdir, settings.load_timeout_s, settings.admit)


def the_pid(runner: Runner) -> int:
    (pid,) = runner.pids
    return pid


@asynccontextmanager
async def running(
    model: bytes,
    plan: Plan,
    folder: Path,
    settings: WorkerSettings = SMALL,
    strikes: list[Strike] | None = None,
    *,
    nursery: Nursery | None = None,
) -> AsyncIterator[Runner]:
    seen: list[Strike] = [] if strikes is None else strikes
    runner = Runner(plan, settings, spawner(model, plan, folder / "empty", settings, nursery), seen.append)
    try:
        await runner.start()
        yield runner
    finally:
        await runner.abandon()
        if nursery is not None:
            await nursery.close()


def tripwire(kind: int, rows: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.arange(rows, dtype=np.float32), "kind": np.array([kind], np.int64)}


FINE, HANG, BLOAT, ERR, DRAG = range(5)


@pytest.mark.parametrize("rows", [1, 2, 17, 64])
async def test_a_worker_gives_the_numbers_that_numpy_gives(tmp_path: Path, rows: int) -> None:
    features = tiny_models.flow_rows(rows)
    async with running(tiny_models.flow_model(0.5), FLOW_PLAN, tmp_path) as runner:
        got = await runner.infer({"features": features})
    for name, want in tiny_models.flow_outputs(features, 0.5).items():
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got[name], want, atol=1e-6)


async def test_a_long_request_is_cut_into_batches_and_joined_in_order(tmp_path: Path) -> None:
    features = tiny_models.flow_rows(1000)
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path) as runner:
        got = await runner.infer({"features": features})
    np.testing.assert_allclose(got["score"], tiny_models.flow_outputs(features)["score"], atol=1e-6)


async def test_a_request_of_no_rows_is_answered_with_none(tmp_path: Path) -> None:
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path) as runner:
        got = await runner.infer({"features": tiny_models.flow_rows(0)})
    assert {name: array.shape for name, array in got.items()} == {
        "score": (0,),
        "label": (0,),
        "probabilities": (0, 2),
    }


async def test_concurrent_requests_each_get_their_own_answer(tmp_path: Path) -> None:
    asked = [tiny_models.flow_rows(1 + seed % 9, seed) for seed in range(100)]
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path) as runner:
        answers = await asyncio.gather(*(runner.infer({"features": rows}) for rows in asked))
    for rows, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer["score"], tiny_models.flow_outputs(rows)["score"], atol=1e-6)


async def test_outputs_whose_rows_are_not_the_inputs_rows_are_served(tmp_path: Path) -> None:
    plan = plan_of(tiny_models.FILTER_INPUTS, tiny_models.FILTER_OUTPUTS)
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    keep = np.array([1, 0, 0, 1, 1, 0], np.bool_)
    async with running(tiny_models.filter_model(), plan, tmp_path) as runner:
        for _ in range(2):
            got = await runner.infer({"x": x, "keep": keep})
            np.testing.assert_array_equal(got["y"], x[keep])
        with pytest.raises(ModelFailed, match="cannot be joined"):
            await runner.infer({"x": np.zeros((100, 2), np.float32), "keep": np.zeros(100, np.bool_)})


async def test_an_abandoned_request_does_not_disturb_the_others(tmp_path: Path) -> None:
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path) as runner:
        asked = [asyncio.create_task(runner.infer({"features": tiny_models.flow_rows(8, s)})) for s in range(40)]
        await asyncio.sleep(0)
        for task in asked[::2]:
            task.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for seed, answer in enumerate(answers):
            if seed % 2:
                assert isinstance(answer, dict)
                want = tiny_models.flow_outputs(tiny_models.flow_rows(8, seed))["score"]
                np.testing.assert_allclose(answer["score"], want, atol=1e-6)
            else:
                assert isinstance(answer, asyncio.CancelledError)
        assert runner.outstanding == 0


async def test_an_error_of_the_runtime_is_one_requests_error(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    async with running(tiny_models.tripwire_model(), TRIPWIRE_PLAN, tmp_path, strikes=strikes) as runner:
        with pytest.raises(ModelFailed, match="Gather"):
            await runner.infer(tripwire(ERR))
        got = await runner.infer(tripwire(FINE))
    np.testing.assert_array_equal(got["y"], np.array([0, 2, 4], np.float32))
    assert (strikes, runner.restarts) == ([], 0)


async def test_a_batch_over_the_memory_budget_is_a_clean_error_and_a_strike(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    async with running(tiny_models.tripwire_model(), TRIPWIRE_PLAN, tmp_path, strikes=strikes) as runner:
        with pytest.raises(OutOfMemory):
            await runner.infer(tripwire(BLOAT))
        await runner.infer(tripwire(FINE))
    assert [type(strike.error) for strike in strikes] == [OutOfMemory]
    assert runner.restarts == 0


async def test_a_batch_without_end_is_stopped_at_its_deadline_and_the_worker_lives(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    async with running(tiny_models.tripwire_model(), TRIPWIRE_PLAN, tmp_path, strikes=strikes) as runner:
        pid = the_pid(runner)
        with pytest.raises(WorkerTimeout):
            await runner.infer(tripwire(HANG))
        await runner.infer(tripwire(FINE))
        assert the_pid(runner) == pid
    assert [type(strike.error) for strike in strikes] == [WorkerTimeout]
    assert "terminate" in str(strikes[0].error)


async def test_a_worker_that_does_not_even_stop_is_killed_and_the_request_retried(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, strikes=strikes) as runner:
        os.kill(the_pid(runner), signal.SIGSTOP)
        answers = await asyncio.gather(*(runner.infer({"features": tiny_models.flow_rows(4)}) for _ in range(4)))
        assert runner.restarts == 1
    for answer in answers:
        np.testing.assert_allclose(
            answer["score"], tiny_models.flow_outputs(tiny_models.flow_rows(4))["score"], atol=1e-6
        )
    assert "not done in 1 s" in str(strikes[0].error)


async def test_a_killed_worker_under_load_costs_no_answer(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    features = tiny_models.flow_rows(16)
    want = tiny_models.flow_outputs(features)["score"]
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, strikes=strikes) as runner:

        async def ask(times: int) -> None:
            for _ in range(times):
                np.testing.assert_allclose((await runner.infer({"features": features}))["score"], want, atol=1e-6)

        load = [asyncio.create_task(ask(60)) for _ in range(8)]
        for _ in range(3):
            await runner.infer({"features": features})
            os.kill(the_pid(runner), signal.SIGKILL)
        await asyncio.gather(*load)
        assert runner.restarts == len(strikes) >= 1
    assert "SIGKILL" in str(strikes[0].error)


async def test_a_poisonous_request_costs_two_workers_and_no_other_answer(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    kinds = [FINE, FINE, DRAG, FINE, FINE]
    settings = replace(SMALL, deadline_s=2.0, grace_s=0.5, memory_bytes=1024**3)
    async with running(tiny_models.tripwire_model(), TRIPWIRE_PLAN, tmp_path, settings, strikes) as runner:
        asked = (runner.infer(tripwire(kind, rows=index + 1)) for index, kind in enumerate(kinds))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await runner.infer(tripwire(FINE))
    assert isinstance(answers[2], WorkerTimeout)
    assert [len(answer["y"]) for answer in answers if isinstance(answer, dict)] == [1, 2, 4, 5]
    assert (len(strikes), runner.restarts) == (2, 2)


async def test_a_full_queue_is_refused_with_its_limit(tmp_path: Path) -> None:
    settings = replace(SMALL, queue=3)
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, settings) as runner:
        asked = [runner.infer({"features": tiny_models.flow_rows(1)}) for _ in range(7)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [dict] * 5 + [Overloaded] * 2
        assert isinstance(await runner.infer({"features": tiny_models.flow_rows(1)}), dict)
    assert "limit 3 (inference.queue)" in str(answers[5])


async def test_a_retired_runner_answers_what_it_has_and_nothing_new(tmp_path: Path) -> None:
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path) as runner:
        asked = [asyncio.create_task(runner.infer({"features": tiny_models.flow_rows(4)})) for _ in range(20)]
        await asyncio.sleep(0)
        pid = the_pid(runner)
        await runner.retire(10.0)
        assert all(isinstance(answer, dict) for answer in await asyncio.gather(*asked))
        with pytest.raises(Retired):
            await runner.infer({"features": tiny_models.flow_rows(4)})
    assert not psutil.pid_exists(pid)


async def test_an_abandoned_runner_blames_no_request_that_waited(tmp_path: Path) -> None:
    async with running(tiny_models.tripwire_model(), TRIPWIRE_PLAN, tmp_path) as runner:
        asked = [asyncio.create_task(runner.infer(tripwire(FINE))) for _ in range(20)]
        await asyncio.sleep(0)
        await runner.abandon()
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Retired}


@pytest.mark.parametrize(
    ("inputs", "outputs", "match"),
    [
        ([TensorSpec("rows", "float32", (-1, 4))], None, r"inputs \['rows'\] are not the model's \['features'\]"),
        ([TensorSpec("features", "float64", (-1, 4))], None, "is float32, the release says float64"),
        ([TensorSpec("features", "float32", (-1, 5))], None, r"the release says \[-1, 5\]"),
        (None, [TensorSpec("scores", "float32", (-1,))], r"outputs \['scores'\]"),
    ],
)
async def test_a_model_that_is_not_what_its_release_says_is_refused(
    tmp_path: Path, inputs: list[TensorSpec] | None, outputs: list[TensorSpec] | None, match: str
) -> None:
    plan = plan_of(inputs or tiny_models.FLOW_INPUTS, outputs or tiny_models.FLOW_OUTPUTS)
    with pytest.raises(ModelRefused, match=match):
        await spawner(tiny_models.flow_model(), plan, tmp_path / "empty", SMALL)()


@pytest.mark.parametrize("data", [b"garbage", b"\0" * 64, tiny_models.flow_model()[:-40]])
async def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelRefused):
        await spawner(data, FLOW_PLAN, tmp_path / "empty", SMALL)()


_LOCATIONS = ["etc/passwd", "/etc/passwd", "../../../../../../../../etc/passwd", "beside", "*/_ORT_MEM_ADDR_/*"]


@pytest.mark.parametrize("location", _LOCATIONS)
async def test_a_model_cannot_read_files_of_the_host(tmp_path: Path, location: str) -> None:
    (tmp_path / "beside").write_bytes(b"secret")
    specs = ([TensorSpec("x", "float32", (-1,))], [TensorSpec("y", "float32", (-1,))])
    with pytest.raises(ModelRefused):
        await spawner(tiny_models.external_model(location), plan_of(*specs), tmp_path / "empty", SMALL)()


async def test_a_model_that_kills_its_loader_is_a_typed_error_that_names_the_signal(tmp_path: Path) -> None:
    specs = (tiny_models.FLOW_INPUTS, [TensorSpec("score", "float32", (-1, 1))])
    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        await spawner(tiny_models.deep_tree_model(), plan_of(*specs), tmp_path / "empty", SMALL)()


async def test_a_budget_too_small_for_the_model_is_a_clean_error(tmp_path: Path) -> None:
    settings = replace(SMALL, memory_bytes=64 * 1024 * 1024)
    with pytest.raises(OutOfMemory, match="67108864"):
        await spawner(tiny_models.flow_model(), FLOW_PLAN, tmp_path / "empty", settings)()


async def test_limits_the_host_does_not_allow_blame_no_model(tmp_path: Path) -> None:
    settings = replace(SMALL, cpus=(4095,))
    with pytest.raises(SpawnFailed, match="limits cannot be set"):
        await spawner(tiny_models.flow_model(), FLOW_PLAN, tmp_path / "empty", settings)()


async def test_a_host_that_starts_no_process_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(SpawnFailed, match="absent"):
        await spawner(tiny_models.flow_model(), FLOW_PLAN, tmp_path / "empty", SMALL)()


async def test_a_worker_of_another_version_is_given_no_model_and_blames_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vedette.agent.adapters.inference.worker_process.__version__", "0.0.9"
    )  # the running agent is the older one
    with pytest.raises(SpawnFailed, match=r"on the disk is \d.*this agent is 0\.0\.9: restart the agent"):
        await spawner(tiny_models.flow_model(), FLOW_PLAN, tmp_path / "empty", SMALL)()


async def test_a_worker_that_cannot_load_the_runtime_blames_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('half unpacked')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SpawnFailed, match=r"before it was given a model: exit status 1(?s:.*)half unpacked"):
        await spawner(tiny_models.flow_model(), FLOW_PLAN, tmp_path / "empty", SMALL)()


async def test_a_worker_without_a_filter_of_system_calls_says_why_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import platform; platform.machine = lambda: 'sparc64'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told: list[str] = []
    settings = replace(SMALL, on_unfiltered=told.append)
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, settings) as runner:
        rows = tiny_models.flow_rows(3)
        np.testing.assert_allclose(
            (await runner.infer({"features": rows}))["score"], tiny_models.flow_outputs(rows)["score"], atol=1e-6
        )
    assert told == ["the system calls of sparc64 are not known; known: x86_64, aarch64"]


class Told:
    """An asker that remembers what it was told."""

    def __init__(self) -> None:
        self.losses: list[tuple[InferenceError, list[Batch]]] = []
        self.answers: list[tuple[Batch, Any]] = []

    def answered(self, worker: Worker, batch: Batch, result: Any) -> None:
        self.answers.append((batch, result))

    def lost(self, worker: Worker, error: InferenceError, flying: Sequence[Batch]) -> None:
        self.losses.append((error, list(flying)))


@pytest.mark.parametrize(
    "record",
    [
        b"short",
        RECORD.pack(Kind.DONE, 3, 0, 1, 0),
        RECORD.pack(Kind.DONE, 0, 0, 77, 0),
        RECORD.pack(99, 0, 0, 1, 0),
    ],
    ids=["short", "another area", "another request", "unknown kind"],
)
async def test_a_record_that_answers_nothing_ends_the_worker_and_not_the_agent(tmp_path: Path, record: bytes) -> None:
    with memory_file(tiny_models.flow_model()) as model:
        worker = await Worker.start(model, FLOW_PLAN, SMALL, lambda: child_of(tmp_path / "empty", SMALL))
    told = Told()
    worker.serve(told)
    os.kill(worker.pid, signal.SIGSTOP)
    batch = Batch([({"features": tiny_models.flow_rows(2)}, 0, 2)], 2, b"", None, None)
    worker.send(batch)
    worker._take(record)
    assert "SIGKILL" in await worker.stop()
    ((error, flying),) = told.losses
    assert isinstance(error, WorkerCrashed)
    assert "broke the rules" in str(error)
    assert flying == [batch]


class _Mortal:
    """What a worker's process looks like to its agent, without one."""

    def __init__(self) -> None:
        self.doorbell, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.doorbell.setblocking(False)
        self.pid = 0

    def kill(self) -> None:
        self.doorbell.close()


async def test_what_a_worker_answered_before_it_died_is_believed_and_not_asked_again() -> None:
    worker, told, child = Worker(FLOW_PLAN, replace(SMALL, in_flight=4), RowPace()), Told(), _Mortal()
    descriptor, areas = create_ring(FLOW_PLAN)
    os.close(descriptor)
    worker._areas, worker._child = areas, child  # type: ignore[assignment]
    worker.serve(told)
    rows = {"features": tiny_models.flow_rows(2)}
    batches = [Batch([(rows, 0, 2)], 2, b"", None, None) for _ in range(3)]
    for batch in batches:
        worker.send(batch)
    areas[batches[0].area].shapes[1:, 0] = 2
    areas[batches[0].area].shapes[3, 1] = 2
    child.theirs.recv(RECORD.size)
    child.theirs.send(RECORD.pack(Kind.DONE, batches[0].area, 0, batches[0].request, 1000))
    child.theirs.close()  # two words unread: the kernel says so before it gives the answer

    worker._read()

    assert [batch for batch, _ in told.answers] == batches[:1]
    assert [flying for _, flying in told.losses] == [batches[1:]]


def _proc(pid: int | None) -> tuple[bool, list[str]]:
    folder = Path(f"/proc/{pid}")
    assert (folder / "oom_score_adj").read_text() == "500\n"
    status = (folder / "status").read_text()
    is_held = "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    return is_held, sorted(str(link.readlink()) for link in (folder / "fd").iterdir())


@pytest.mark.parametrize("is_forked", [False, True], ids=["started", "forked"])
async def test_the_worker_is_limited_and_holds_nothing_of_the_agents(tmp_path: Path, is_forked: bool) -> None:
    with socket.socket() as other:
        other.set_inheritable(True)
        nursery = nursery_in(tmp_path) if is_forked else None
        async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, nursery=nursery) as runner:
            worker = psutil.Process(the_pid(runner))
            assert worker.rlimit(psutil.RLIMIT_AS)[0] == SMALL.memory_bytes
            assert worker.rlimit(psutil.RLIMIT_CORE) == (0, 0)
            assert worker.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
            assert worker.rlimit(psutil.RLIMIT_FSIZE)[0] == 65536
            assert worker.cwd() == str(tmp_path / "empty")
            assert list((tmp_path / "empty").iterdir()) == []
            assert set(worker.environ()) <= {
                *("PATH", "LC_ALL", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"),
                *("PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE"),
            }
            assert worker.name() == "vedette-worker"
            is_held, open_files = _proc(the_pid(runner))
    assert is_held
    harmless = ("/dev/null", "/memfd:vedette-", "pipe:", "socket:")
    assert [name for name in open_files if not name.startswith(harmless)] == []
    assert sum(name.startswith("socket:") for name in open_files) == 1


_AGENT = """
import asyncio, os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.unit.agent_runtime.test_worker import FLOW_PLAN, SMALL, nursery_in, spawner
from tests.support import tiny_models

async def main():
    nursery = nursery_in(Path({folder!r})) if {is_forked!r} else None
    worker = await spawner(tiny_models.flow_model(), FLOW_PLAN, Path({folder!r}), SMALL, nursery)()
    assert "onnxruntime" not in sys.modules, "the agent's process loaded onnxruntime"
    {freeze}
    print(worker.pid, nursery.pid if nursery else worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("is_forked", [False, True], ids=["started", "forked"])
@pytest.mark.parametrize("freeze", ["", "os.kill(worker.pid, signal.SIGSTOP)"], ids=["idle", "stopped"])
def test_a_killed_agent_leaves_no_worker_and_never_loaded_the_runtime(
    tmp_path: Path, freeze: str, is_forked: bool
) -> None:
    root = str(Path(__file__).parents[3])
    script = _AGENT.format(root=root, folder=str(tmp_path / "empty"), freeze=freeze, is_forked=is_forked)
    agent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert agent.returncode == -signal.SIGKILL, agent.stderr
    for pid in map(int, agent.stdout.split()):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(timeout=10)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_forked_worker_that_dies_is_replaced_and_its_end_is_known(tmp_path: Path) -> None:
    strikes: list[Strike] = []
    nursery = nursery_in(tmp_path)
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, strikes=strikes, nursery=nursery) as runner:
        first, breeder = the_pid(runner), nursery.pid
        assert psutil.Process(first).ppid() == os.getpid()
        os.kill(first, signal.SIGKILL)
        await runner.infer({"features": tiny_models.flow_rows(1)})
        assert the_pid(runner) != first
        assert nursery.pid == breeder
    assert "SIGKILL" in str(strikes[0].error)
    assert not psutil.pid_exists(first)


async def test_workers_outlive_what_they_were_forked_from_and_the_next_comes_from_a_new_one(tmp_path: Path) -> None:
    nursery = nursery_in(tmp_path)
    async with running(tiny_models.flow_model(), FLOW_PLAN, tmp_path, nursery=nursery) as runner:
        first, breeder = the_pid(runner), nursery.pid
        assert breeder is not None
        os.kill(breeder, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(breeder)], timeout=10)
        await runner.infer({"features": tiny_models.flow_rows(1)})
        assert the_pid(runner) == first
        os.kill(first, signal.SIGKILL)
        await runner.infer({"features": tiny_models.flow_rows(1)})
        assert nursery.pid not in (None, breeder)


async def test_a_hung_nursery_is_the_hosts_trouble_and_the_next_worker_comes_from_another(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path / "empty", 5.0, SMALL.admit)
    child = await nursery.child()
    child.kill()
    await child.ended()
    assert nursery.pid is not None
    os.kill(nursery.pid, signal.SIGSTOP)
    nursery._timeout_s = 0.2
    with pytest.raises(SpawnFailed, match="no worker process was forked in"):
        await nursery.child()
    nursery._timeout_s = 30.0
    child = await nursery.child()
    child.kill()
    assert "SIGKILL" in await child.ended()
    await nursery.close()


@pytest.mark.parametrize(
    ("text", "room"),
    [("MemAvailable: 262144 kB\n", True), ("MemAvailable: 262143 kB\n", False), ("MemFree: 1\n", False)],
)
def test_a_host_has_room_for_a_nursery_when_it_has_memory_to_spare(tmp_path: Path, text: str, room: bool) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert has_room(tmp_path / "meminfo") is room
    assert has_room(tmp_path / "absent") is False


async def test_a_model_that_slows_down_bit_by_bit_does_not_raise_its_deadline_without_end() -> None:
    pace = RowPace()
    worker = Worker(FLOW_PLAN, SMALL, pace)
    assert worker.deadline_s(1) == SMALL.deadline_s
    for _ in range(10):
        pace.add(worker.deadline_s(64) * 0.9, 64)
    assert worker.deadline_s(64) == SMALL.deadline_most_s


def test_the_deadline_follows_the_pace_of_the_model_and_never_falls_below_the_least() -> None:
    pace = RowPace()
    assert pace.p99_s == 0.0
    for _ in range(1000):
        pace.add(0.064, 64)
    assert 1e-3 <= pace.p99_s <= 2e-3
    for _ in range(64):
        pace.add(6.4, 64)
    assert pace.p99_s >= 0.1
    for _ in range(20_000):
        pace.add(0.064, 64)
    assert pace.p99_s <= 2e-3


async def test_more_rows_than_one_batch_are_refused_where_they_cannot_be_cut(tmp_path: Path) -> None:
    plan = plan_of(tiny_models.TRIPWIRE_INPUTS, tiny_models.TRIPWIRE_OUTPUTS)
    async with running(tiny_models.tripwire_model(), plan, tmp_path) as runner:
        with pytest.raises(InvalidRequest, match=r"65 rows, limit 64 \(max_rows\)"):
            await runner.infer(tripwire(FINE, rows=65))
