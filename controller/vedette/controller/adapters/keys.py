"""The controller's private keys and certificates as files of its data directory.

Layout: ``keys/release.pem`` and ``keys/assignment.pem`` sign documents (Ed25519), ``tls/ca.*`` signs certificates,
``tls/server.*`` is the server's own. Private keys have mode 0600 in folders of mode 0700; a key that others can read
is refused when it is loaded.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vedette.controller.adapters.blobs import sync_folder
from vedette.controller.adapters.pki import CertificateAuthority, Credential
from vedette.controller.domain.disk import typed_os_error
from vedette.controller.domain.errors import Refused, StoreFailed
from vedette.models.signing import SignatureError, SigningKey

_MAX_PEM_BYTES = 65536


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Everything the controller signs and proves itself with."""

    controller_id: str
    release: SigningKey
    assignment: SigningKey
    authority: CertificateAuthority
    server: Credential

    @classmethod
    def load(cls, data_dir: Path) -> KeyRing:
        """Return the keys of a data directory.

        Raises:
            Refused: Others than the owner can read a private key.
            StoreFailed: A file is missing, unreadable or not what it must be.
        """
        authority = CertificateAuthority(_credential(data_dir, "ca"))
        server = _credential(data_dir, "server")
        if not authority.has_issued(server.certificate):
            path = data_dir / "tls" / "server.crt"
            raise StoreFailed("server-certificate-foreign", "the server certificate is not by our CA", str(path))
        return cls(
            controller_id=_read(data_dir / "controller-id", is_private=False).decode().strip(),
            release=_signing_key(data_dir / "keys" / "release.pem"),
            assignment=_signing_key(data_dir / "keys" / "assignment.pem"),
            authority=authority,
            server=server,
        )


def create_keys(data_dir: Path, controller_id: str, names: list[str]) -> CertificateAuthority:
    """Make and store every key of a new controller; ``names`` go into its server certificate.

    Raises:
        InvalidInput: A name cannot be in a certificate.
        DiskFull: There is no room.
        StoreFailed: A file cannot be written.
    """
    authority_credential = CertificateAuthority.create(controller_id)
    authority = CertificateAuthority(authority_credential)
    server = authority.issue_server(names)
    for folder in ("keys", "tls"):
        (data_dir / folder).mkdir(mode=0o700, exist_ok=True)
    for name, credential in (("ca", authority_credential), ("server", server)):
        write_file(data_dir / "tls" / f"{name}.key", credential.key, mode=0o600)
        write_file(data_dir / "tls" / f"{name}.crt", credential.certificate, mode=0o644)
    for name in ("release", "assignment"):
        write_file(data_dir / "keys" / f"{name}.pem", SigningKey.generate().to_pem(), mode=0o600)
    write_file(data_dir / "controller-id", controller_id.encode() + b"\n", mode=0o644)
    return authority


def write_file(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file whole and durably: temp file, fsync, rename, fsync of the folder.

    Raises:
        DiskFull: There is no room.
        StoreFailed: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask, and whatever an earlier try left
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as exc:
        raise typed_os_error(exc, path) from exc


def _credential(data_dir: Path, name: str) -> Credential:
    folder = data_dir / "tls"
    return Credential(_read(folder / f"{name}.key"), _read(folder / f"{name}.crt", is_private=False))


def _signing_key(path: Path) -> SigningKey:
    try:
        return SigningKey.from_pem(_read(path))
    except SignatureError as exc:
        raise StoreFailed("key-unusable", f"{path} holds no signing key", str(exc)) from exc


def _read(path: Path, *, is_private: bool = True) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_PEM_BYTES)
    except OSError as exc:
        raise StoreFailed("key-unusable", f"{path} cannot be read", exc.strerror or str(exc)) from exc
    if is_private and mode & 0o077:
        raise Refused("key-exposed", f"others can read {path}", f"its mode is {mode:o}, limit 600", f"chmod 600 {path}")
    return data
