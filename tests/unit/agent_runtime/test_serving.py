from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_models
from tests.support.appliance import Appliance
from tests.support.tiny_models import assigned, flow_outputs, flow_rows
from vedette.agent.adapters.inference.serving import EventKind, ServingEvent
from vedette.agent.domain.errors import (
    AgentError,
    BlobCorrupt,
    DiskFull,
    InstallCode,
    InstallFailed,
    InvalidRequest,
    ModelFailed,
    NoActiveModel,
    WorkerTimeout,
)
from vedette.agent.domain.slots import MAX_SAVES, SlotRecord
from vedette.models.assignment import MAX_SLOTS
from vedette.models.golden import Golden
from vedette.models.release import Blob, Build, Release, TensorSpec, Tolerance
from vedette.wire.values import SlotState

SLOT = "flow-threat"


async def install(appliance: Appliance, release: Release) -> None:
    await appliance.serving.install(assigned(release), release, appliance.fetch)


async def install_fails(appliance: Appliance, release: Release) -> InstallFailed:
    with pytest.raises(InstallFailed) as caught:
        await install(appliance, release)
    return caught.value


async def version_that_answers(appliance: Appliance, rows: int = 5) -> int:
    """Ask for an answer, check its numbers against the version that claims it, and return that version."""
    features = flow_rows(rows, seed=99)
    answer = await appliance.serving.infer(SLOT, {"features": features})
    want = flow_outputs(features, bias=float(answer.release.version))
    np.testing.assert_allclose(answer.outputs["score"], want["score"], atol=1e-6)
    return answer.release.version


async def kill_worker(appliance: Appliance, how: signal.Signals = signal.SIGKILL) -> None:
    """Kill the active worker, which answered just before."""
    await version_that_answers(appliance)
    model = appliance.serving.active(SLOT)
    assert model is not None
    os.kill(model.runner.pids[0], how)


async def test_a_first_build_becomes_active_and_answers(appliance: Appliance) -> None:
    release = appliance.shelf.flow_release(1)
    await install(appliance, release)
    assert await version_that_answers(appliance) == 1
    (status,) = appliance.serving.statuses()
    assert (status.state, status.active and status.active.version) == (SlotState.ACTIVE, 1)
    assert (status.rows, status.previous, status.candidate, status.reason) == (5, None, None, "")
    assert 0 < status.latency_p50_ms <= status.latency_p99_ms


async def test_installing_what_is_active_does_nothing(appliance: Appliance) -> None:
    release = appliance.shelf.flow_release(1)
    await install(appliance, release)
    active = appliance.serving.active(SLOT)
    await install(appliance, release)
    assert appliance.serving.active(SLOT) is active
    assert len(appliance.shelf.fetched) == 2


async def test_an_empty_slot_says_so(appliance: Appliance) -> None:
    with pytest.raises(NoActiveModel, match="'flow-threat' has no active model"):
        await appliance.serving.infer(SLOT, {"features": flow_rows(1)})


