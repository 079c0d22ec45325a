"""Who may be blocked, and the records in which the agent asks its privileged helper to block somebody.

Both sides use this file; the helper believes nothing of what the agent has checked and checks it again with what it
reads itself. A request is one packet of whole records, the answer one packet of a byte for each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from vedette.models.toml_settings import WrongValue

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_RECORDS = 64
"""Of one packet."""
MAX_TIMEOUT_S = 30 * 86_400
_RECORD = struct.Struct("!BBHI16s")  # form (1), family (4 or 6), zero, seconds, address (IPv4: the first four bytes)
MAX_PACKET_BYTES = MAX_RECORDS * _RECORD.size
_FORM = 1
_V4_REST = bytes(12)

NEVER: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network, and the unspecified address
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the limited broadcast
        "::/127",  # unspecified and loopback
        "::ffff:0:0/96",  # an IPv4 address in disguise
        "fe80::/10",  # link-local: neighbour discovery lives on it
        "ff00::/8",
    )
)
"""Addresses that no setting can have blocked. Source: IANA's special-purpose address registries (RFC 6890)."""


class Answer(IntEnum):
    """What became of a record."""

    ADDED = 0
    ALREADY = 1
    PROTECTED = 2
    FULL = 3
    INVALID = 4
    FAILED = 5


class BadPacket(ValueError):
    """A packet is not whole records, or too many."""


@dataclass(frozen=True, slots=True)
class Block:
    """An address to block, and for how long."""

    address: Address
    timeout_s: int


def packed(blocks: Sequence[Block]) -> bytes:
    """Return blocks as a packet."""
    return b"".join(
        _RECORD.pack(_FORM, block.address.version, 0, block.timeout_s, block.address.packed.ljust(16, b"\0"))
        for block in blocks
    )


def unpacked(packet: bytes) -> list[Block | None]:
    """Return a packet's records; one that is not well formed is None.

    Raises:
        BadPacket: It is not one to :data:`MAX_RECORDS` whole records.
    """
    if not packet or len(packet) % _RECORD.size or len(packet) > MAX_PACKET_BYTES:
        raise BadPacket(f"a packet of {len(packet)} bytes, expected 1 to {MAX_RECORDS} records of {_RECORD.size}")
    return [_block(*fields) for fields in _RECORD.iter_unpack(packet)]


def _block(form: int, family: int, zero: int, timeout_s: int, address: bytes) -> Block | None:
    if form != _FORM or zero or not 1 <= timeout_s <= MAX_TIMEOUT_S:
        return None
    if family == 4 and address[4:] == _V4_REST:
        return Block(IPv4Address(address[:4]), timeout_s)
    return Block(IPv6Address(address), timeout_s) if family == 6 else None


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return networks; an address alone is a network of one.

    Raises:
        WrongValue: A text is none.
    """
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as exc:
            raise WrongValue(f"has {text!r}, expected networks such as 10.0.0.0/8 or 2001:db8::/32: {exc}") from exc
    return tuple(found)


def is_protected(address: Address, networks: Iterable[Network]) -> bool:
    """Return whether an address may never be blocked."""
    return any(address.version == network.version and address in network for network in (*NEVER, *networks))


def own_networks(fib_trie: str, if_inet6: str, route: str, ipv6_route: str) -> tuple[Network, ...]:
    """Return this host's own and broadcast addresses and its gateways, by ``/proc/net``'s files of these names."""
    return tuple(
        dict.fromkeys(
            ip_network(address)
            for address in (
                *_local_v4(fib_trie.splitlines()),
                *(IPv6Address(int(line.split()[0], 16)) for line in if_inet6.splitlines() if line.strip()),
                *_gateways_v4(route.splitlines()[1:]),
                *_gateways_v6(ipv6_route.splitlines()),
            )
        )
    )


def _local_v4(lines: Iterable[str]) -> Iterator[Address]:
    """Yield leaves such as ``|-- 10.0.0.1`` that the line below calls ``/32 host LOCAL`` or ``/32 link BROADCAST``."""
    leaf = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif leaf and words[-1:] and words[-1] in ("LOCAL", "BROADCAST") and words[0] == "/32":
            yield ip_address(leaf)


def _gateways_v4(lines: Iterable[str]) -> Iterator[Address]:
    for line in lines:
        gateway = int(line.split()[2], 16)  # in the host's byte order, as the kernel prints it
        if gateway:
            yield IPv4Address(struct.pack("=I", gateway))


def _gateways_v6(lines: Iterable[str]) -> Iterator[Address]:
    for line in lines:
        gateway = int(line.split()[4], 16)
        if gateway:
            yield IPv6Address(gateway)


class Blocked:
    """Which addresses are blocked now, no more than so many; times are monotonic seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._until: dict[Address, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, address: Address) -> bool:
        return address in self._until

    def forget(self, now_s: float) -> None:
        """Forget those whose time is over."""
        self._until = {address: until_s for address, until_s in self._until.items() if until_s > now_s}

    @property
    def is_full(self) -> bool:
        """Whether there is room for no other."""
        return len(self._until) >= self._most

    def add(self, address: Address, until_s: float) -> None:
        """Note a block."""
        self._until[address] = until_s

    def remove(self, address: Address) -> None:
        """Take a note back; one that is not there is fine."""
        self._until.pop(address, None)
