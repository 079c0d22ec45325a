"""The bundle: signed documents and the blobs they name in one file, for an appliance that no network reaches.

Layout, numbers big-endian::

    8 bytes   magic, ``VDTBNDL`` and the format 1
    4 bytes   size of the header, at most 4 MiB
    32 bytes  SHA-256 of the header
    header    canonical JSON: {"format": 1, "parts": [{"kind", "digest", "size", …}, …]}
    parts     one after the other, as the header lists them, nothing between and nothing behind

A part is an ``assignment`` or a ``release`` (DSSE envelopes; the first says for which ``agent``), or a ``blob``. They
come in this order, so that a reader which goes through the file once knows what it wants before any of it comes. A
part of a kind that a reader does not know is passed over when it says ``"optional": true``, else the file is refused.

Rules: nothing is compressed, so nothing grows; every size is known, and within its limit, before a byte of it is read;
no part is believed before its digest was checked, and no document because it lies here: signatures decide. The header
is not signed; all it can do is to list too little. Reads and writes file objects; opens none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from vedette.models.documents import DocumentError, Fields, canonical_json, digest_of, parse_json
from vedette.models.errors import ModelsError
from vedette.models.release import MAX_BLOB_BYTES
from vedette.models.signing import MAX_ENVELOPE_BYTES

MAGIC = b"VDTBNDL\x01"
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_PARTS = 16_384
"""Some 16,000 appliances in one file; an entry of the header takes about 150 bytes."""
PIECE_BYTES = 1024 * 1024
_FORMAT = 1
_MAX_PART_BYTES = MAX_BLOB_BYTES
_PREFIX_BYTES = len(MAGIC) + 4 + 32


class BundleError(ModelsError):
    """A file is no whole bundle; whoever made or carried it must bring it again."""


class PartKind(StrEnum):
    """What a part is, as far as this version knows."""

    ASSIGNMENT = "assignment"
    RELEASE = "release"
    BLOB = "blob"


_ORDER = tuple(PartKind)


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the header.

    Attributes:
        kind: A :class:`PartKind`, or a word of a later version.
        digest: Of its bytes.
        size: Of its bytes.
        agent: Whom an assignment is for; empty for other kinds.
        is_optional: A reader that does not know the kind may pass over it.
    """

    kind: str
    digest: str
    size: int
    agent: str = ""
    is_optional: bool = False


def document(kind: PartKind, envelope: bytes, agent: str = "") -> Part:
    """Return the entry of a signed document."""
    return Part(kind, digest_of(envelope), len(envelope), agent)


def prefix(parts: Sequence[Part]) -> bytes:
    """Return what stands before the parts: magic, and the header with its size and digest.

    Raises:
        BundleError: There are too many parts, they are not in their order, or one is over its limit.
    """
    _check_parts(parts)
    header = canonical_json({"format": _FORMAT, "parts": [_value(part) for part in parts]})
    if len(header) > MAX_HEADER_BYTES:
        raise BundleError(f"the bundle's header is {len(header)} bytes, limit {MAX_HEADER_BYTES}")
    return MAGIC + len(header).to_bytes(4, "big") + hashlib.sha256(header).digest() + header


def _value(part: Part) -> dict[str, object]:
    value: dict[str, object] = {"kind": part.kind, "digest": part.digest, "size": part.size}
    if part.agent:
        value["agent"] = part.agent
    if part.is_optional:
        value["optional"] = True
    return value


class Source(Protocol):
    """Where a bundle is read from; a pipe will do."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none only at the end."""
        ...