async def test_a_bad_request_is_no_error_of_the_model(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    with pytest.raises(InvalidRequest):
        await appliance.serving.infer(SLOT, {"features": flow_rows(1).astype(np.float64)})
    model = appliance.serving.active(SLOT)
    assert model is not None
    assert (model.stats.errors, model.stats.rows) == (0, 0)


async def test_twenty_swaps_under_load_lose_no_request_and_mix_no_versions(appliance: Appliance) -> None:
    releases = [appliance.shelf.flow_release(version) for version in (1, 2)]
    await install(appliance, releases[0])
    done = asyncio.Event()
    seen: list[int] = []

    async def ask(rows: int) -> int:
        count = 0
        while not done.is_set():
            seen.append(await version_that_answers(appliance, rows))
            count += 1
        return count

    load = [asyncio.create_task(ask(rows)) for rows in (1, 7, 64, 9000)]  # 9,000 rows are three batches
    for swap in range(20):
        await install(appliance, releases[(swap + 1) % 2])
    done.set()
    counts = await asyncio.gather(*load)
    assert min(counts) > 20
    assert set(seen) == {1, 2}
    assert sum(counts) == len(seen)
    assert len(appliance.serving.worker_pids) == 1


async def test_the_previous_build_comes_back_without_a_download(appliance: Appliance) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    appliance.shelf.fetched.clear()
    await install(appliance, first)
    assert (appliance.shelf.fetched, await version_that_answers(appliance)) == ([], 1)


async def test_after_a_restart_the_active_build_serves_with_no_controller(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    await install(appliance, appliance.shelf.flow_release(2))
    await appliance.restart()
    assert await version_that_answers(appliance) == 2


def on_disk(appliance: Appliance) -> set[str]:
    return {f"sha256:{path.name}" for path in (appliance.blobs / "sha256").iterdir()}


def files_of(*releases: Release) -> dict[str, int]:
    return {blob.digest: blob.size for release in releases for blob in release.blobs}


def budget(appliance: Appliance, most_bytes: int) -> None:
    appliance.use(replace(appliance.settings, disk_bytes=most_bytes))


async def test_a_version_that_is_in_no_slot_any_more_comes_back_without_a_download(appliance: Appliance) -> None:
    releases = [appliance.shelf.flow_release(version) for version in (1, 2, 3, 4)]
    for release in releases:
        await install(appliance, release)
    await appliance.restart()
    assert on_disk(appliance) == set(files_of(*releases))
    appliance.shelf.fetched.clear()
    await install(appliance, releases[0])
    assert (appliance.shelf.fetched, await version_that_answers(appliance)) == ([], 1)


async def test_over_the_budget_the_longest_unused_leave_and_never_what_a_slot_names(appliance: Appliance) -> None:
    releases = [appliance.shelf.flow_release(version) for version in (1, 2, 3, 4, 5)]
    budget(appliance, sum(files_of(*releases[:4]).values()))
    for at, release in enumerate(releases[:4]):
        await install(appliance, release)
        for blob in release.blobs:
            os.utime(appliance.blob_path(blob.digest), (1000 + at, 1000 + at))
    await install(appliance, releases[0])  # used again, and so the newest
    await install(appliance, releases[4])
    assert set(files_of(releases[1])) - on_disk(appliance)  # the longest unused
    assert set(files_of(releases[0], releases[4])) <= on_disk(appliance)
    assert await version_that_answers(appliance) == 5


async def test_what_cannot_fit_beside_what_is_in_use_is_refused_with_the_numbers_before_a_byte_is_fetched(
    appliance: Appliance,
) -> None:
    releases = [appliance.shelf.flow_release(version) for version in (1, 2, 3)]
    most = sum(files_of(*releases).values()) - 1
    budget(appliance, most)
    for release in releases[:2]:
        await install(appliance, release)
    appliance.shelf.fetched.clear()
    failed = await install_fails(appliance, releases[2])
    assert failed.code is InstallCode.DISK_FULL
    assert f"take {most + 1} bytes, limit {most} (budget.disk)" in failed.reason
    assert (appliance.shelf.fetched, await version_that_answers(appliance)) == ([], 2)
    assert on_disk(appliance) == set(files_of(*releases[:2]))


async def test_several_slots_serve_side_by_side(appliance: Appliance) -> None:
    one, two = appliance.shelf.flow_release(1), appliance.shelf.flow_release(2, model=None)
    await install(appliance, one)
    other = replace(two, model="other")
    await appliance.serving.install(assigned(other, "other"), other, appliance.fetch)
    assert await version_that_answers(appliance) == 1
    answer = await appliance.serving.infer("other", {"features": flow_rows(3)})
    assert (answer.release.model, answer.release.version) == ("other", 2)
    assert len(set(appliance.serving.worker_pids)) == 2


# A candidate that is no good


async def test_a_wrong_byte_is_never_loaded_and_blames_no_build(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    release = appliance.shelf.flow_release(2)
    digest = release.builds[0].digest
    good = appliance.shelf.blobs[digest]
    appliance.shelf.blobs[digest] = good[:-1] + bytes([good[-1] ^ 1])
    failed = await install_fails(appliance, release)
    assert failed.code is InstallCode.DIGEST_MISMATCH
    assert not appliance.blob_path(digest).exists()
    assert await version_that_answers(appliance) == 1
    assert digest not in appliance.serving.quarantine
    appliance.shelf.blobs[digest] = good
    await install(appliance, release)
    assert await version_that_answers(appliance) == 2


def wrong_width(shelf: tiny_models.Shelf) -> Release:
    return shelf.flow_release(2, inputs=(TensorSpec("features", "float32", (-1, 5)),))


def not_a_model(shelf: tiny_models.Shelf) -> Release:
    return shelf.flow_release(2, model=b"not a model at all")


def lying_golden(shelf: tiny_models.Shelf) -> Release:
    return shelf.flow_release(2, lie=0.25)


def no_golden(shelf: tiny_models.Shelf) -> Release:
    return shelf.flow_release(2, golden=shelf.put(b"no tensor file"))


def too_new(shelf: tiny_models.Shelf) -> Release:
    build = Build("onnx-fp32", shelf.put(tiny_models.flow_model(2.0)), Tolerance(1e-5, 0), {"onnxruntime": ">=99"})
    return shelf.flow_release(2, builds=(build,))


def deep_tree(shelf: tiny_models.Shelf) -> Release:
    return shelf.flow_release(2, model=tiny_models.deep_tree_model())


UNFIT = [
    (wrong_width, r"float32\[-1, 5\], the schema and labels need float32\[-1, 4\]"),
    (too_new, r"needs onnxruntime >=99, this appliance has \d"),
]
BAD = [
    (not_a_model, InstallCode.MODEL_REFUSED, "protobuf"),
    (lying_golden, InstallCode.SELF_TEST_FAILED, "score"),
    (no_golden, InstallCode.MODEL_REFUSED, "tensor file"),
    (deep_tree, InstallCode.WORKER_CRASHED, "SIGSEGV"),
]


@pytest.mark.parametrize(("made", "code", "match"), BAD, ids=[str(row[0].__name__) for row in BAD])
async def test_a_bad_build_is_refused_quarantined_also_across_a_restart_and_the_old_one_serves(
    appliance: Appliance, made: Any, code: InstallCode, match: str
) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    release = made(appliance.shelf)
    with pytest.raises(InstallFailed, match=match) as caught:
        await install(appliance, release)
    assert caught.value.code is code
    (status,) = appliance.serving.statuses()
    assert (status.state, status.candidate, status.active and status.active.version) == (SlotState.FAILED, None, 1)
    assert status.reason == str(caught.value)
    assert release.builds[0].digest not in on_disk(appliance)
    assert set(files_of(appliance.shelf.flow_release(1))) <= on_disk(appliance)
    assert await version_that_answers(appliance) == 1
    await appliance.restart()
    assert await version_that_answers(appliance) == 1
    again = await install_fails(appliance, release)
    assert again.code is InstallCode.QUARANTINED
    assert str(code) in again.reason
    assert status.quarantined == (release.builds[0].digest,)


@pytest.mark.parametrize(("made", "match"), UNFIT, ids=[str(row[0].__name__) for row in UNFIT])
async def test_a_release_that_cannot_be_served_is_refused_unread_and_its_bytes_may_come_again(
    appliance: Appliance, made: Any, match: str
) -> None:
    release = made(appliance.shelf)
    with pytest.raises(InstallFailed, match=match) as caught:
        await install(appliance, release)
    assert caught.value.code is InstallCode.MODEL_REFUSED
    assert appliance.shelf.fetched == []
    good = appliance.shelf.flow_release(2)
    assert good.builds[0].digest == release.builds[0].digest
    await install(appliance, good)
    assert await version_that_answers(appliance) == 2


async def test_a_model_that_hangs_in_its_self_test_is_refused(appliance: Appliance) -> None:
    appliance.use(replace(appliance.settings, worker=replace(appliance.settings.worker, test_deadline_s=0.3)))
    release = tripwire_release(appliance.shelf, kind=1)
    with pytest.raises(InstallFailed) as caught:
        await appliance.serving.install(assigned(release, "trap"), release, appliance.fetch)
    assert caught.value.code is InstallCode.WORKER_TIMEOUT
    assert appliance.serving.worker_pids == ()


async def test_a_model_over_its_budget_in_its_self_test_is_refused(appliance: Appliance) -> None:
    release = tripwire_release(appliance.shelf, kind=2)
    with pytest.raises(InstallFailed) as caught:
        await appliance.serving.install(assigned(release, "trap"), release, appliance.fetch)
    assert caught.value.code is InstallCode.OUT_OF_MEMORY


def tripwire_release(shelf: tiny_models.Shelf, kind: int = 0) -> Release:
    """Return a release of the tripwire model whose golden sample trips it."""
    inputs = {"x": np.array([1.0], np.float32), "kind": np.array([kind], np.int64)}
    golden = Golden(inputs, {"y": np.array([2.0], np.float32)})
    return shelf.flow_release(
        1,
        model=tiny_models.tripwire_model(),
        kind="tensor",
        schema=None,
        inputs=tiny_models.TRIPWIRE_INPUTS,
        outputs=tiny_models.TRIPWIRE_OUTPUTS,
        golden=shelf.put(golden.to_bytes()),
    )


async def test_a_flow_model_that_answers_other_rows_than_it_was_asked_costs_its_rows_and_not_the_agent(
    appliance: Appliance,
) -> None:
    await install(appliance, appliance.shelf.flow_release(1, model=tiny_models.forgetful_flow_model(1.0)))
    assert await version_that_answers(appliance, rows=16) == 1
    with pytest.raises(ModelFailed, match=r"'score': \[16\].* for 17 rows"):
        await appliance.serving.infer(SLOT, {"features": tiny_models.flow_rows(17)})
    assert appliance.serving.actives[SLOT].stats.errors == 1


# Downloads and disks


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AgentError("link down"), InstallCode.DOWNLOAD_FAILED),
        (DiskFull("no room"), InstallCode.DISK_FULL),
        (BlobCorrupt("wrong twice"), InstallCode.DIGEST_MISMATCH),
    ],
)
async def test_a_failed_download_is_told_apart_and_may_be_tried_again(
    appliance: Appliance, error: AgentError, code: InstallCode
) -> None:
    release = appliance.shelf.flow_release(1)

    async def fetch(blob: Blob) -> Path:
        raise error

    with pytest.raises(InstallFailed) as caught:
        await appliance.serving.install(assigned(release), release, fetch)
    assert caught.value.code is code
    await install(appliance, release)
    assert await version_that_answers(appliance) == 1


