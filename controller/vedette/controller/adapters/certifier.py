"""The certificate side of enrolment: requests in, certificates out."""

from __future__ import annotations

from vedette.controller.adapters.pki import CertificateAuthority, key_digest_of, requested_key


class AuthorityCertifier:
    """Signs agents' certificates with the controller's authority. Usable from any thread."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority

    def key_digest(self, certificate_request: bytes) -> str:
        """Return the digest of the requested public key.

        Raises:
            InvalidInput: The request cannot be used.
        """
        return key_digest_of(requested_key(certificate_request))

    def certify(self, agent_id: str, certificate_request: bytes) -> bytes:
        """Return the certificate of an agent, PEM; of the request only the public key is used.

        Raises:
            InvalidInput: The request cannot be used.
        """
        return self._authority.issue_agent(agent_id, requested_key(certificate_request))
