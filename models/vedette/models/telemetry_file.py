"""Telemetry in a file: what waits in an appliance's spool, signed with the key of its certificate.

Layout, numbers big-endian::

    8 bytes   magic, ``VDTTELE`` and the format 1
    4 bytes   size of the header, at most 64 KiB
    header    canonical JSON: {"format", "agent", "name", "exported", "certificate", "batches", "bytes", "digest"}
    2 bytes   size of the signature, at most 256
    signature ECDSA P-256 with SHA-256 over ``vedette telemetry file 1``, a line feed and the header
    body      of each batch: 4 bytes its size, at most 4 MiB, and its bytes; ``bytes`` and ``digest`` are of the body

What a batch says is not this module's business. The signature proves that the holder of the certificate's key wrote
the header, and with its digest the body; who signed the certificate, and whether its holder is welcome, others decide.

Rules: every size is known and within its limit before a byte of it is read; no batch is believed before signature and
digest were checked. Reads and writes file objects; opens none.

Source: DER signatures as in RFC 3279 2.2.3; SEC 1 (ECDSA).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from vedette.models.documents import DocumentError, Fields, canonical_json, parse_json, time_text
from vedette.models.errors import ModelsError

MAGIC = b"VDTTELE\x01"
MAX_HEADER_BYTES = 64 * 1024
MAX_SIGNATURE_BYTES = 256
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_BODY_BYTES = 4 * 1024**3
_FORMAT = 1
_MAX_CERTIFICATE = 16 * 1024
_SIGNED = b"vedette telemetry file 1\n"
_PIECE_BYTES = 1024 * 1024


class TelemetryFileError(ModelsError):
    """A file is no whole telemetry file; bring it again."""


class TelemetryForged(ModelsError):
    """A file was not signed by the key of the certificate in it."""


class Source(Protocol):
    """Where a file is read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself.

    Attributes:
        agent: Id of the appliance.
        name: As people call it.
        exported: When, by the appliance's clock.
        certificate: Of the appliance, PEM.
        batches: How many it holds.
        size: Of the body, bytes.
        digest: Of the body.
    """

    agent: str
    name: str
    exported: datetime
    certificate: bytes
    batches: int
    size: int
    digest: str

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, which are signed."""
        return canonical_json(
            {
                "format": _FORMAT,
                "agent": self.agent,
                "name": self.name,
                "exported": time_text(self.exported),
                "certificate": self.certificate.decode(),
                "batches": self.batches,
                "bytes": self.size,
                "digest": self.digest,
            }
        )


def framed(batch: bytes) -> bytes:
    """Return a batch as it stands in the body.

    Raises:
        TelemetryFileError: It is over its limit.
    """
    if len(batch) > MAX_BATCH_BYTES:
        raise TelemetryFileError(f"a batch is {len(batch)} bytes, limit {MAX_BATCH_BYTES}")
    return len(batch).to_bytes(4, "big") + batch


def measured(batches: Iterable[bytes]) -> tuple[int, int, str]:
    """Return how many batches there are, and size and digest of the body that they make."""
    hasher, count, size = hashlib.sha256(), 0, 0
    for batch in batches:
        framed_batch = framed(batch)
        hasher.update(framed_batch)
        size += len(framed_batch)
        count += 1
    return count, size, "sha256:" + hasher.hexdigest()


def start_of(head: Head, key: bytes) -> bytes:
    """Return all that stands before the body, signed.

    Args:
        head: What the file says of itself.
        key: Private key of the certificate, PEM.

    Raises:
        TelemetryForged: The key is no EC private key.
    """
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise TelemetryForged(f"no private key in PEM of {len(key)} bytes: {exc}") from exc
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TelemetryForged(f"the private key is a {type(private).__name__}, not an EC key")
    header = head.to_bytes()
    signature = private.sign(_SIGNED + header, ec.ECDSA(hashes.SHA256()))
    return MAGIC + len(header).to_bytes(4, "big") + header + len(signature).to_bytes(2, "big") + signature


