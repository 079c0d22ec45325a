"""Read UDP datagrams from a packet capture (pcap, gzip'd or not), and write one.

Bytes in, datagrams out: the caller opens and closes the file. Packets that are no whole UDP datagram over IPv4 or IPv6
(other protocols, fragments, packets cut by the snap length) are passed over and counted by nobody: a capture holds what
it holds. A file that ends inside a packet raises after the whole packets before it were yielded.

Source: draft-ietf-opsawg-pcap (file format), the tcpdump group's list of link types, RFC 791, RFC 8200, RFC 768.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from vedette.models.errors import ModelsError
from vedette.models.flows.datagrams import Datagram

__all__ = ["MAX_CAPTURE_BYTES", "MAX_PACKET_BYTES", "CaptureError", "Datagram", "read_capture", "write_capture"]

MAX_CAPTURE_BYTES = 1 << 30
"""Decompressed size that is read at most unless the caller says otherwise."""

MAX_PACKET_BYTES = 1 << 18
"""Of one captured packet: the largest snap length that capture programs write (tcpdump's MAXIMUM_SNAPLEN)."""

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31  # zlib: gzip header and checksum, window of 32 KiB
_PIECE_BYTES = 1 << 16
# First four bytes -> (byte order, nanoseconds in one unit of the fraction)
_MAGICS = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
_FILE_HEADER = "HHiIII"  # behind the magic: version, version, zone, accuracy, snap length, link type
_PACKET_HEADER = "IIII"  # seconds, fraction, captured bytes, original bytes
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_VLAN_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
_IPV6_OPTIONS = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options: length in units of 8 (RFC 8200)
_MAX_IPV6_OPTIONS = 8


class CaptureError(ModelsError):
    """A capture cannot be read; says what is wrong, the value and the limit."""


def read_capture(
    file: IO[bytes], *, max_bytes: int = MAX_CAPTURE_BYTES, max_packet_bytes: int = MAX_PACKET_BYTES
) -> Iterator[Datagram]:
    """Yield the UDP datagrams of a pcap, in the order of the file; reads on as they are taken.

    Args:
        file: At its start; need not be seekable.
        max_bytes: Decompressed bytes that are read at most.
        max_packet_bytes: Bytes of one packet at most.

    Raises:
        CaptureError: No pcap, another link type, cut inside a packet, damaged compression, or over a limit.
    """
    reader = _Reader(file, max_bytes)
    order, unit_ns, network = _read_file_header(reader)
    header = struct.Struct(order + _PACKET_HEADER)
    while raw := reader.up_to(header.size):
        if len(raw) < header.size:
            raise CaptureError(f"capture ends inside a packet header: {len(raw)} bytes, expected {header.size}")
        seconds, fraction, captured, _ = header.unpack(raw)
        if captured > max_packet_bytes:
            raise CaptureError(f"captured packet is {captured} bytes, limit {max_packet_bytes}")
        packet = reader.up_to(captured)
        if len(packet) < captured:
            raise CaptureError(f"capture ends inside a packet: {len(packet)} bytes, expected {captured}")
        found = _udp(network(packet))
        if found is not None:
            yield Datagram(seconds * 1_000_000_000 + fraction * unit_ns, *found)


def write_capture(file: IO[bytes], datagrams: Iterable[Datagram], *, port: int = 2055) -> None:
    """Write datagrams as a pcap of raw IP packets with nanosecond times, addressed to ``port``; not compressed."""
    file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_PACKET_BYTES, 101))
    for at_ns, source, source_port, payload in datagrams:
        packet = _ip_packet(source, source_port, port, payload)
        seconds, fraction = divmod(at_ns, 1_000_000_000)
        file.write(struct.pack("<IIII", seconds, fraction, len(packet), len(packet)) + packet)


class _Prefixed:
    """A file whose first bytes were already read, to see what it is."""

    def __init__(self, start: bytes, file: IO[bytes]) -> None:
        self._start = start
        self._file = file

    def read(self, count: int) -> bytes:
        if self._start:
            taken, self._start = self._start[:count], self._start[count:]
            return taken
        return self._file.read(count)


class _Inflated:
    """A gzip file as it decompresses, in pieces.

    Not ``gzip.GzipFile``: where a file is cut, that one keeps back up to a buffer of what came before the cut.
    """

    def __init__(self, file: _Prefixed) -> None:
        self._file = file
        self._member = zlib.decompressobj(wbits=_GZIP_WBITS)
        self._ready = memoryview(b"")

    def read(self, count: int) -> bytes:
        if not self._ready:
            self._ready = memoryview(self._inflate())
        taken, self._ready = self._ready[:count], self._ready[count:]
        return bytes(taken)

    def _inflate(self) -> bytes:
        """Return some bytes, none only at the end.

        Raises:
            EOFError: The file ends before its compressed form does.
            zlib.error: It is damaged.
        """
        while True:
            if self._member.eof:
                rest = self._member.unused_data.lstrip(b"\0") or self._file.read(_PIECE_BYTES).lstrip(b"\0")
                if not rest:
                    return b""
                self._member = zlib.decompressobj(wbits=_GZIP_WBITS)
            else:
                rest = self._member.unconsumed_tail or self._file.read(_PIECE_BYTES)
            made = self._member.decompress(rest, _PIECE_BYTES)
            if made:
                return made
            if not rest and not self._member.eof:
                raise EOFError("it ends before its compressed form does")


