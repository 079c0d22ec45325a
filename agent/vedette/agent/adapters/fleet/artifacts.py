"""Downloads by digest: resumed at the byte, over as many sessions as it takes, and never believed before checked.

``partial/<hex>`` grows by what arrives; only a file of the signed size and digest is renamed to ``sha256/<hex>``. A
link that comes and goes costs nothing but time: each try starts where the last one ended. A wrong byte costs the
whole file once; the second time the fault is not the line's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from vedette.agent.adapters.fleet.channels import BulkLink, ControllerRefused, ControllerUnreachable, call_error
from vedette.agent.adapters.storage.blobs import Blobs, storage_error
from vedette.agent.adapters.storage.files import sync_folder
from vedette.agent.adapters.waiting import is_cancelling
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.bandwidth import Bandwidth
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.errors import AgentError, BlobCorrupt, DiskFull
from vedette.agent.domain.pace import Pace
from vedette.models.release import Blob
from vedette.wire.v1 import artifacts_pb2, artifacts_pb2_grpc

logger = logging.getLogger(__name__)

RESERVE_BYTES = 16 * 2**20
"""Disk that a download leaves free, for the state and for what the appliance itself must write."""
SILENCE_S = 60.0
"""A download of which nothing arrives for so long is begun again where it stopped."""
_READ_BYTES = 1024 * 1024


class DownloadAbandoned(AgentError):
    """A newer assignment came; this file is wanted no more."""


class DownloadRefused(AgentError):
    """The controller does not give this file: it must mend the assignment."""


class Downloads:
    """Fetches blobs into a folder. One download at a time is enough for a slow line; callers may overlap."""

    def __init__(
        self,
        link: BulkLink,
        blobs: Blobs,
        clock: Clock,
        make_backoff: Callable[[], Backoff],
        *,
        silence_s: float = SILENCE_S,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self._link = link
        self._blobs = blobs
        self._clock = clock
        self._make_backoff = make_backoff
        self._silence_s = silence_s
        self._bandwidth = bandwidth or Bandwidth(0, clock)
        self._reached: dict[str, int] = {}  # of each wanted file, the most bytes there ever were
        self._pace = Pace()
        self.bytes_received = 0
        self.bytes_repeated = 0  # of these: received before, and thrown away with a wrong byte or for a full disk
        self.damaged = 0  # whole downloads with another digest

    @property
    def bytes_per_s(self) -> float:
        """What arrives now, as the mean of the last seconds."""
        return self._pace.per_second(self._clock.monotonic())

    async def fetch(self, blob: Blob, is_wanted: Callable[[], bool] = lambda: True) -> Path:
        """Return the path of a whole, checked file, downloaded if need be, however long the link is down.

        Args:
            blob: Digest and size, both from a signed release.
            is_wanted: Asked before each try.

        Raises:
            BlobCorrupt: Two whole downloads had another digest.
            DownloadRefused: The controller does not have it or does not give it.
            DownloadAbandoned: It is wanted no more.
            DiskFull: There is no room for it.
            StateError: The disk failed otherwise.
        """
        self._blobs.make_folders()
        path, partial = self._blobs.path(blob.digest), self._blobs.partial_path(blob.digest)
        if path.exists() and path.stat().st_size == blob.size:
            return path
        for attempt in (1, 2):
            await self._download(blob, partial, is_wanted)
            if await asyncio.to_thread(_digest_of_file, partial) == blob.digest:
                await asyncio.to_thread(_keep, partial, path)
                self._reached.pop(blob.digest, None)
                return path
            self.damaged += 1
            logger.warning("download %d of %s has a wrong byte", attempt, blob.digest)
            partial.unlink()
        raise BlobCorrupt(f"{blob.digest} arrived twice with another digest ({blob.size} bytes each)")

    async def _download(self, blob: Blob, partial: Path, is_wanted: Callable[[], bool]) -> None:
        """Make the partial file as long as the blob."""
        backoff = self._make_backoff()
        while (done := _size(partial, blob.size)) < blob.size:
            if not is_wanted():
                raise DownloadAbandoned(f"{blob.digest[:19]} is wanted no more, {done} of {blob.size} bytes are kept")
            _check_room(partial.parent, blob.size - done)
            try:
                await self._read(await self._link.bulk(), blob, partial, done)
            except ControllerUnreachable as exc:
                logger.info("download of %s stopped: %s", blob.digest[:19], exc.why)
                if _size(partial, blob.size) > done:
                    backoff.succeeded()
                await self._clock.sleep(backoff.failed())

    async def _read(self, channel: grpc.aio.Channel, blob: Blob, partial: Path, offset: int) -> None:
        """Append what one call gives.

        Raises:
            ControllerUnreachable: The call ended early.
        """
        try:
            call = artifacts_pb2_grpc.ArtifactsStub(channel).Read(
                artifacts_pb2.ReadRequest(digest=blob.digest, offset=offset)
            )
            with partial.open("ab") as file:
                while (chunk := await self._next(call)) is not grpc.aio.EOF:
                    _check_chunk(chunk, blob, offset)
                    file.write(chunk.data)
                    file.flush()  # what a killed agent received is not asked for again
                    self._count(blob, offset, len(chunk.data))
                    offset += len(chunk.data)
                    await self._bandwidth.spend(len(chunk.data))  # what is not read, the sender holds back
        except grpc.RpcError as exc:
            raise _read_error(exc, blob) from exc
        except (grpc.aio.UsageError, asyncio.CancelledError) as exc:
            if is_cancelling():
                raise
            raise _stopped("the session ended") from exc
        except OSError as exc:
            raise _write_error(exc, partial) from exc
        if offset < blob.size:
            raise _stopped(f"it ended after {offset} of {blob.size} bytes")

    def _count(self, blob: Blob, offset: int, size: int) -> None:
        reached = self._reached.get(blob.digest, offset)
        self.bytes_received += size
        self.bytes_repeated += max(0, min(reached, offset + size) - offset)
        self._reached[blob.digest] = max(reached, offset + size)
        self._pace.add(self._clock.monotonic(), size)

    async def _next(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(self._silence_s):
                return await call.read()
        except TimeoutError as exc:
            call.cancel()
            raise _stopped(f"nothing came for {self._silence_s:g} s") from exc


def _check_chunk(chunk: artifacts_pb2.Chunk, blob: Blob, offset: int) -> None:
    if chunk.total_bytes != blob.size:
        raise BlobCorrupt(f"controller offers {blob.digest} with {chunk.total_bytes} bytes, signed are {blob.size}")
    if chunk.offset != offset or not 1 <= len(chunk.data) <= blob.size - offset:
        raise BlobCorrupt(
            f"controller sent {len(chunk.data)} bytes at {chunk.offset} of {blob.digest}, "
            f"due was {offset} of {blob.size}"
        )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE_BYTES:
        raise DiskFull(f"{folder} has {free} bytes free, a download needs {needed} and {RESERVE_BYTES} stay reserved")


def _size(partial: Path, most: int) -> int:
    """Return how much of a download is there; one that is too long is begun again."""
    try:
        size = partial.stat().st_size
    except FileNotFoundError:
        return 0
    if size > most:
        partial.unlink()
        return 0
    return size


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _keep(partial: Path, path: Path) -> None:
    """Give a checked file its name, so that it survives a power cut from then on."""
    try:
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as exc:
        raise storage_error(exc, path) from exc


def _read_error(exc: grpc.RpcError, blob: Blob) -> AgentError:
    error = call_error(exc, "the controller")
    if isinstance(error, ControllerRefused):
        return DownloadRefused(f"controller does not give {blob.digest}: {error.what}, {error.why}")
    return error if isinstance(error, ControllerUnreachable) else _stopped(str(error))


def _write_error(exc: OSError, partial: Path) -> AgentError:
    with suppress(OSError):
        partial.unlink()  # gives its space back to the appliance
    return storage_error(exc, partial)


def _stopped(why: str) -> ControllerUnreachable:
    return ControllerUnreachable("a download stopped", why, "it goes on where it stopped")
