"""The certificate side of enrolment: requests in, certificates out."""

from __future__ import annotations

from vedette.controller.adapters.pki import CertificateAuthority, identity_of, key_digest_of, requested_key
from vedette.controller.domain.errors import Refused, Unauthenticated


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

    def agent_of(self, certificate: bytes) -> tuple[str, str]:
        """Return id and key digest of the agent that a certificate (PEM) is for.

        Raises:
            Refused: This authority issued no such certificate.
        """
        what = "the certificate in the file is none of an agent here"
        try:
            holder = identity_of(certificate)
        except Unauthenticated as exc:
            raise Refused("file-forged", what, exc.why) from exc
        if holder.kind != "agent" or not self._authority.has_issued(certificate):
            why = f"it names the {holder.kind} {holder.name[:64]}, and was issued by another controller, or by nobody"
            raise Refused("file-forged", what, why)
        return holder.name, holder.key_digest