def read_head(source: Source) -> Head:
    """Return what a file says of itself, its signature verified; the source then stands at the body.

    Raises:
        TelemetryFileError: The file does not begin as it must.
        TelemetryForged: The signature is not by the key of the certificate.
    """
    start = _exactly(source, len(MAGIC) + 4)
    if start[:7] != MAGIC[:7]:
        raise TelemetryFileError("the file is no telemetry: it does not begin with VDTTELE")
    if start[7] != MAGIC[7]:
        raise TelemetryFileError(f"the file is of format {start[7]}, this version reads {MAGIC[7]}")
    header = _exactly(source, _limited(start[8:], MAX_HEADER_BYTES, "header"))
    signature = _exactly(source, _limited(_exactly(source, 2), MAX_SIGNATURE_BYTES, "signature"))
    head = _head(header)
    _check_signature(head.certificate, signature, header)
    return head


def check_body(source: Source, head: Head) -> None:
    """Read a body to its end and check that it is what was signed.

    Raises:
        TelemetryFileError: It is cut, longer, or has another digest.
    """
    hasher, left = hashlib.sha256(), head.size
    while left and (piece := source.read(min(left, _PIECE_BYTES))):
        hasher.update(piece)
        left -= len(piece)
    if left or source.read(1):
        raise TelemetryFileError(f"the file ends {left} bytes early" if left else "the file goes on behind its end")
    if (found := "sha256:" + hasher.hexdigest()) != head.digest:
        raise TelemetryFileError(f"the body has digest {found[:19]}, signed is {head.digest[:19]}: it was damaged")


def batches_of(source: Source, head: Head) -> Iterator[bytes]:
    """Yield the batches of a body, one at a time.

    Raises:
        TelemetryFileError: One is over its limit, or they are not as many and as long as the header says.
    """
    left = head.size
    for number in range(head.batches):
        size = _limited(_exactly(source, 4), MAX_BATCH_BYTES, f"batch {number + 1}")
        left -= 4 + size
        if left < 0:
            raise TelemetryFileError(f"batch {number + 1} of {head.batches} ends behind the body")
        yield _exactly(source, size)
    if left:
        raise TelemetryFileError(f"{left} bytes stand behind the last of {head.batches} batches")


def _exactly(source: Source, size: int) -> bytes:
    pieces, left = [], size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise TelemetryFileError(f"the file ends {left} bytes early")
    return b"".join(pieces)


def _limited(number: bytes, most: int, what: str) -> int:
    size = int.from_bytes(number, "big")
    if size > most:
        raise TelemetryFileError(f"the {what} is {size} bytes, limit {most}")
    return size


def _head(header: bytes) -> Head:
    known = ("format", "agent", "name", "exported", "certificate", "batches", "bytes", "digest")
    try:
        read = Fields(parse_json(header, "header", limit=MAX_HEADER_BYTES), "header", known)
        if (found := read.whole("format")) != _FORMAT:
            raise TelemetryFileError(f"header.format is {found}, this version reads {_FORMAT}")
        return Head(
            agent=read.text("agent"),
            name=read.text("name"),
            exported=read.time("exported"),
            certificate=read.text("certificate", most=_MAX_CERTIFICATE).encode(),
            batches=read.whole("batches", most=2**31),
            size=read.whole("bytes", most=MAX_BODY_BYTES),
            digest=read.digest("digest"),
        )
    except (DocumentError, UnicodeError) as exc:
        raise TelemetryFileError(f"the header cannot be read: {exc}") from exc


def _check_signature(certificate: bytes, signature: bytes, header: bytes) -> None:
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TelemetryForged(f"the certificate's key is a {type(key).__name__}, not an EC key")
        key.verify(signature, _SIGNED + header, ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise TelemetryForged(f"the certificate in the file cannot be used: {exc}") from exc
    except InvalidSignature as exc:
        raise TelemetryForged("the signature is not by the key of the certificate in the file") from exc