async def test_a_half_done_download_stays_for_the_next_try_and_is_told_in_the_status(appliance: Appliance) -> None:
    release = appliance.shelf.flow_release(1)
    partial = appliance.serving.blobs.partial_path(release.builds[0].digest)

    async def fetch(blob: Blob) -> Path:
        partial.write_bytes(appliance.shelf.blobs[blob.digest][:100])
        raise AgentError("cable cut")

    with pytest.raises(InstallFailed, match="cable cut"):
        await appliance.serving.install(assigned(release), release, fetch)
    await appliance.restart()
    (status,) = appliance.serving.statuses()
    assert partial.stat().st_size == 100
    assert (status.state, status.candidate_bytes_done) == (SlotState.DOWNLOADING, 100)
    assert status.candidate_bytes_total == sum(blob.size for blob in release.blobs)


async def test_a_download_that_would_eat_the_reserve_is_refused_with_value_and_limit(appliance: Appliance) -> None:
    appliance.use(replace(appliance.settings, reserve_bytes=2**60))
    failed = await install_fails(appliance, appliance.shelf.flow_release(1))
    assert failed.code is InstallCode.DISK_FULL
    assert str(2**60) in failed.reason
    assert appliance.shelf.fetched == []


async def test_with_a_full_disk_the_active_build_serves_and_even_falls_back(appliance: Appliance) -> None:
    first, second, third = (appliance.shelf.flow_release(version) for version in (1, 2, 3))
    await install(appliance, first)
    await install(appliance, second)
    fill(appliance)
    failed = await install_fails(appliance, third)
    assert failed.code is InstallCode.DISK_FULL
    assert await version_that_answers(appliance) == 2
    for _ in range(3):
        await kill_worker(appliance)
    assert await version_that_answers(appliance) == 1
    make_room(appliance)
    await install(appliance, third)
    assert await version_that_answers(appliance) == 3
    await appliance.restart()
    assert (await install_fails(appliance, second)).code is InstallCode.QUARANTINED


