"""Enrolment tokens: what they allow, and when they no longer do.

Rules: the controller keeps only a digest of the secret; each use belongs to one public key, and the same key again
spends nothing; why a token no longer works is told only to who knows its secret.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vedette.controller.domain.agents import AgentRecord
from vedette.controller.domain.errors import InvalidInput, Refused, Unauthenticated
from vedette.wire.values import Facts
from vedette.wire.views import Token

MIN_LIFE = timedelta(minutes=1)
MAX_LIFE = timedelta(days=30)
DEFAULT_LIFE = timedelta(hours=24)
MAX_USES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A token as it is stored."""

    id: str
    secret_digest: str
    labels: Mapping[str, str] = field(default_factory=dict)
    uses: int
    used: int = 0
    created: datetime
    expires: datetime
    revoked: datetime | None = None

    def view(self, text: str = "") -> Token:
        """Return what an admin sees; ``text`` only when it was just created."""
        return Token(
            id=self.id,
            token=text,
            labels=self.labels,
            uses=self.uses,
            used=self.used,
            created=self.created,
            expires=self.expires,
            revoked=self.revoked is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant:
    """Who asks to become an agent."""

    agent_id: str  # it will have
    token_id: str
    secret: str
    key_digest: str
    name: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Enrolled:
    """An agent and its certificate; ``is_new`` when this call made it."""

    agent: AgentRecord
    certificate: bytes
    is_new: bool


def secret_digest(secret: str) -> str:
    """Return what is stored of a secret. It has 256 random bits, so a plain digest cannot be guessed backwards."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_terms(uses: int, life: timedelta) -> None:
    """Check how often and how long a new token shall work.

    Raises:
        InvalidInput: Either is outside its limits.
    """
    if not 1 <= uses <= MAX_USES:
        why = f"{uses} uses, limits 1 and {MAX_USES}"
        raise InvalidInput("token-invalid", "a token cannot have this many uses", why)
    if not MIN_LIFE <= life <= MAX_LIFE:
        why = f"{life.total_seconds():.0f} s, limits {MIN_LIFE.total_seconds():.0f} s and {MAX_LIFE.days} days"
        raise InvalidInput("token-invalid", "a token cannot live that long or that short", why)


def check_secret(token: TokenRecord | None, secret: str) -> TokenRecord:
    """Return the token whose secret was shown.

    Raises:
        Unauthenticated: No such token, or another secret; which of the two is not told.
    """
    stored = token.secret_digest if token else secret_digest("")
    is_right = hmac.compare_digest(stored, secret_digest(secret))
    if token is None or not is_right:
        raise Unauthenticated(
            "token-unknown",
            "the controller does not know this token",
            "it was mistyped, cut, or made by another controller",
            "vedette token create makes a new one",
        )
    return token


def check_usable(token: TokenRecord, now: datetime) -> None:
    """Check that a token may be spent once more.

    Raises:
        Refused: ``token-revoked``, ``token-expired`` or ``token-used``.
    """
    remedy = "vedette token create makes a new one"
    if token.revoked:
        raise Refused("token-revoked", "the token was revoked", f"at {token.revoked:%Y-%m-%d %H:%M:%S} UTC", remedy)
    if now >= token.expires:
        why = f"it was good until {token.expires:%Y-%m-%d %H:%M:%S} UTC, it is {now:%Y-%m-%d %H:%M:%S} UTC"
        raise Refused("token-expired", "the token has expired", why, remedy)
    if token.used >= token.uses:
        why = f"{token.used} of {token.uses} uses are spent"
        raise Refused("token-used", "the token is used up", why, remedy)
