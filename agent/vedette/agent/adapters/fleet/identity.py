"""Who this agent is, on disk: ``state_dir/enrolment``.

Rules: the private key is made here once, is never sent and never rewritten; ``enrolment.json`` is written last and its
presence is what "enrolled" means; an enrolment that was cut short is finished by enrolling again with the same key.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vedette.agent.adapters.storage.files import FileTooLarge, make_folder, read_file, replace_file
from vedette.agent.domain.advice import AdvisedError

_MAX_FILE_BYTES = 64 * 1024
_FORMAT = 1


class IdentityDamaged(AdvisedError):
    """The enrolment on disk cannot be used: the operator must enrol again."""

    code = "identity-damaged"


@dataclass(frozen=True, slots=True)
class Identity:
    """An agent's identity and whom it believes.

    Attributes:
        agent_id: Given by the controller; never changes.
        name: As the controller knows it.
        controller_id: Of the controller that issued it.
        ca_digest: SHA-256 of the CA certificate's DER, hexadecimal.
        addresses: host:port of the controller's mTLS port, in order of preference.
        release_keys: Raw Ed25519 public keys trusted to sign releases.
        assignment_keys: Raw Ed25519 public keys trusted to sign assignments.
        key: Private key, PEM.
        certificate: Client certificate, PEM.
        ca: CA certificate, PEM.
        enrol_address: host:port of the controller's enrolment port; "" of an enrolment that did not keep it.
    """

    agent_id: str
    name: str
    controller_id: str
    ca_digest: str
    addresses: tuple[str, ...]
    release_keys: tuple[bytes, ...]
    assignment_keys: tuple[bytes, ...]
    key: bytes
    certificate: bytes
    ca: bytes
    enrol_address: str = ""

    def reached_at(self, addresses: tuple[str, ...]) -> Identity:
        """Return the same identity with an operator's addresses; with none, as it is."""
        return replace(self, addresses=addresses) if addresses else self


class IdentityStore:
    """The folder that holds an identity."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record = folder / "enrolment.json"

    def load(self) -> Identity | None:
        """Return the identity, or None when this appliance is not enrolled.

        Raises:
            IdentityDamaged: A file is missing, too large or not what it must be.
        """
        try:
            record = read_file(self._record, _MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, FileTooLarge) as exc:
            raise self._damaged(self._record, exc) from exc
        try:
            return self._identity(json.loads(record))
        except (OSError, FileTooLarge, ValueError, KeyError, TypeError) as exc:
            raise self._damaged(self._record, exc) from exc

    def key(self) -> bytes:
        """Return the private key as PEM, made at the first call.

        Raises:
            IdentityDamaged: The file holds no EC private key.
        """
        path = self._folder / "key.pem"
        try:
            pem = read_file(path, _MAX_FILE_BYTES)
        except FileNotFoundError:
            return self._make_key(path)
        except FileTooLarge as exc:
            raise self._damaged(path, exc) from exc
        try:
            _private_key(pem)
        except (ValueError, TypeError) as exc:
            raise self._damaged(path, exc) from exc
        return pem

    def exposure(self) -> str | None:
        """Return what is wrong when others than the owner may read the private key, else None."""
        path = self._folder / "key.pem"
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o077:
            return None
        return f"others may read {path} (mode {mode:o}, limit 600): chmod 600, and enrol again if anyone could have"

    def commit(self, identity: Identity) -> None:
        """Store an identity; from the last write on the appliance is enrolled.

        Raises:
            DiskFull: No space is left; what was enrolled before stays.
        """
        record = {
            "format": _FORMAT,
            "agent_id": identity.agent_id,
            "name": identity.name,
            "controller_id": identity.controller_id,
            "ca_digest": identity.ca_digest,
            "addresses": list(identity.addresses),
            "enrol_address": identity.enrol_address,
            "release_keys": [key.hex() for key in identity.release_keys],
            "assignment_keys": [key.hex() for key in identity.assignment_keys],
        }
        replace_file(self._folder / "ca.pem", identity.ca, 0o644)
        replace_file(self._folder / "certificate.pem", identity.certificate, 0o644)
        replace_file(self._record, json.dumps(record, indent=1).encode() + b"\n", 0o644)

    def _make_key(self, path: Path) -> bytes:
        make_folder(self._folder)
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        replace_file(path, pem, 0o600)
        return pem

    def _identity(self, record: dict[str, Any]) -> Identity:
        if record["format"] != _FORMAT:
            raise ValueError(f"format is {record['format']}, this version reads {_FORMAT}")
        return Identity(
            agent_id=str(record["agent_id"]),
            name=str(record["name"]),
            controller_id=str(record["controller_id"]),
            ca_digest=str(record["ca_digest"]),
            addresses=tuple(map(str, record["addresses"])),
            release_keys=tuple(bytes.fromhex(key) for key in record["release_keys"]),
            assignment_keys=tuple(bytes.fromhex(key) for key in record["assignment_keys"]),
            key=read_file(self._folder / "key.pem", _MAX_FILE_BYTES),
            certificate=read_file(self._folder / "certificate.pem", _MAX_FILE_BYTES),
            ca=read_file(self._folder / "ca.pem", _MAX_FILE_BYTES),
            enrol_address=str(record.get("enrol_address", "")),
        )

    def _damaged(self, path: Path, exc: Exception) -> IdentityDamaged:
        return IdentityDamaged(
            f"the enrolment in {self._folder} cannot be used",
            f"{path.name}: {type(exc).__name__}: {exc}",
            f"move {self._folder} away and enrol again; models that run keep running",
        )


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"is a {type(key).__name__}, not an EC key")
    return key


def certificate_request(key: bytes, name: str) -> bytes:
    """Return a PKCS #10 request, PEM, that proves possession of a private key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64] or "vedette-agent")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(_private_key(key), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)
