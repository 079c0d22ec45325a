"""Child processes: results, refusals, crashes, limits, cancellation, and that none outlives its parent."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from vedette.controller.adapters import children
from vedette.controller.adapters.children import Children
from vedette.controller.domain.errors import Refused
from vedette.controller.domain.jobs import ChildLimits, JobCrashed, Log

JOB = "tests.support.jobs"
ROOT = Path(__file__).parents[3]
LIMITS = ChildLimits(memory_bytes=1 << 30, memory_setting="training.memory", deadline_s=30)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


async def run(folder: Path, limits: ChildLimits = LIMITS, log: Log | None = None, **arguments: Any) -> dict[str, Any]:
    return await Children().run(JOB, folder, arguments, limits=limits, log=log)


async def test_result_and_progress_come_back_and_prints_go_to_the_log(tmp_path: Path) -> None:
    followed: list[tuple[float, str]] = []
    log = Log()
    said = await Children().run(
        JOB,
        tmp_path,
        {"do": "answer", "value": [1, "ü"]},
        limits=LIMITS,
        follow=lambda fraction, step: followed.append((fraction, step)),
        log=log,
    )
    assert (said["got"], said["nice"]) == ([1, "ü"], LIMITS.niceness)
    assert said["oom"] >= 500  # the kernel ends a child rather than its server
    assert followed == [(0.5, "half way")]
    assert list(log.lines) == ["printed by a library"]


async def test_refusal_of_a_job_is_raised_as_its_own_class(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        await run(tmp_path, do="refuse")
    assert (caught.value.code, caught.value.why, caught.value.remedy) == ("too-odd", "it is 7", "send 8")


async def test_crash_is_an_error_with_the_last_words(tmp_path: Path) -> None:
    with pytest.raises(JobCrashed, match="SIGSEGV") as caught:
        await run(tmp_path, do="crash")
    assert "last words" in caught.value.why


async def test_child_that_leaves_without_a_result_is_a_crash_even_with_status_0(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"result": {"of": "an earlier try"}}))
    with pytest.raises(JobCrashed, match="status 0 and no result"):
        await run(tmp_path, do="leave")


async def test_memory_limit_is_a_refusal_that_names_value_and_setting(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        await run(tmp_path, do="grab")
    assert caught.value.code == "out-of-memory"
    assert "1073741824 bytes (training.memory)" in caught.value.why


async def test_file_limit_ends_the_child(tmp_path: Path) -> None:
    with pytest.raises(JobCrashed):
        await run(tmp_path, ChildLimits(memory_bytes=1 << 30, file_bytes=1 << 20), do="fill")
    assert (tmp_path / "large").stat().st_size <= 1 << 20


async def test_deadline_kills_the_child(tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(JobCrashed, match="SIGKILL"):
        await run(tmp_path, ChildLimits(memory_bytes=1 << 30, deadline_s=0.5), log, do="wait")
    assert log.lines[-1] == "ended by the controller: past its deadline of 0.5 s"


async def test_log_keeps_its_end_within_bounds(tmp_path: Path) -> None:
    log = Log(most_bytes=300_000)
    await run(tmp_path, log=log, do="chatter")
    assert log.held <= 300_000
    assert log.lines[-1].endswith("x")


async def test_cancelled_wait_leaves_no_process(tmp_path: Path) -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        Children().run(
            JOB, tmp_path, {"do": "wait"}, limits=LIMITS, follow=lambda _, step: started.set_result(int(step))
        )
    )
    pid = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)


async def test_no_more_children_run_at_once_than_there_are_places(tmp_path: Path) -> None:
    children = Children(at_once=1)
    folders = [tmp_path / str(place) for place in range(3)]
    for folder in folders:
        folder.mkdir()
    running: list[int] = []
    most = 0

    async def one(folder: Path) -> None:
        nonlocal most
        await children.run(
            JOB, folder, {"do": "answer", "value": 1}, limits=LIMITS, follow=lambda *_: running.append(1)
        )
        most = max(most, len(running))
        running.pop()

    await asyncio.gather(*(one(folder) for folder in folders))
    assert most == 1


PARENT = """
import asyncio, sys
from pathlib import Path
from vedette.controller.adapters.children import Children
from vedette.controller.domain.jobs import ChildLimits
asyncio.run(Children().run(sys.argv[1], Path(sys.argv[2]), {"do": "wait"}, limits=ChildLimits(),
            follow=lambda _, step: print(step, flush=True)))
"""


def test_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, JOB, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_keeps_the_loaders_path_that_its_server_was_given(monkeypatch: pytest.MonkeyPatch):
    # Else a library that only this path holds is there for the server and missing in the child.
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert children._environment(1, None)["LD_LIBRARY_PATH"] == "/opt/lib"
    assert children._environment(1, "/job/lib:/opt/lib")["LD_LIBRARY_PATH"] == "/job/lib:/opt/lib"
