"""Bundles: a version in a file, and with it what appliances that no network reaches shall run.

Rules: what a file says an agent shall run is desired of it from then on, stored before a byte of the file leaves; so
the next connection, of whatever year, finds both of one mind. A file holds all that its agents' assignments name, also
in other slots: nobody can know what an appliance still has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vedette.controller.domain.desired import Issued, Releases
from vedette.controller.domain.errors import NotFound, StoreFailed
from vedette.controller.services.artifacts import Blobs
from vedette.controller.services.ports import Runner
from vedette.controller.services.rollouts import Versions
from vedette.models.bundle import Part, PartKind, document, prefix
from vedette.models.release import RELEASE_TYPE, Blob, Release
from vedette.models.signing import unseal
from vedette.wire.limits import CHUNK_BYTES
from vedette.wire.views import ExportedAssignment, ModelExport


class Deciders(Protocol):
    """Who decides what agents run."""

    async def decide_by_file(self, version: str, selector: str, by: str) -> tuple[str, ...]:
        """Make a version what agents shall run that get it by file; return their ids."""
        ...


class Assignments(Protocol):
    """Who has the signed assignments of agents."""

    async def document(self, agent_id: str) -> Issued:
        """Return the newest assignment of an agent, to travel by file."""
        ...


@dataclass(frozen=True, slots=True)
class _Content:
    """What goes into a bundle: documents with their bytes, blobs by name."""

    documents: Sequence[tuple[Part, bytes]]
    blobs: Sequence[Blob]

    @property
    def parts(self) -> list[Part]:
        blobs = [Part(PartKind.BLOB, blob.digest, blob.size) for blob in self.blobs]
        return [*(part for part, _ in self.documents), *blobs]


class Bundles:
    """Writes bundles. All methods belong to the controller's event loop.

    Args:
        runner: Of the database.
        versions: The registry.
        releases: Where the signed releases are.
        release_keys: Public keys whose releases are good.
        blobs: Where the bytes are.
        deciders: Who decides what agents run.
        assignments: Who has what was decided, signed.
        name_of: Returns an agent's name by its id.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        versions: Versions,
        releases: Releases,
        release_keys: tuple[bytes, ...],
        blobs: Blobs,
        deciders: Deciders,
        assignments: Assignments,
        name_of: Callable[[str], str],
    ) -> None:
        self._runner = runner
        self._versions = versions
        self._releases = releases
        self._release_keys = release_keys
        self._blobs = blobs
        self._deciders = deciders
        self._assignments = assignments
        self._name_of = name_of

    async def export(self, version: str, selector: str | None, by: str) -> tuple[ModelExport, AsyncIterator[bytes]]:
        """Return what a bundle holds, and its bytes, read as they are taken.

        Args:
            version: ``MODEL:N``.
            selector: Of the agents that shall run it from now on; None for a bundle without assignments.
            by: Name of the admin.

        Raises:
            NotFound, InvalidInput, Refused: See ``RolloutService.decide_by_file``.
            BundleError: There are too many agents for one file.
            StoreFailed: A blob is missing, or not what was stored.
        """
        wanted = await self._versions.version(version)
        if selector is None:
            envelope = await self._envelope(wanted.digest)
            release = self._opened(envelope)
            content = _Content([(document(PartKind.RELEASE, envelope), envelope)], _by_digest(release.blobs))
            return self._written(ModelExport(version=wanted.version), content)
        agents = await self._deciders.decide_by_file(version, selector, by)
        issued = {agent_id: await self._assignments.document(agent_id) for agent_id in agents}
        told = [ExportedAssignment(agent=self._name_of(agent), sequence=one.sequence) for agent, one in issued.items()]
        head = ModelExport(version=wanted.version, agents=tuple(sorted(told, key=lambda item: item.agent)))
        return self._written(head, await self._assigned(issued))

    async def _assigned(self, issued: dict[str, Issued]) -> _Content:
        slots = {slot for one in issued.values() for slot in one.slots}
        envelopes = {digest: await self._envelope(digest) for digest in sorted({slot.release for slot in slots})}
        releases = {digest: self._opened(envelope) for digest, envelope in envelopes.items()}
        blobs = {blob for slot in slots for blob in _needed(releases[slot.release], slot.build)}
        documents = [
            (document(PartKind.ASSIGNMENT, one.envelope, agent), one.envelope) for agent, one in issued.items()
        ]
        documents += [(document(PartKind.RELEASE, envelope), envelope) for envelope in envelopes.values()]
        return _Content(documents, _by_digest(blobs))

    async def _envelope(self, digest: str) -> bytes:
        found = await self._runner.run(self._releases.envelope, digest)
        if found is None:
            raise NotFound("release-missing", "there is no such signed release", digest)
        return found

    def _opened(self, envelope: bytes) -> Release:
        return Release.from_bytes(unseal(envelope, RELEASE_TYPE, self._release_keys))

    def _written(self, head: ModelExport, content: _Content) -> tuple[ModelExport, AsyncIterator[bytes]]:
        for blob in content.blobs:
            if (size := self._blobs.size(blob.digest)) != blob.size:
                why = f"{blob.digest} is {size} bytes, {blob.size} were stored"
                raise StoreFailed("blob-damaged", "a file of the version is damaged", why, "restore a backup")
        start = prefix(content.parts)
        total = len(start) + sum(part.size for part in content.parts)
        whole = ModelExport(version=head.version, bytes=total, agents=head.agents)
        return whole, self._bytes(start, content)

    async def _bytes(self, start: bytes, content: _Content) -> AsyncIterator[bytes]:
        for data in (start, *(envelope for _, envelope in content.documents)):
            for offset in range(0, len(data), CHUNK_BYTES):
                yield data[offset : offset + CHUNK_BYTES]
        for blob in content.blobs:
            with self._blobs.open(blob.digest) as source:
                while piece := await asyncio.to_thread(source.read, CHUNK_BYTES):
                    yield piece


def _needed(release: Release, build: str) -> list[Blob]:
    found = release.build(build)
    return [blob for blob in (found.blob if found else None, release.golden, release.reference) if blob is not None]


def _by_digest(blobs: Sequence[Blob] | set[Blob]) -> list[Blob]:
    return sorted(set(blobs), key=lambda blob: blob.digest)