class Bundle:
    """Reads a bundle once, from its start to its end.

    Args:
        source: The file, at its start. It is read as far as the header.

    Attributes:
        parts: What the header lists.
        bytes: Of the whole file.
        done: How many of them were read.

    Raises:
        BundleError: It does not begin as a bundle does, is of a later format, or its header is not what it must be.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        start = _exactly(source, _PREFIX_BYTES, "the file")
        if start[:7] != MAGIC[:7]:
            raise BundleError("the file is no bundle: it does not begin with VDTBNDL")
        if start[7] != MAGIC[7]:
            raise BundleError(f"the bundle is of format {start[7]}, this version reads {MAGIC[7]}: update the agent")
        size = int.from_bytes(start[8:12], "big")
        if size > MAX_HEADER_BYTES:
            raise BundleError(f"the bundle's header is {size} bytes, limit {MAX_HEADER_BYTES}")
        header = _exactly(source, size, "the header")
        if hashlib.sha256(header).digest() != start[12:]:
            raise BundleError("the bundle's header has another digest than the file says: it was damaged on the way")
        self.parts = _parts(header)
        self.done = _PREFIX_BYTES + size
        self.bytes = self.done + sum(part.size for part in self.parts)

    def __iter__(self) -> Iterator[tuple[Part, Iterator[bytes]]]:
        """Yield each part with its bytes, once, in their order.

        Pieces that are not taken are passed over. What was taken is not to be believed before the pieces have ended by
        themselves: only then the digest was checked.

        Raises:
            BundleError: The file ends early or late, or a part has another digest.
        """
        for part in self.parts:
            pieces = self._pieces(part)
            yield part, pieces
            for _ in pieces:  # checked all the same, so that a damaged file is found whoever reads it
                pass
        if self._source.read(1):
            raise BundleError(f"the bundle goes on behind its last part, byte {self.bytes}")

    def _pieces(self, part: Part) -> Iterator[bytes]:
        """Yield a part's bytes; after the last its digest was checked."""
        hasher, left = hashlib.sha256(), part.size
        while left:
            piece = self._source.read(min(left, PIECE_BYTES))
            if not piece:
                raise BundleError(
                    f"the bundle ends within {part.kind} {part.digest[:19]}, {left} of {part.size} bytes are missing"
                )
            hasher.update(piece)
            left -= len(piece)
            self.done += len(piece)
            yield piece
        found = "sha256:" + hasher.hexdigest()
        if found != part.digest:
            raise BundleError(
                f"{part.kind} {part.digest[:19]} in the bundle has digest {found[:19]}: damaged on the way"
            )


def _exactly(source: Source, size: int, what: str) -> bytes:
    pieces, left = [], size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise BundleError(f"{what} is no bundle, or a cut one: it ends {left} of {size} bytes early")
    return b"".join(pieces)


def _parts(header: bytes) -> tuple[Part, ...]:
    try:
        read = Fields(parse_json(header, "bundle", limit=MAX_HEADER_BYTES), "bundle", ("format", "parts"))
        if (found := read.whole("format")) != _FORMAT:
            raise BundleError(f"bundle.format is {found}, this version reads {_FORMAT}")
        parts = tuple(map(_part, read.items("parts", most=MAX_PARTS)))
    except DocumentError as exc:
        raise BundleError(f"the bundle's header cannot be read: {exc}") from exc
    _check_parts(parts)
    unknown = {part.kind for part in parts if part.kind not in _ORDER and not part.is_optional}
    if unknown:
        kinds = ", ".join(sorted(unknown)[:5])
        raise BundleError(f"the bundle holds {kinds}, which this version does not know: update it")
    return parts


def _part(value: object) -> Part:
    known = value.keys() if isinstance(value, dict) else ()
    read = Fields(value, "bundle.parts", (*known,))  # a later version may say more of a part
    return Part(
        kind=read.text("kind", most=32),
        digest=read.digest("digest"),
        size=read.whole("size", least=1, most=_MAX_PART_BYTES),
        agent=read.text("agent") if read.has("agent") else "",
        is_optional=read.get("optional", bool) if read.has("optional") else False,
    )


def _check_parts(parts: Sequence[Part]) -> None:
    if len(parts) > MAX_PARTS:
        raise BundleError(f"a bundle of {len(parts)} parts, limit {MAX_PARTS}: select fewer appliances")
    reached = PartKind.ASSIGNMENT
    for part in parts:
        if part.kind not in _ORDER:
            continue
        kind = PartKind(part.kind)
        if _ORDER.index(kind) < _ORDER.index(reached):
            raise BundleError(f"{kind} {part.digest[:19]} stands behind a {reached}; the order is {', '.join(_ORDER)}")
        reached = kind
        if kind is not PartKind.BLOB and part.size > MAX_ENVELOPE_BYTES:
            raise BundleError(f"{kind} {part.digest[:19]} is {part.size} bytes, limit {MAX_ENVELOPE_BYTES}")
