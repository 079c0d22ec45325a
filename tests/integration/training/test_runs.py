"""Runs from a real capture to a signed version, with a small recipe; failures, restarts and kills on the way."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.learning import CAPTURES, DataRoom, data_room
from vedette.controller.domain.errors import InvalidInput, NotFound, Refused
from vedette.controller.jobs import examine
from vedette.models.golden import Golden, mismatch
from vedette.models.profile import ReferenceProfile
from vedette.wire.views import Run, RunState

ROOT = Path(__file__).parents[3]
SET = CAPTURES / "shifted"


@pytest.fixture
def room(tmp_path: Path) -> Iterator[DataRoom]:
    with data_room(tmp_path) as opened:
        yield opened


async def lab(room: DataRoom) -> None:
    await room.data("lab", SET / "softflowd-v9.pcap.gz", "flows")
    await room.labels("lab", SET / "labels.json")
    await room.service.create_snapshot("lab")


async def ended(room: DataRoom, run: str) -> Run:
    seen = [seen async for seen in room.runs.watch(run)]
    return seen[-1]


async def test_run_trains_converts_proves_and_registers(room: DataRoom) -> None:
    await lab(room)
    queued = await room.runs.start("toy", "lab@1", {"rounds": "6"})
    assert (queued.run, queued.state) == ("r1", RunState.QUEUED)
    seen = [seen async for seen in room.runs.watch("r1")]
    done = seen[-1]
    assert (done.state, done.version, done.error) == (RunState.SUCCEEDED, "toy:1", "")
    assert [s.progress for s in seen] == sorted(s.progress for s in seen)
    assert done.metrics["parity_rows"] > 4_000
    assert any("LightGBM" in line for line in done.log_tail)

    release = room.versions.release("toy:1")
    assert release.lineage["snapshot_digest"] == (await room.service.snapshot("lab@1"))[0].digest
    assert release.lineage["parameter.rounds"] == "6"
    assert json.loads(room.blobs.read(release.lineage["evaluation"], limit=1 << 20))["sites"] == [
        "softflowd-v9.pcap.gz 127.0.0.1/0"
    ]
    golden = Golden.from_bytes(room.blobs.read(release.golden.digest, limit=1 << 24))
    session = examine.open_session(room.blobs.read(release.builds[0].digest, limit=1 << 24))
    assert mismatch(golden.outputs, examine.run(session, golden.inputs), release.builds[0].tolerance) is None
    assert len(np.unique(golden.outputs["label"])) > 2
    assert release.reference is not None
    profile = ReferenceProfile.from_bytes(room.blobs.read(release.reference.digest, limit=1 << 24))
    assert profile.columns[-1] == "score"
    assert 0 < profile.rows < 40_000
    assert [path.name for path in (room.root / "runs/r1").iterdir()] == ["log.txt"]


async def test_recipe_for_tables_trains_an_isolation_forest_on_one(room: DataRoom) -> None:
    source = np.random.default_rng(1)
    lines = [
        f"{a:.3f},{b},{'odd' if b > 90 else 'benign'}" for a, b in zip(source.random(300), range(300), strict=True)
    ]
    await room.data("table", "\n".join(["a,b,label", *lines]).encode(), "csv", "t.csv")
    await room.service.create_snapshot("table")
    done = await ended(room, (await room.runs.start("toy-table", "table@1", {})).run)
    assert (done.state, done.version, done.error) == (RunState.SUCCEEDED, "toy-table:1", "")
    release = room.versions.release("toy-table:1")
    assert (release.kind, release.labels, [o.name for o in release.outputs]) == ("tensor", ("benign", "odd"), ["score"])
    assert release.schema is not None
    assert release.schema.names == ("a", "b")


async def test_same_snapshot_and_parameters_give_the_same_build_and_golden_rows(room: DataRoom) -> None:
    await lab(room)
    for model in ("one", "two"):
        await ended(room, (await room.runs.start("toy", "lab@1", {}, model)).run)
    one, two = room.versions.release("one:1"), room.versions.release("two:1")
    assert [b.digest for b in one.blobs] == [b.digest for b in two.blobs]


async def test_what_cannot_run_is_refused_before_anything_is_stored(room: DataRoom) -> None:
    await lab(room)
    await room.data("table", b"a,label\n1,x\n2,y\n", "csv", "t.csv")
    await room.service.create_snapshot("table")
    with pytest.raises(NotFound) as unknown:
        await room.runs.start("tooy", "lab@1", {})
    assert unknown.value.why == "did you mean toy?"
    with pytest.raises(InvalidInput) as strange:
        await room.runs.start("toy", "lab@1", {"round": "5"})
    assert strange.value.why == "did you mean rounds?"
    with pytest.raises(InvalidInput) as out_of_range:
        await room.runs.start("toy", "lab@1", {"rounds": "51"})
    assert "51, allowed 1 to 50" in out_of_range.value.why
    with pytest.raises(InvalidInput):
        await room.runs.start("broken", "lab@1", {})
    with pytest.raises(NotFound):
        await room.runs.start("toy", "lab@9", {})
    with pytest.raises(Refused) as other:
        await room.runs.start("toy", "table@1", {})
    assert "takes flow rows" in other.value.why
    assert await room.runs.all() == ()


@pytest.mark.parametrize(
    ("mood", "says"), [("raises", "the toy recipe is in a bad mood"), ("dies", "was ended by SIGABRT")]
)
async def test_failing_recipe_is_a_failed_run_with_its_reason_and_log(room: DataRoom, mood: str, says: str) -> None:
    await lab(room)
    done = await ended(room, (await room.runs.start("toy", "lab@1", {"mood": mood})).run)
    assert done.state is RunState.FAILED
    assert says in done.error
    assert done.ended is not None
    assert room.versions.newest() == {}
    after = await ended(room, (await room.runs.start("toy", "lab@1", {})).run)
    assert (after.run, after.state) == ("r2", RunState.SUCCEEDED)


async def waiting(room: DataRoom) -> str:
    """Start a run that waits in its recipe and return its name once it does."""
    run = (await room.runs.start("toy", "lab@1", {"mood": "waits"})).run
    async for seen in room.runs.watch(run):
        if seen.step == "fitting":
            return run
    raise AssertionError("the run ended")


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "training.child" in " ".join(_words_of(child))]


def _words_of(child: psutil.Process) -> list[str]:
    try:
        return child.cmdline()
    except psutil.NoSuchProcess:  # it has ended, reaped or not
        return []


async def test_cancelled_run_has_failed_and_its_process_is_gone(room: DataRoom) -> None:
    await lab(room)
    run = await waiting(room)
    assert len(children()) == 1
    cancelled = await room.runs.cancel(run)
    assert (cancelled.state, cancelled.error) == (RunState.FAILED, "cancelled by an admin")
    assert children() == []
    assert await room.runs.cancel(run) == cancelled


async def test_stopped_controller_carries_on_at_the_next_start_and_gives_up_in_the_end(tmp_path: Path) -> None:
    with data_room(tmp_path) as room:
        await lab(room)
        run = await waiting(room)
        await room.runs.stop()
        assert (await room.runs.get(run)).state is RunState.TRAINING
    for _ in range(2):
        with data_room(tmp_path) as room:
            await room.runs.resume()
            async for seen in room.runs.watch(run):
                if seen.step == "fitting":
                    break
            await room.runs.stop()
    with data_room(tmp_path) as room:
        await room.runs.resume()
        done = await ended(room, run)
    assert done.state is RunState.FAILED
    assert "ended 3 times while it was training" in done.error


async def test_damaged_blob_fails_the_run_and_not_the_controller(room: DataRoom) -> None:
    await lab(room)
    (part,) = room.store.contents("lab").parts
    path = room.blobs.path(part.digest)
    path.chmod(0o600)
    path.write_bytes(b"not parquet")
    done = await ended(room, (await room.runs.start("toy", "lab@1", {})).run)
    assert done.state is RunState.FAILED


@pytest.mark.parametrize("state", ["queued", "training", "converting", "registering", "succeeded"])
async def test_controller_killed_at_each_stored_state_finishes_the_run_once(tmp_path: Path, state: str) -> None:
    with data_room(tmp_path) as room:
        await lab(room)
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.support.killed_server", str(tmp_path), state],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with data_room(tmp_path) as room:
        await room.runs.resume()
        done = await ended(room, "r1")
        assert (done.state, done.version, done.error) == (RunState.SUCCEEDED, "toy:1", "")
        assert room.versions.newest() == {"toy": 1}
