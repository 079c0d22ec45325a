"""Bundles as a controller writes them, for tests to import and to spoil."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.support.fake_controller import AGENT_ID
from vedette.models.bundle import Part, PartKind, document, prefix
from vedette.models.documents import digest_of
from vedette.wire.values import DesiredState


def bundle_of(*words: DesiredState, blobs: Iterable[bytes] = (), agents: Mapping[int, str] | None = None) -> bytes:
    """Return a bundle of what agents shall run and of the blobs that are given.

    Args:
        words: Assignments with their releases.
        blobs: What comes along.
        agents: Whom the assignments are for, by place; the fake controller's one agent when absent.
    """
    parts: list[tuple[Part, bytes]] = []
    for place, word in enumerate(words):
        if word.assignment:
            agent = (agents or {}).get(place, AGENT_ID)
            parts.append((document(PartKind.ASSIGNMENT, word.assignment, agent), word.assignment))
    envelopes = dict.fromkeys(envelope for word in words for envelope in word.releases)
    parts += [(document(PartKind.RELEASE, envelope), envelope) for envelope in envelopes]
    parts += [(Part(PartKind.BLOB, digest_of(data), len(data)), data) for data in blobs]
    return prefix([part for part, _ in parts]) + b"".join(data for _, data in parts)
