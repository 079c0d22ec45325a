"""Claims about downloads, against a real gRPC server that cuts and corrupts."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from tests.support.clock import FakeClock
from tests.support.fake_controller import AGENT_ID, FakeController
from tests.support.waiting import until
from vedette.agent.adapters.fleet import artifacts
from vedette.agent.adapters.fleet.artifacts import DownloadAbandoned, DownloadRefused, Downloads
from vedette.agent.adapters.fleet.channels import OPTIONS, credentials
from vedette.agent.adapters.fleet.identity import certificate_request
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.bandwidth import Bandwidth
from vedette.agent.domain.errors import BlobCorrupt, DiskFull
from vedette.agent.domain.pace import WINDOW_S
from vedette.models.documents import digest_of
from vedette.models.release import Blob

DATA = bytes(range(256)) * 40 + b"end"


class Bulk:
    """A bulk connection that can be replaced, as a session's end does."""

    def __init__(self, controller: FakeController, key: bytes) -> None:
        certificate = controller.authority.client(certificate_request(key, "edge"), AGENT_ID)
        self._credentials = credentials(controller.authority.pem, key, certificate)
        self._address = controller.address
        self.channels: list[grpc.aio.Channel] = []

    async def bulk(self) -> grpc.aio.Channel:
        if not self.channels:
            self.channels.append(grpc.aio.secure_channel(self._address, self._credentials, options=OPTIONS))
        return self.channels[-1]

    async def renew(self) -> None:
        for channel in self.channels:
            await channel.close()
        self.channels.clear()


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with FakeController() as started:
        yield started


@pytest.fixture
async def bulk(controller: FakeController, agent_key: bytes) -> AsyncIterator[Bulk]:
    made = Bulk(controller, agent_key)
    yield made
    await made.renew()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def _downloads(bulk: Bulk, blobs: Blobs, clock: FakeClock | None = None, silence_s: float = 5.0) -> Downloads:
    def at_once() -> Backoff:
        return Backoff(uniform=lambda low, high: low)

    return Downloads(bulk, blobs, clock or InstantClock(), at_once, silence_s=silence_s)


class InstantClock(FakeClock):
    """A clock whose sleeps are over at once."""

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