class _Reader:
    """Reads a file that may be compressed, never more than so many bytes of it."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        start = _read_exactly(file.read, len(_GZIP_MAGIC))
        plain = _Prefixed(start, file)
        self._read = _Inflated(plain).read if start == _GZIP_MAGIC else plain.read
        self._left = self._max_bytes = max_bytes

    def up_to(self, count: int) -> bytes:
        """Return the next bytes, fewer only at the end.

        Raises:
            CaptureError: The compression is damaged or cut, or the limit is passed.
        """
        try:
            found = _read_exactly(self._read, count)
        except (EOFError, zlib.error) as exc:
            raise CaptureError(f"compressed capture is damaged or cut: {exc}") from exc
        self._left -= len(found)
        if self._left < 0:
            read = self._max_bytes - self._left
            raise CaptureError(f"capture is at least {read} bytes decompressed, limit {self._max_bytes}")
        return found


def _read_exactly(read: Callable[[int], bytes], count: int) -> bytes:
    """Return ``count`` bytes, fewer only at the end: a pipe may give less at a time."""
    found = read(count)
    while 0 < len(found) < count:
        more = read(count - len(found))
        if not more:
            break
        found += more
    return found


def _read_file_header(reader: _Reader) -> tuple[str, int, Callable[[bytes], bytes]]:
    """Return byte order, nanoseconds per unit of time, and what finds the IP packet in a captured one."""
    magic = reader.up_to(4)
    if magic not in _MAGICS:
        raise CaptureError(f"not a pcap: it begins with {magic.hex() or 'nothing'}, expected a1b2c3d4 or a1b23c4d")
    order, unit_ns = _MAGICS[magic]
    header = struct.Struct(order + _FILE_HEADER)
    raw = reader.up_to(header.size)
    if len(raw) < header.size:
        raise CaptureError(f"capture ends inside its header: {len(raw)} bytes, expected {header.size}")
    link_type = header.unpack(raw)[5] & 0xFFFF  # above it: length of a frame check sequence
    if link_type not in _NETWORKS:
        raise CaptureError(f"link type is {link_type}, read are {', '.join(map(str, sorted(_NETWORKS)))}")
    return order, unit_ns, _NETWORKS[link_type]


def _behind_ethernet(frame: bytes) -> bytes:
    offset = 12
    kind = int.from_bytes(frame[offset : offset + 2], "big")
    while kind in _VLAN_TAGS:
        offset += 4
        kind = int.from_bytes(frame[offset : offset + 2], "big")
    return frame[offset + 2 :] if kind in (_IPV4, _IPV6) else b""


def _behind_cooked(frame: bytes) -> bytes:
    kind = int.from_bytes(frame[14:16], "big")
    return frame[16:] if kind in (_IPV4, _IPV6) else b""


def _raw_ip(packet: bytes) -> bytes:
    return packet


_NETWORKS: dict[int, Callable[[bytes], bytes]] = {
    1: _behind_ethernet,
    12: _raw_ip,  # what BSD systems wrote for 101
    101: _raw_ip,
    113: _behind_cooked,
}


def _udp(packet: bytes) -> tuple[str, int, bytes] | None:
    """Return source, source port and payload when an IP packet is one whole UDP datagram."""
    version = packet[0] >> 4 if packet else 0
    found = _behind_ipv4(packet) if version == 4 else _behind_ipv6(packet) if version == 6 else None
    if found is None:
        return None
    source, offset = found
    if len(packet) - offset < 8:
        return None
    source_port, _, length, _ = struct.unpack_from(">HHHH", packet, offset)
    if not 8 <= length <= len(packet) - offset:
        return None
    return source, source_port, packet[offset + 8 : offset + length]


def _behind_ipv4(packet: bytes) -> tuple[str, int] | None:
    """Return the source address and where UDP begins."""
    header_bytes = (packet[0] & 15) * 4
    if header_bytes < 20 or len(packet) < header_bytes or packet[9] != _UDP:
        return None
    is_fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF  # "more fragments" and the offset
    return None if is_fragment else (str(ipaddress.IPv4Address(packet[12:16])), header_bytes)


def _behind_ipv6(packet: bytes) -> tuple[str, int] | None:
    if len(packet) < 40:
        return None
    following, offset = packet[6], 40
    for _ in range(_MAX_IPV6_OPTIONS):
        if following not in _IPV6_OPTIONS or len(packet) < offset + 2:
            break
        following, offset = packet[offset], offset + 8 * (packet[offset + 1] + 1)
    return (str(ipaddress.IPv6Address(packet[8:24])), offset) if following == _UDP else None


def _ip_packet(source: str, source_port: int, port: int, payload: bytes) -> bytes:
    """Return a UDP datagram to the loopback address; checksums are left out, as many capture points do."""
    udp = struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload
    address = ipaddress.ip_address(source)
    if address.version == 4:
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, _UDP, 0, address.packed, b"\x7f\0\0\x01"
        )
    else:
        header = struct.pack(">IHBB16s16s", 6 << 28, len(udp), _UDP, 64, address.packed, bytes(15) + b"\x01")
    return header + udp
