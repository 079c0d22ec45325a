"""Which way leads to a controller: straight, or through an HTTP proxy with CONNECT.

Rules: only the settings decide. Environment variables are not read: a service has none of a person's, and one that
works in a shell and not in the unit is worse than none. Names are compared as written, never resolved. TLS goes from
the agent to the controller through the proxy, which sees a host, a port and bytes. User and password are in no text.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from vedette.models.toml_settings import WrongValue, parse_address

_EXPECTED = 'expected "http://HOST:PORT" or "http://USER:PASSWORD@HOST:PORT", in both % as in URLs'
_MOST_CHARACTERS = 1024
_FIRST_PRINTABLE, _DELETE = 0x20, 0x7F


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; ``authorization`` is the value of its Proxy-Authorization header, "" for none."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """HOST:PORT, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Ways:
    """The proxy, and whom to reach without it: names with all below them, addresses, networks."""

    proxy: Proxy | None = None
    direct: tuple[str, ...] = ()

    def proxy_to(self, address: str) -> Proxy | None:
        """Return the proxy that leads to a HOST:PORT; None goes straight there."""
        host = parse_address(address)[0].lower().rstrip(".")
        return None if any(_covers(rule, host) for rule in self.direct) else self.proxy


STRAIGHT = Ways()


def parse_proxy(raw: object) -> Proxy | None:
    """Return the proxy of a URL, None for "".

    Source: RFC 7617 (the credentials), RFC 9110 section 9.3.6 (CONNECT).

    Raises:
        WrongValue: It is no such URL; the text repeats nothing of it, for it may hold a password.
    """
    if raw == "":
        return None
    if not isinstance(raw, str) or len(raw) > _MOST_CHARACTERS:
        raise WrongValue(f"is no text of at most {_MOST_CHARACTERS} characters, {_EXPECTED}")
    try:
        url = urlsplit(raw)
        host, port = url.hostname, url.port
    except ValueError as exc:
        raise WrongValue(f"is no URL, {_EXPECTED}") from exc
    if url.scheme != "http":
        raise WrongValue(
            f"begins with {url.scheme or 'no scheme'!r}, {_EXPECTED}; TLS to the controller goes through it"
        )
    if not host or not port or url.path not in ("", "/") or url.query or url.fragment:
        raise WrongValue(f"lacks a host or a port, or has more than them, {_EXPECTED}")
    return Proxy(host, port, _basic(url.username, url.password))


def _basic(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    try:
        name, secret = unquote(user, errors="strict"), unquote(password or "", errors="strict")
    except UnicodeDecodeError as exc:
        raise WrongValue("has a user or password that is not UTF-8") from exc
    if ":" in name or any(ord(sign) < _FIRST_PRINTABLE or ord(sign) == _DELETE for sign in name + secret):
        raise WrongValue("has a user with a colon, or a control character in user or password")
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


def parse_direct(raw: Sequence[str]) -> tuple[str, ...]:
    """Return rules of whom to reach without the proxy.

    Raises:
        WrongValue: One is neither a name, nor an address, nor a network.
    """
    return tuple(_rule(word) for word in raw)


def _rule(word: str) -> str:
    name = word.strip().lower().removeprefix("*").strip(".")
    if _network(name) is None and (not name or set(name) & set(" :/*@,[]")):
        raise WrongValue(f'has {word!r}, expected names, addresses or networks: ["ctl.example", "10.0.0.0/8"]')
    return name


def _covers(rule: str, host: str) -> bool:
    network, address = _network(rule), _network(host)
    if network is not None:
        return address is not None and address.version == network.version and address.subnet_of(network)  # type: ignore[arg-type]
    return host == rule or host.endswith(f".{rule}")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
