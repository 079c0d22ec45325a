"""Verdicts as syslog messages, and where they are sent.

Source: RFC 5424 (the message), RFC 5426 (UDP: one message a datagram), RFC 6587 section 3.4.1 and RFC 5425 section 4.3
    (TCP and TLS: octet counting), RFC 5612 (32473, the enterprise number for those who have none).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from vedette.models.toml_settings import WrongValue, parse_address

FACILITIES = {"user": 1, "daemon": 3, "auth": 4, "syslog": 5, "authpriv": 10} | {f"local{n}": 16 + n for n in range(8)}
WARNING, INFORMATIONAL = 4, 6
"""Severities of a flagged verdict and of any other."""

_PORTS = {"udp": 514, "tcp": 514, "tls": 6514}
_NOT_PRINTABLE = re.compile(r"[^!-~]")  # PRINTUSASCII of RFC 5424 section 6
_MAX_HOST_NAME = 255
_APP, _MSGID, _SD_ID = "vedette-agent", "verdict", "vedette@32473"


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver: ``udp``, ``tcp`` or ``tls``, host and port."""

    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.transport}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_target(raw: str) -> Target:
    """Return the receiver that a text such as ``tls://logs.example:6514`` names.

    Raises:
        WrongValue: It names none; the text says what is expected.
    """
    try:
        parts = urlsplit(raw)
    except ValueError as exc:
        raise WrongValue(f"is no URL: {exc}") from exc
    rest = raw.removeprefix(f"{parts.scheme}://")
    if parts.scheme not in _PORTS or f"{parts.scheme}://{rest}" != raw:
        raise WrongValue(f"is {raw!r}, expected udp://HOST:514, tcp://HOST:514 or tls://HOST:6514")
    return Target(parts.scheme, *parse_address(rest, _PORTS[parts.scheme]))


@dataclass(frozen=True, slots=True)
class Said:
    """What a verdict's message says beside its line."""

    at: str
    host: str
    process: int
    model: str
    version: int
    verdict: str
    is_flagged: bool
    score: float


def syslog_message(line: bytes, said: Said, *, facility: int, most: int) -> bytes | None:
    """Return a verdict as one message of at most ``most`` bytes; None when it has no such form.

    A message that would be longer leaves out its evidence, so that what is sent is whole JSON whatever the limit.

    Args:
        line: The verdict, one line of JSON in ASCII.
        said: The rest.
        facility: Its number.
        most: Bytes.
    """
    head = _head(said, facility)
    text = line.rstrip(b"\n")
    if len(head) + len(text) > most:
        text = _without_evidence(text)
    return head + text if len(head) + len(text) <= most else None


def framed(message: bytes) -> bytes:
    """Return a message as a stream carries it: "MSG-LEN SP SYSLOG-MSG"."""
    return b"%d %s" % (len(message), message)


def _head(said: Said, facility: int) -> bytes:
    priority = facility * 8 + (WARNING if said.is_flagged else INFORMATIONAL)
    host = _NOT_PRINTABLE.sub("-", said.host)[:_MAX_HOST_NAME] or "-"
    fields = {
        "model": said.model,
        "version": str(said.version),
        "verdict": said.verdict,
        "flagged": str(said.is_flagged).lower(),
        "score": f"{said.score:.6g}",
    }
    data = " ".join(f'{name}="{_escaped(value)}"' for name, value in fields.items())
    text = f"<{priority}>1 {said.at} {host} {_APP} {said.process} {_MSGID} [{_SD_ID} {data}] "
    return text.encode("utf-8", "replace")


def _escaped(value: str) -> str:
    """Return a PARAM-VALUE: '"', '\\' and ']' are escaped (RFC 5424 section 6.3.3), and control characters are none."""
    plain = "".join(char if char.isprintable() else "?" for char in value)
    return re.sub(r'(["\\\]])', r"\\\1", plain)


def _without_evidence(text: bytes) -> bytes:
    verdict = json.loads(text)
    verdict["vedette"].pop("evidence", None)
    return json.dumps(verdict, separators=(",", ":")).encode()
