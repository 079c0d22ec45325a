"""Certificates: the controller's own authority, its server certificate, and those of agents and admins.

Rules: ECDSA P-256; valid from 1970 to 9999, because a wrong clock must never lock an appliance out (what is revoked is
checked on each call instead); a client certificate names its holder in one URI, ``vedette:agent:ID`` or
``vedette:admin:NAME``; the authority signs for this one controller only, so a client that pins it needs no names.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vedette.controller.domain.errors import InvalidInput, StoreFailed, Unauthenticated

SERVER_NAME = "vedette-controller"
"""In every server certificate; clients check this name, whatever address they dialled."""

_NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
# RFC 5280 4.1.2.5: 99991231235959Z says that a certificate has no well-defined expiration date.


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client certificate says its holder is.

    Attributes:
        kind: ``agent`` or ``admin``.
        name: Agent id, or admin's name.
        key_digest: SHA-256 of the public key's DER, hexadecimal.
    """

    kind: str
    name: str
    key_digest: str


class CertificateAuthority:
    """Signs certificates. Usable from any thread.

    Raises:
        StoreFailed: Key and certificate do not belong together or are not ours.
    """

    def __init__(self, credential: Credential) -> None:
        try:
            key = serialization.load_pem_private_key(credential.key, password=None)
            self._certificate = x509.load_pem_x509_certificate(credential.certificate)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise StoreFailed("ca-unusable", "the certificate authority cannot be read", str(exc)) from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise StoreFailed("ca-unusable", "the certificate authority's key does not belong to its certificate")
        self._key = key
        self.pem = credential.certificate

    @classmethod
    def create(cls, controller_id: str) -> Credential:
        """Return a new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"Vedette CA {controller_id}")
        usage = _key_usage(is_authority=True)
        builder = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return Credential(_key_pem(key), _pem(builder.sign(key, hashes.SHA256())))

    @property
    def digest(self) -> str:
        """SHA-256 of the certificate's DER, hexadecimal: what a token pins."""
        return hashlib.sha256(self._certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def issue_server(self, names: Sequence[str]) -> Credential:
        """Return a new server credential for :data:`SERVER_NAME` and further DNS names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        wanted = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", "::1", *names])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in wanted])
        certificate = self._sign(_name(SERVER_NAME), key.public_key(), alternatives, ExtendedKeyUsageOID.SERVER_AUTH)
        return Credential(_key_pem(key), certificate)

    def issue_admin(self, name: str) -> Credential:
        """Return a new admin's credential."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Credential(_key_pem(key), self._issue_client(f"vedette:admin:{name}", key.public_key()))

    def issue_agent(self, agent_id: str, public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Return an agent's certificate, PEM."""
        return self._issue_client(f"vedette:agent:{agent_id}", public_key)

    def has_issued(self, certificate: bytes) -> bool:
        """Return whether a PEM certificate carries this authority's signature."""
        try:
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _issue_client(self, uri: str, public_key: ec.EllipticCurvePublicKey) -> bytes:
        alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        return self._sign(_name(uri[:64]), public_key, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        alternatives: x509.SubjectAlternativeName,
        usage: x509.ObjectIdentifier,
    ) -> bytes:
        builder = (
            _builder(subject, self._certificate.subject, public_key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(alternatives, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        return _pem(builder.sign(self._key, hashes.SHA256()))


def requested_key(certificate_request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PKCS #10 request (PEM) whose sender holds the private one.

    Raises:
        InvalidInput: The request is malformed, badly signed, or its key is not P-256.
    """
    what = "the certificate request cannot be used"
    try:
        request = x509.load_pem_x509_csr(certificate_request)
        is_signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise InvalidInput("request-invalid", what, f"{len(certificate_request)} bytes: {exc}") from exc
    if not is_signed:
        raise InvalidInput("request-invalid", what, "its signature is not by the key it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("request-invalid", what, f"its key is {type(key).__name__}, expected ECDSA P-256")
    return key


def key_digest_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return SHA-256 of a public key's DER, hexadecimal."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


_EXTENSION_FAULTS = (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


@lru_cache(maxsize=20_000)
def identity_of(certificate: bytes) -> Identity:
    """Return who a verified client certificate (PEM) names. Cached: it is asked for on each call.

    Raises:
        Unauthenticated: It is no client certificate of ours.
    """
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        usage = parsed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        alternatives = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, *_EXTENSION_FAULTS) as exc:
        raise _not_ours(str(exc)) from exc
    parts = uris[0].split(":", 2) if len(uris) == 1 else []
    if len(parts) != 3 or parts[0] != "vedette" or parts[1] not in ("agent", "admin") or not parts[2]:
        raise _not_ours(f"it names {', '.join(uris)[:100] or 'nobody'}")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage or not isinstance(key, ec.EllipticCurvePublicKey):
        raise _not_ours("it is not for clients")
    return Identity(parts[1], parts[2], key_digest_of(key))


def _not_ours(why: str) -> Unauthenticated:
    return Unauthenticated("certificate-unusable", "the client certificate is none of an agent or admin", why)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as exc:
        raise InvalidInput("name-invalid", f"{name!r} cannot be in a certificate", str(exc)) from exc


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