async def test_a_file_arrives_whole_and_is_not_asked_for_again(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    downloads = _downloads(bulk, blobs)
    path = await downloads.fetch(blob)
    assert await downloads.fetch(blob) == path == blobs.path(blob.digest)
    assert path.read_bytes() == DATA
    assert controller.reads == [0]
    assert not blobs.partial_path(blob.digest).exists()


@pytest.mark.parametrize("every", [1000, 1700, 4096, 10_000])
async def test_a_line_cut_every_so_many_bytes_costs_no_byte_twice(
    controller: FakeController, bulk: Bulk, blobs: Blobs, every: int
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    controller.cut_after_bytes = every
    downloads = _downloads(bulk, blobs)
    path = await downloads.fetch(blob)
    assert path.read_bytes() == DATA
    assert (downloads.bytes_received, downloads.bytes_repeated) == (len(DATA), 0)
    assert controller.bytes_sent == len(DATA)
    assert controller.reads == sorted(set(controller.reads))


async def test_a_restarted_agent_goes_on_where_the_killed_one_stopped(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    blobs.partial_path(blob.digest).write_bytes(DATA[:5000])
    await _downloads(bulk, blobs).fetch(blob)
    assert controller.reads == [5000]


async def test_a_wrong_byte_is_never_kept_and_costs_one_more_download(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    controller.corrupt_next = 7777
    downloads = _downloads(bulk, blobs)
    path = await downloads.fetch(blob)
    assert path.read_bytes() == DATA
    assert controller.reads == [0, 0]
    assert (downloads.bytes_received, downloads.bytes_repeated) == (2 * len(DATA), len(DATA))
    assert downloads.bytes_per_s == 2 * len(DATA) / WINDOW_S


async def test_a_file_that_is_wrong_twice_is_a_typed_error_and_leaves_nothing(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(digest_of(b"what was signed"), len(DATA))
    controller.blobs[blob.digest] = DATA
    with pytest.raises(BlobCorrupt, match="twice"):
        await _downloads(bulk, blobs).fetch(blob)
    assert not blobs.path(blob.digest).exists()
    assert not blobs.partial_path(blob.digest).exists()


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
async def test_a_file_of_another_size_than_signed_is_refused_before_its_bytes_are_kept(
    controller: FakeController, bulk: Bulk, blobs: Blobs, size: int
) -> None:
    blob = Blob(controller.add_blob(DATA), size)
    with pytest.raises(BlobCorrupt, match=f"{len(DATA)} bytes, signed are {size}"):
        await _downloads(bulk, blobs).fetch(blob)


async def test_a_file_the_controller_does_not_give_is_refused_with_its_reason(bulk: Bulk, blobs: Blobs) -> None:
    with pytest.raises(DownloadRefused, match="blob-unknown"):
        await _downloads(bulk, blobs).fetch(Blob(digest_of(b"foreign"), 7))


async def test_a_partial_file_that_is_too_long_is_begun_again(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    blobs.partial_path(blob.digest).write_bytes(DATA + b"more")
    await _downloads(bulk, blobs).fetch(blob)
    assert controller.reads == [0]


async def test_a_download_that_is_wanted_no_more_ends_and_keeps_what_came(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    controller.cut_after_bytes = 3000
    with pytest.raises(DownloadAbandoned):
        await _downloads(bulk, blobs).fetch(blob, is_wanted=lambda: len(controller.reads) < 2)
    assert blobs.bytes_done(blob) == 6000


async def test_a_download_goes_on_in_the_next_session(controller: FakeController, bulk: Bulk, blobs: Blobs) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    controller.stall_after_bytes = 4000
    fetching = asyncio.create_task(_downloads(bulk, blobs, silence_s=60.0).fetch(blob))
    await controller.stalled.wait()
    await until(lambda: blobs.bytes_done(blob) == 4000)
    controller.stall_after_bytes = None
    await bulk.renew()  # the session ends, and with it the call
    path = await fetching
    assert path.read_bytes() == DATA
    assert controller.reads == [0, 4000]


async def test_a_download_that_stands_still_is_begun_again_where_it_stopped(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    controller.stall_after_bytes = 4000

    class Unstall(InstantClock):
        async def sleep(self, seconds: float) -> None:
            controller.stall_after_bytes = None
            await super().sleep(seconds)

    path = await _downloads(bulk, blobs, Unstall(), silence_s=0.2).fetch(blob)
    assert path.read_bytes() == DATA
    assert controller.reads == [0, 4000]


async def test_a_download_that_would_fill_the_disk_is_refused_before_it_begins(
    controller: FakeController, bulk: Bulk, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    monkeypatch.setattr(artifacts, "RESERVE_BYTES", 2**62)
    with pytest.raises(DiskFull, match="reserved"):
        await _downloads(bulk, blobs).fetch(blob)
    assert controller.reads == []


class FillingDisk:
    """Has no room any more from the k-th write, flush or sync of a download on."""

    def __init__(self, patch: pytest.MonkeyPatch, k: int) -> None:
        self._left = k
        real_open, real_fsync = Path.open, os.fsync

        def opened(path: Path, mode: str = "r") -> Any:
            file = real_open(path, mode)
            return _Watched(file, self) if mode == "ab" else file

        def synced(descriptor: int) -> None:
            self.step()
            real_fsync(descriptor)

        patch.setattr(Path, "open", opened)
        patch.setattr(os, "fsync", synced)

    def step(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Watched:
    def __init__(self, file: Any, disk: FillingDisk) -> None:
        self._file, self._disk = file, disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._disk.step()
        self._file.write(data)

    def flush(self) -> None:
        self._disk.step()
        self._file.flush()


WRITES = 2 * -(-len(DATA) // 1000) + 2  # a write and a flush a chunk, then the file and its folder are synced


async def test_a_disk_that_is_full_at_any_write_fails_the_download_and_room_mends_it(
    controller: FakeController, bulk: Bulk, tmp_path: Path
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    for k in range(1, WRITES + 1):
        blobs = Blobs(tmp_path / str(k))
        with pytest.MonkeyPatch.context() as patch:
            FillingDisk(patch, k)
            with pytest.raises(DiskFull, match="No space left"):
                await _downloads(bulk, blobs).fetch(blob)
        path = await _downloads(bulk, blobs).fetch(blob)
        assert path.read_bytes() == DATA
        assert not blobs.partial_path(blob.digest).exists()
    enough = Blobs(tmp_path / "enough")
    with pytest.MonkeyPatch.context() as patch:
        FillingDisk(patch, WRITES + 1)
        await _downloads(bulk, enough).fetch(blob)


async def test_cancelling_a_download_is_not_mistaken_for_a_lost_line(
    controller: FakeController, bulk: Bulk, blobs: Blobs
) -> None:
    blob = Blob(controller.add_blob(DATA), len(DATA))
    controller.stall_after_bytes = 4000
    fetching = asyncio.create_task(_downloads(bulk, blobs, silence_s=60.0).fetch(blob))
    await controller.stalled.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching


class PassingClock(FakeClock):
    """A clock on which sleeping takes its time at once."""

    async def sleep(self, seconds: float) -> None:
        await self.advance(seconds)


async def test_a_download_keeps_to_the_budget_of_the_line(controller: FakeController, bulk: Bulk, blobs: Blobs) -> None:
    clock = PassingClock()
    blob = Blob(controller.add_blob(DATA), len(DATA))
    begun = clock.monotonic()
    line = Bandwidth(1000, clock)
    path = await Downloads(bulk, blobs, clock, Backoff, bandwidth=line).fetch(blob)
    assert path.read_bytes() == DATA
    assert clock.monotonic() - begun == pytest.approx((len(DATA) - 1000) / 1000)
