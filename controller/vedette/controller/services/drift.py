"""Drift as a service: profiles of the telemetry against the references of the versions they were counted for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from vedette.controller.domain import drift
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.desired import FleetView
from vedette.controller.domain.drift import Observed
from vedette.controller.domain.errors import InvalidInput
from vedette.controller.services.ports import Runner
from vedette.controller.services.workshop import Blobs
from vedette.models.profile import DataProfile, ProfileError, ReferenceProfile
from vedette.models.release import Release
from vedette.models.tensors import MAX_TENSOR_FILE_BYTES
from vedette.wire.systemd import fields
from vedette.wire.views import DriftReport, VersionDrift

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = timedelta(hours=24)
MAX_WINDOW = timedelta(days=92)
"""Drift of a longer time is several mixes in one; telemetry is not kept for ever either."""

MAX_VERSIONS = 5
"""In a report, the newest of those that agents answered with."""


class WindowProfile(Protocol):
    """The data profile of one telemetry window."""

    @property
    def id(self) -> int:
        """Its place in the log."""
        ...

    @property
    def agent_id(self) -> str:
        """Whose window it is."""
        ...

    @property
    def version(self) -> int:
        """Of the model that answered."""
        ...

    @property
    def profile(self) -> bytes:
        """As it travelled."""
        ...


class ProfileLog(Protocol):
    """The telemetry store, as far as drift needs it. Methods run in the database's thread."""

    def profiles(self, model: str, since: datetime, *, after: int = 0) -> Sequence[WindowProfile]:
        """Return a page of the data profiles of a model's windows since a time, by id, those above ``after``."""
        ...


class ReleaseLog(Protocol):
    """The registry, as far as drift needs it. Methods run in the database's thread."""

    def releases(self, model: str) -> tuple[Release, ...]:
        """Return the releases of a model, newest first.

        Raises:
            NotFound: There is no model of that name.
        """
        ...


@dataclass(slots=True)
class DriftService:
    """Answers how far live data has moved. All methods belong to the controller's event loop.

    Attributes:
        runner: Runs store work.
        telemetry: Where profiles are.
        registry: Where versions are.
        blobs: Where their reference profiles are.
        fleet: Names agents.
        clock: Ends the window now.
    """

    runner: Runner
    telemetry: ProfileLog
    registry: ReleaseLog
    blobs: Blobs
    fleet: FleetView
    clock: Clock
    _references: dict[str, ReferenceProfile] = field(default_factory=dict)

    async def report(self, model: str, window: timedelta) -> DriftReport:
        """Return the drift of the versions of a model that agents answered with over the newest ``window``.

        Args:
            model: Its name.
            window: How far back; the default when zero.

        Raises:
            NotFound: There is no model of that name.
            InvalidInput: The window is too long.
        """
        if not timedelta(0) <= window <= MAX_WINDOW:
            why = f"{window.total_seconds():.0f} s, limit {MAX_WINDOW.total_seconds():.0f} s"
            raise InvalidInput("window-invalid", "the window is too long", why, "--window 24h")
        since = self.clock.now() - (window or DEFAULT_WINDOW)
        releases = await self.runner.run(self.registry.releases, model)
        names = {agent.id: agent.name for agent in await self.fleet.agents()}
        known = {release.version: release for release in releases if release.reference is not None}
        seen: dict[int, dict[str, DataProfile]] = {}
        after = 0
        while page := await self.runner.run(self.telemetry.profiles, model, since, after=after):
            await asyncio.to_thread(self._merge, page, known, names, seen)
            after = page[-1].id
        shown = sorted(seen, reverse=True)[:MAX_VERSIONS] or list(known)[:1]
        return DriftReport(
            model=model,
            versions=tuple([await asyncio.to_thread(self._judge, known[v], seen.get(v, {})) for v in shown]),
            since=since,
        )

    def _merge(
        self,
        page: Sequence[WindowProfile],
        known: Mapping[int, Release],
        names: Mapping[str, str],
        seen: dict[int, dict[str, DataProfile]],
    ) -> None:
        """Add a page of windows to the profile of each version and agent."""
        for row in page:
            name, release = names.get(row.agent_id), known.get(row.version)
            if name is None or release is None:
                continue
            reference = self._reference(release)
            try:
                profile = DataProfile.decode(row.profile, reference)
            except ProfileError as exc:  # one agent's bad bytes must not hide all the others'
                text, extra = "a profile of agent %s for %s cannot be read: %s", fields(agent=name, model=release.name)
                logger.warning(text, name, release.name, exc, extra=extra)
                continue
            seen.setdefault(row.version, {}).setdefault(name, DataProfile(reference)).merge(profile)

    def _judge(self, release: Release, agents: Mapping[str, DataProfile]) -> VersionDrift:
        return drift.judge(Observed(release.name, self._reference(release), agents))

    def _reference(self, release: Release) -> ReferenceProfile:
        if release.reference is None:
            raise ValueError(f"{release.name} has no reference profile")
        digest = release.reference.digest
        found = self._references.get(digest)
        if found is None:
            found = ReferenceProfile.from_bytes(self.blobs.read(digest, limit=MAX_TENSOR_FILE_BYTES))
            if len(self._references) >= MAX_VERSIONS * 4:
                self._references.clear()
            self._references[digest] = found
        return found
