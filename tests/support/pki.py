"""A certificate authority as the controller's: P-256, certificates of all time, one server name."""

from __future__ import annotations

import hashlib
import ipaddress
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
PEM = serialization.Encoding.PEM


class Authority:
    """A CA that signs server and client certificates."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vedette test CA")])
        builder = _builder(name, name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(PEM)
        self.digest = hashlib.sha256(self._certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def server(self, name: str = "vedette-controller") -> tuple[bytes, bytes]:
        """Return key and certificate, PEM, of a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return _key_pem(key), self._issue(key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, request: bytes, agent_id: str) -> bytes:
        """Return the certificate, PEM, of an agent whose PKCS #10 request this is."""
        asked = x509.load_pem_x509_csr(request)
        assert asked.is_signature_valid
        uri = x509.UniformResourceIdentifier(f"vedette:agent:{agent_id}")
        key = asked.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return self._issue(key, [uri], ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, key: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], usage: x509.ObjectIdentifier
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vedette test")])
        builder = _builder(subject, self._certificate.subject, key)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(PEM)


def public_bytes_of_request(request: bytes) -> bytes:
    """Return the public key, DER, of a PKCS #10 request."""
    key = x509.load_pem_x509_csr(request).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FIRST)
        .not_valid_after(_LAST)
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
