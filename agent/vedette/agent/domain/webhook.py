"""What a webhook's request says and what its answer means.

Source: RFC 2104 (HMAC), RFC 9110 sections 10.2.3 (Retry-After) and 15 (status codes), RFC 6585 section 4 (429).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from urllib.parse import urlsplit

from vedette.models.toml_settings import WrongValue

SIGNATURE_HEADER = "Vedette-Signature"
_MAY_PASS = frozenset({408, 425, 429})  # a client error that another try may not meet
_MOST_SECONDS = 10**9


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where batches are posted."""

    is_tls: bool
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        """Return it without its query: that may hold a secret, and this goes to the log."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.is_tls else ''}://{name}:{self.port}{self.path.partition('?')[0]}"


class Outcome(Enum):
    """What an answer means for the batch."""

    TAKEN = "taken"
    AGAIN = "again"
    REFUSED = "refused"


def parse_endpoint(raw: str) -> Endpoint:
    """Return the endpoint of a URL.

    Raises:
        WrongValue: It is no plain http or https URL; the text says why.
    """
    try:
        parts = urlsplit(raw)
        port = parts.port
    except ValueError as exc:
        raise WrongValue(f"is no URL: {exc}") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WrongValue("is no URL such as https://HOST/PATH")
    if "@" in parts.netloc:
        raise WrongValue("holds a user or password: requests are signed with secret_file instead")
    if not raw.isascii() or not raw.isprintable() or " " in raw:
        raise WrongValue("has characters that a URL has not: encode them as %XX")
    query = f"?{parts.query}" if parts.query else ""
    is_tls = parts.scheme == "https"
    return Endpoint(is_tls, parts.hostname, port or (443 if is_tls else 80), (parts.path or "/") + query)


def signature(secret: bytes, at_s: int, body: bytes) -> str:
    """Return the signature header of a body: ``t=UNIX,v1=HEX``, HMAC-SHA256 over ``UNIX + "." + body``.

    The time is signed too, so that a receiver can refuse what somebody recorded and plays again.
    """
    digest = hmac.new(secret, b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def judged(status: int) -> Outcome:
    """Return what a status means: 4xx but 408, 425 and 429 refuses the batch for good; 1xx, 3xx and 5xx may pass."""
    if 200 <= status < 300:
        return Outcome.TAKEN
    if 400 <= status < 500 and status not in _MAY_PASS:
        return Outcome.REFUSED
    return Outcome.AGAIN


def retry_after_s(text: str | None, now: datetime) -> float:
    """Return how long a ``Retry-After`` asks to wait: seconds, or until an HTTP date; 0.0 when it says neither."""
    if text is None:
        return 0.0
    if text.strip().isascii() and text.strip().isdigit():
        return float(min(int(text.strip()[:12]), _MOST_SECONDS))
    try:
        at = parsedate_to_datetime(text)
        aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return max(0.0, (aware - now).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


def bodies(lines: Sequence[bytes], most_rows: int, most_bytes: int) -> list[list[bytes]]:
    """Return the lines in batches, each within both limits but for a single line that alone is over the second."""
    batches: list[list[bytes]] = []
    size = 0
    for line in lines:
        if not batches or len(batches[-1]) >= most_rows or size + len(line) > most_bytes:
            batches.append([])
            size = 0
        batches[-1].append(line)
        size += len(line)
    return batches
