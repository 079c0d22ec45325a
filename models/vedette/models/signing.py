"""Signed documents: DSSE envelopes with Ed25519 signatures.

The signature covers the payload's type as well as its bytes, so a document of one kind never passes for another, and
nothing is parsed before a signature was verified. One key can sign several kinds; who may sign what is decided by
the set of keys that the caller trusts for that kind.

Source: Dead Simple Signing Envelope v1 (secure-systems-lab/dsse), RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Collection
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vedette.models.documents import canonical_json
from vedette.models.errors import ModelsError

MAX_ENVELOPE_BYTES = 2 * 1024 * 1024
MAX_SIGNATURES = 16
_KEY_BYTES = 32


class SignatureError(ModelsError):
    """A document is not signed by a key that is trusted for it."""


class SigningKey:
    """An Ed25519 private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.key_id = key_id(self.public)

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Return the key of an unencrypted PKCS #8 PEM.

        Raises:
            SignatureError: The text holds no Ed25519 private key.
        """
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise SignatureError(f"no private key in PEM of {len(pem)} bytes: {exc}") from exc
        if not isinstance(private, Ed25519PrivateKey):
            raise SignatureError(f"private key is a {type(private).__name__}, not Ed25519")
        return cls(private)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS #8 PEM."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, data: bytes) -> bytes:
        """Return the signature of bytes, 64 bytes."""
        return self._private.sign(data)


def key_id(public: bytes) -> str:
    """Return the short name of a public key: a hint for people and for finding it, never a proof."""
    return hashlib.sha256(public).hexdigest()[:16]


def _pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, *keys: SigningKey) -> bytes:
    """Return an envelope of a payload with a signature of each key."""
    signed = _pre_authentication_encoding(payload_type, payload)
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.key_id, "sig": base64.b64encode(key.sign(signed)).decode()} for key in keys],
        }
    )


def unseal(envelope: bytes, payload_type: str, trusted: Collection[bytes], *, threshold: int = 1) -> bytes:
    """Return the payload of an envelope once enough trusted keys have signed it.

    Args:
        envelope: DSSE JSON.
        payload_type: The kind the caller expects; any other is refused.
        trusted: Raw Ed25519 public keys, 32 bytes each.
        threshold: How many different trusted keys must have signed.

    Raises:
        SignatureError: Malformed, too large, of another kind, or signed by fewer trusted keys than asked for.
    """
    if threshold < 1:
        raise ValueError(f"threshold is {threshold}, at least 1 signature is needed")
    kind, payload, signatures = _open(envelope)
    if kind != payload_type:
        raise SignatureError(f"envelope holds {kind[:80]!r}, expected {payload_type!r}")
    signed = _pre_authentication_encoding(kind, payload)
    good = {key for key in trusted if any(_verifies(key, signature, signed) for _, signature in signatures)}
    if len(good) < threshold:
        names = ", ".join(sorted(repr(name[:32])[1:-1] for name, _ in signatures)) or "nobody"
        raise SignatureError(
            f"{payload_type} is signed by {names}: {len(good)} trusted signatures, {threshold} needed "
            f"of {len(trusted)} trusted keys"
        )
    return payload


def signers(envelope: bytes) -> tuple[str, ...]:
    """Return the key ids an envelope names; unverified, for display.

    Raises:
        SignatureError: The envelope is malformed or too large.
    """
    return tuple(name for name, _ in _open(envelope)[2])


def _verifies(public: bytes, signature: bytes, signed: bytes) -> bool:
    if len(public) != _KEY_BYTES:
        raise SignatureError(f"trusted key is {len(public)} bytes, an Ed25519 key has {_KEY_BYTES}")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _open(envelope: bytes) -> tuple[str, bytes, list[tuple[str, bytes]]]:
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise SignatureError(f"envelope is {len(envelope)} bytes, limit {MAX_ENVELOPE_BYTES}")
    try:
        value: Any = json.loads(envelope)
        kind, payload, listed = value["payloadType"], _base64(value["payload"]), value["signatures"]
        if not isinstance(kind, str) or not isinstance(listed, list):
            raise SignatureError("envelope's payloadType is not a text or its signatures are not a list")
        if len(listed) > MAX_SIGNATURES:
            raise SignatureError(f"envelope has {len(listed)} signatures, limit {MAX_SIGNATURES}")
        return kind, payload, [(str(item["keyid"]), _base64(item["sig"])) for item in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise SignatureError(f"not a signed envelope: {type(exc).__name__} {exc}") from exc


def _base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise SignatureError(f"envelope holds bad base64: {exc}") from exc