def fill(appliance: Appliance) -> None:
    """Let the database grow no more, and need more with each record of a slot."""
    with appliance.state.transaction() as connection:
        connection.execute("CREATE TABLE ballast (body BLOB)")
        grow = "INSERT INTO ballast VALUES (zeroblob(65536))"
        connection.execute(f"CREATE TRIGGER growing BEFORE INSERT ON slots BEGIN {grow}; END")
    connection = appliance.state._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")


def make_room(appliance: Appliance) -> None:
    appliance.state._connection.execute("PRAGMA max_page_count = 100000")


async def test_a_flipped_bit_on_the_disk_makes_the_previous_build_serve(appliance: Appliance) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    flip(appliance.blob_path(second.builds[0].digest))
    await appliance.restart()
    assert await version_that_answers(appliance) == 1
    (status,) = appliance.serving.statuses()
    assert status.reason.startswith("digest-mismatch")
    assert status.quarantined == ()
    await install(appliance, second)
    assert await version_that_answers(appliance) == 2


async def test_a_bit_that_flips_while_serving_is_found_when_the_worker_is_replaced(appliance: Appliance) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    flip(appliance.blob_path(second.builds[0].digest))
    assert await version_that_answers(appliance) == 2
    await kill_worker(appliance)
    assert await version_that_answers(appliance) == 1


