"""Artifacts: blobs that an agent's own assignment names, in chunks from any offset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from typing import Protocol

from vedette.controller.domain.desired import Releases
from vedette.controller.domain.errors import InvalidInput, NotFound
from vedette.controller.services.ports import Runner
from vedette.models.assignment import SlotAssignment
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import unseal
from vedette.wire.limits import DOWNLOAD_CHUNK_BYTES

_MOST_RELEASES = 256


class Blobs(Protocol):
    """The blob store, as far as reading goes. Usable from any thread."""

    def size(self, digest: str) -> int:
        """Return a blob's bytes, or raise NotFound."""
        ...

    def open(self, digest: str) -> BufferedReader:
        """Return a blob opened for reading, or raise NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a blob."""

    offset: int
    data: bytes
    total_bytes: int


class Artifacts:
    """Reads blobs for agents.

    Args:
        runner: Of the database.
        releases: Where the signed releases are.
        release_keys: Public keys whose releases are good.
        blobs: Where the bytes are.
        desired_slots: What an agent shall run.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        releases: Releases,
        release_keys: tuple[bytes, ...],
        blobs: Blobs,
        desired_slots: Callable[[str], Iterable[SlotAssignment]],
    ) -> None:
        self._runner = runner
        self._releases = releases
        self._release_keys = release_keys
        self._blobs = blobs
        self._desired_slots = desired_slots
        self._companions: dict[str, frozenset[str]] = {}
        self.sent_bytes = 0

    async def read(self, agent_id: str, digest: str, offset: int) -> AsyncIterator[Piece]:
        """Yield a blob from ``offset`` to its end; one empty piece when nothing is left.

        Raises:
            NotFound: No such blob, or none that this agent's assignment names; which of the two is not told.
            InvalidInput: The offset is behind the end.
        """
        if not await self._may_read(agent_id, digest):
            raise NotFound("blob-unknown", "there is no such blob", f"{digest[:80]} is none that this agent shall run")
        total = self._blobs.size(digest)
        if offset > total:
            raise InvalidInput(
                "offset-invalid", "the offset is behind the end", f"{offset}, the blob has {total} bytes"
            )
        with self._blobs.open(digest) as source:
            source.seek(offset)
            while True:
                data = await asyncio.to_thread(source.read, DOWNLOAD_CHUNK_BYTES)
                yield Piece(offset, data, total)
                offset += len(data)
                self.sent_bytes += len(data)
                if offset >= total or not data:
                    return

    async def _may_read(self, agent_id: str, digest: str) -> bool:
        for slot in self._desired_slots(agent_id):
            if digest == slot.build or digest in await self._companions_of(slot.release):
                return True
        return False

    async def _companions_of(self, release_digest: str) -> frozenset[str]:
        """Return the golden samples and the reference profile of a release."""
        found = self._companions.get(release_digest)
        if found is None:
            envelope = await self._runner.run(self._releases.envelope, release_digest)
            if envelope is None:
                return frozenset()
            release = Release.from_bytes(unseal(envelope, RELEASE_TYPE, self._release_keys))
            found = frozenset(blob.digest for blob in (release.golden, release.reference) if blob)
            if len(self._companions) >= _MOST_RELEASES:
                self._companions.clear()
            self._companions[release_digest] = found
        return found
