"""The text of an enrolment token: where to go, whom to believe there, and the secret to show.

Form: ``vdt1.`` and base64url, without padding, of canonical JSON. It is a secret until it is used up.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from vedette.models.documents import DocumentError, Fields, canonical_json, parse_json, texts
from vedette.models.toml_settings import parse_address
from vedette.wire.errors import WireError

_PREFIX = "vdt1."
_MAX_CHARACTERS = 4096
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """What a token says.

    Attributes:
        addresses: host:port of the controller's mTLS port, in order of preference.
        enrol_address: host:port of its enrolment port.
        ca_digest: SHA-256 of the CA certificate's DER, hexadecimal: whom to believe.
        token_id: Names the token; no secret.
        secret: Shown to the controller once it is known to be the right one.
    """

    addresses: tuple[str, ...]
    enrol_address: str
    ca_digest: str
    token_id: str
    secret: str

    def encode(self) -> str:
        """Return the text that is given to an appliance."""
        value = {
            "a": list(self.addresses),
            "c": self.ca_digest,
            "e": self.enrol_address,
            "i": self.token_id,
            "s": self.secret,
        }
        return _PREFIX + base64.urlsafe_b64encode(canonical_json(value)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> EnrolmentToken:
        """Return what a token's text says.

        Raises:
            WireError: The text is no token, or was cut or changed on the way. The message never holds the secret.
        """
        text = text.strip()
        if len(text) > _MAX_CHARACTERS:
            raise WireError(f"token is {len(text)} characters, limit {_MAX_CHARACTERS}")
        if not text.startswith(_PREFIX):
            raise WireError(f"token begins with {text[:5]!r}, a token of this version begins with {_PREFIX!r}")
        body = text.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            read = Fields(parse_json(raw, "token"), "token", ("a", "c", "e", "i", "s"))
            token = cls(
                addresses=texts(read.items("a", most=16), "token.a", most=260),
                enrol_address=read.text("e", most=260),
                ca_digest=read.text("c"),
                token_id=read.text("i"),
                secret=read.text("s"),
            )
            for address in (*token.addresses, token.enrol_address):
                parse_address(address)
        except (ValueError, DocumentError) as exc:
            raise WireError(f"token of {len(text)} characters was cut or changed: {type(exc).__name__}") from exc
        if not token.addresses or not _HEX_DIGEST.fullmatch(token.ca_digest):
            raise WireError("token names no address or no CA digest")
        return token