async def test_damaged_golden_samples_do_not_stop_a_build_that_served(appliance: Appliance) -> None:
    release = appliance.shelf.flow_release(1)
    await install(appliance, release)
    flip(appliance.blob_path(release.golden.digest))
    await appliance.restart()
    assert await version_that_answers(appliance) == 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# A build that is bad in service


async def test_a_build_that_dies_thrice_is_quarantined_and_the_previous_one_serves(appliance: Appliance) -> None:
    events: list[ServingEvent] = []
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    appliance.serving.on_event = events.append
    for _ in range(3):
        await kill_worker(appliance)
    assert await version_that_answers(appliance) == 1
    assert [event.kind for event in events if event.kind is not EventKind.PROGRESS] == [
        *[EventKind.RESTARTED] * 3,
        EventKind.FELL_BACK,
    ]
    await appliance.restart()
    assert await version_that_answers(appliance) == 1
    again = await install_fails(appliance, second)
    assert again.code is InstallCode.QUARANTINED
    assert "SIGKILL" in again.reason


async def test_deaths_far_apart_are_forgiven(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    for _ in range(4):
        await kill_worker(appliance)
        assert await version_that_answers(appliance) == 1
        await appliance.clock.advance(200.0)
    model = appliance.serving.active(SLOT)
    assert model is not None
    assert model.restarts == 4


async def test_the_only_build_that_dies_thrice_leaves_the_slot_failed_with_its_reason(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    for _ in range(3):
        await kill_worker(appliance)
    with pytest.raises(NoActiveModel, match="worker-crashed"):
        await version_that_answers(appliance)
    (status,) = appliance.serving.statuses()
    assert (status.state, status.active) == (SlotState.FAILED, None)


async def test_requests_in_flight_when_a_build_falls_are_answered_by_its_successor(appliance: Appliance) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    for _ in range(2):
        await kill_worker(appliance)
    await kill_worker(appliance, signal.SIGSTOP)
    asked = [asyncio.create_task(version_that_answers(appliance, rows)) for rows in (1, 2, 3, 4, 5)]
    assert await asyncio.gather(*asked) == [1, 1, 1, 1, 1]


async def test_a_build_that_hangs_thrice_is_quarantined(appliance: Appliance) -> None:
    release = tripwire_release(appliance.shelf)
    await appliance.serving.install(assigned(release, "trap"), release, appliance.fetch)
    for _ in range(3):
        with pytest.raises(WorkerTimeout):
            await appliance.serving.infer("trap", {"x": np.zeros(1, np.float32), "kind": np.array([1], np.int64)})
    with pytest.raises(NoActiveModel, match="worker-timeout"):
        await appliance.serving.infer("trap", {"x": np.zeros(1, np.float32), "kind": np.array([0], np.int64)})
    assert list(appliance.serving.quarantine) == [release.builds[0].digest]


async def cancel_when_staged(appliance: Appliance, release: Release) -> None:
    """Begin an installation and cancel it once it has stored that it loads the candidate."""
    staged = asyncio.Event()
    save = appliance.state.save_slot

    def save_and_tell(record: SlotRecord, body: bytes | None = None) -> None:
        save(record, body)
        if record.stage is SlotState.STAGED:
            staged.set()

    appliance.state.save_slot = save_and_tell  # type: ignore[method-assign]
    task = asyncio.create_task(install(appliance, release))
    await staged.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    appliance.state.save_slot = save  # type: ignore[method-assign]


async def test_a_cancelled_installation_leaves_no_worker_and_goes_on_later(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    release = appliance.shelf.flow_release(2)
    await cancel_when_staged(appliance, release)
    assert len(appliance.serving.worker_pids) == 1
    assert await version_that_answers(appliance) == 1
    await install(appliance, release)
    assert await version_that_answers(appliance) == 2


async def test_a_build_whose_loading_never_ends_is_given_up_after_eight_stores(appliance: Appliance) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    release = appliance.shelf.flow_release(2)
    for _ in range(MAX_SAVES - 2):
        await cancel_when_staged(appliance, release)
    assert (await install_fails(appliance, release)).code is InstallCode.GAVE_UP
    assert (await install_fails(appliance, release)).code is InstallCode.QUARANTINED
    assert await version_that_answers(appliance) == 1


async def test_a_candidate_no_longer_wanted_is_forgotten(appliance: Appliance) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)

    async def fetch(blob: Blob) -> Path:
        raise AgentError("link down")

    with pytest.raises(InstallFailed):
        await appliance.serving.install(assigned(second), second, fetch)
    await install(appliance, first)
    (status,) = appliance.serving.statuses()
    assert (status.state, status.candidate) == (SlotState.ACTIVE, None)


async def test_a_failed_candidate_is_told_until_the_active_build_is_wanted_again(appliance: Appliance) -> None:
    first = appliance.shelf.flow_release(1)
    await install(appliance, first)
    assert appliance.serving.unsettled == frozenset()
    await install_fails(appliance, lying_golden(appliance.shelf))
    assert appliance.serving.unsettled == {SLOT}
    await install(appliance, first)
    assert appliance.serving.unsettled == frozenset()
    for _ in range(2):
        (status,) = appliance.serving.statuses()
        assert (status.state, status.reason, status.worker_restarts) == (SlotState.ACTIVE, "", 0)
        await appliance.restart()
    assert await version_that_answers(appliance) == 1


async def test_the_versions_of_runtimes_are_those_of_the_start_whatever_is_unpacked_meanwhile(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> str:
        raise PackageNotFoundError(name)

    release = appliance.shelf.flow_release(1)
    build = replace(release.builds[0], requires={"onnxruntime": ">=1.0"})
    monkeypatch.setattr("importlib.metadata.version", gone)
    await install(appliance, replace(release, builds=(build,)))
    assert await version_that_answers(appliance) == 1


async def test_a_removed_slot_answers_what_it_was_asked_and_leaves_only_files(appliance: Appliance) -> None:
    bad = lying_golden(appliance.shelf)
    await install(appliance, appliance.shelf.flow_release(1))
    await install_fails(appliance, bad)
    asked = [asyncio.create_task(version_that_answers(appliance)) for _ in range(20)]
    await asyncio.sleep(0)
    await appliance.serving.remove(SLOT)
    await appliance.serving.remove(SLOT)
    assert await asyncio.gather(*asked) == [1] * 20
    with pytest.raises(NoActiveModel):
        await version_that_answers(appliance)
    assert (appliance.serving.statuses(), appliance.serving.worker_pids, appliance.state.slots) == ((), (), {})
    await appliance.serving.stop()
    budget(appliance, 1)
    appliance.serving.collect_garbage()
    assert on_disk(appliance) == set()
    appliance.settings = replace(appliance.settings, disk_bytes=2**30)
    await appliance.restart()
    assert (await install_fails(appliance, bad)).code is InstallCode.QUARANTINED
    await install(appliance, appliance.shelf.flow_release(1))
    assert await version_that_answers(appliance) == 1


async def test_a_status_never_has_more_slots_than_a_message_may_and_names_those_that_serve(
    appliance: Appliance,
) -> None:
    refused = appliance.shelf.flow_release(1, schema=None)
    for number in range(MAX_SLOTS + 3):
        model = replace(refused, model=f"a-{number}")
        with pytest.raises(InstallFailed):
            await appliance.serving.install(assigned(model, model.model), model, appliance.fetch)
    await install(appliance, appliance.shelf.flow_release(2))
    statuses = appliance.serving.statuses()
    assert [status.slot for status in statuses if status.active] == [SLOT]
    assert len(statuses) == MAX_SLOTS


async def test_a_release_that_is_not_the_assigned_one_is_refused(appliance: Appliance) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    with pytest.raises(InstallFailed, match="the assignment names"):
        await appliance.serving.install(assigned(first), second, appliance.fetch)


# What the journal is asked for: "all about this slot", "errors only"


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, dict[str, str]]]:
    """Return level, text and fields of what was logged of slots."""
    records = [record for record in caplog.records if record.name.endswith(".serving")]
    return [(record.levelno, record.getMessage(), getattr(record, "vedette_fields", {})) for record in records]


async def test_each_change_of_a_slot_is_logged_once_with_slot_model_and_build(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    await appliance.restart()
    await appliance.serving.remove(SLOT)
    told = logged(caplog)
    known = [
        {"VEDETTE_SLOT": SLOT, "VEDETTE_MODEL": f"{SLOT}:{version}", "VEDETTE_BUILD": release.builds[0].digest}
        for version, release in ((1, first), (2, second), (2, second), (2, second))
    ]
    assert [fields for _, _, fields in told] == known
    assert {level for level, _, _ in told} == {logging.INFO}
    begins = [
        "serves flow-threat:1 (build sha256:",
        "serves flow-threat:2 (build",
        "serves flow-threat:2 again",
        "is empty",
    ]
    assert [text.startswith(f"slot {SLOT} {begin}") for (_, text, _), begin in zip(told, begins, strict=True)] == [
        True
    ] * 4
    assert "flow-threat:1 stays at hand" in told[1][1]


async def test_a_try_that_fails_again_and_again_is_logged_once_until_something_else_happens(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    release = appliance.shelf.flow_release(1)
    reasons: list[AgentError] = [AgentError("cable cut")] * 3 + [DiskFull("full")] * 2 + [AgentError("cable cut")]

    for reason in reasons:

        async def fetch(blob: Blob, reason: AgentError = reason) -> Path:
            raise reason

        with pytest.raises(InstallFailed):
            await appliance.serving.install(assigned(release), release, fetch)
    assert [fields["VEDETTE_CODE"] for _, _, fields in logged(caplog)] == [
        "download-failed",
        "disk-full",
        "download-failed",
    ]


async def test_a_fall_is_an_error_that_says_what_is_next(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (appliance.shelf.flow_release(version) for version in (1, 2))
    await install(appliance, first)
    await install(appliance, second)
    for _ in range(3):
        await kill_worker(appliance)
    assert await version_that_answers(appliance) == 1
    (fallen,) = [(text, fields) for level, text, fields in logged(caplog) if level == logging.ERROR]
    assert fallen[0].startswith("slot flow-threat: flow-threat:2 does not serve any more: ")
    assert fallen[0].endswith("next is flow-threat:1")
    assert fallen[1]["VEDETTE_BUILD"] == second.builds[0].digest
