"""Captures of every kind give their UDP datagrams; cut, wrong and over-sized ones a typed error behind them."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.captures import CAPTURES
from vedette.models.errors import ModelsError
from vedette.models.flows.captures import CaptureError, Datagram, read_capture, write_capture

SENT = [
    Datagram(1_795_433_818_123_456_789, "192.0.2.1", 40112, b"first"),
    Datagram(1_795_433_819_000_000_001, "2001:db8::7", 2055, b""),
    Datagram(1_795_433_819_000_000_001, "127.0.0.1", 65535, bytes(1464)),
]


def written(*datagrams: Datagram) -> bytes:
    file = io.BytesIO()
    write_capture(file, datagrams)
    return file.getvalue()


def ip_packet(payload: bytes = b"hello", *, proto: int = 17, fragment: int = 0, options: bytes = b"") -> bytes:
    udp = struct.pack(">HHHH", 40112, 2055, 8 + len(payload), 0) + payload
    head = struct.pack(
        ">BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(udp), 0, fragment, 64, proto, 0
    )
    return head + bytes([192, 0, 2, 1]) + bytes([192, 0, 2, 2]) + options + udp


def ip6_packet(payload: bytes = b"hello", *, extension: bytes = b"") -> bytes:
    udp = struct.pack(">HHHH", 40112, 2055, 8 + len(payload), 0) + payload
    following = 60 if extension else 17
    head = struct.pack(">IHBB", 6 << 28, len(extension) + len(udp), following, 64)
    return head + bytes.fromhex("20010db8") + bytes(11) + b"\x01" + bytes(16) + extension + udp


def capture(
    *packets: bytes, link_type: int = 101, order: str = "<", magic: int = 0xA1B2C3D4, fraction: int = 250_000
) -> bytes:
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    return head + b"".join(struct.pack(f"{order}IIII", 7, fraction, len(p), len(p) + 9) + p for p in packets)


def read(data: bytes, **limits: int) -> list[Datagram]:
    return list(read_capture(io.BytesIO(data), **limits))


def until_error(datagrams: Iterator[Datagram]) -> tuple[list[Datagram], str]:
    seen: list[Datagram] = []
    with pytest.raises(CaptureError) as caught:
        seen.extend(datagrams)
    assert isinstance(caught.value, ModelsError)
    return seen, str(caught.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_what_was_written_is_read(compress: type[bytes]) -> None:
    assert read(compress(written(*SENT))) == SENT


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_both_byte_orders_and_both_units_of_time(order: str, magic: int, unit_ns: int) -> None:
    (got,) = read(capture(ip_packet(), order=order, magic=magic))

    assert got == Datagram(7_000_000_000 + 250_000 * unit_ns, "192.0.2.1", 40112, b"hello")


@pytest.mark.parametrize(
    ("link_type", "head", "packet", "source"),
    [
        (1, bytes(12) + b"\x08\x00", ip_packet(), "192.0.2.1"),
        (1, bytes(12) + b"\x86\xdd", ip6_packet(), "2001:db8::1"),
        (1, bytes(12) + b"\x81\x00\x00\x07\x08\x00", ip_packet(), "192.0.2.1"),
        (1, bytes(12) + b"\x88\xa8\x00\x07\x81\x00\x00\x08\x08\x00", ip_packet(), "192.0.2.1"),
        (0x2400_0001, bytes(12) + b"\x08\x00", ip_packet() + bytes(4), "192.0.2.1"),  # with frame check sequences
        (12, b"", ip_packet(), "192.0.2.1"),
        (101, b"", ip6_packet(), "2001:db8::1"),
        (101, b"", ip6_packet(extension=b"\x3c\x00" + bytes(6) + b"\x11\x01" + bytes(14)), "2001:db8::1"),
        (101, b"", ip_packet(options=bytes(8)), "192.0.2.1"),
        (113, bytes(14) + b"\x08\x00", ip_packet(), "192.0.2.1"),
        (113, bytes(14) + b"\x86\xdd", ip6_packet(), "2001:db8::1"),
        (1, bytes(12) + b"\x08\x00", ip_packet(b"hi") + bytes(20), "192.0.2.1"),  # Ethernet pads short frames
    ],
)
def test_link_types_and_headers(link_type: int, head: bytes, packet: bytes, source: str) -> None:
    (got,) = read(capture(head + packet, link_type=link_type))

    assert (got.source, got.source_port) == (source, 40112)
    assert got.payload in (b"hello", b"hi")


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        ip_packet(proto=6),
        ip_packet(fragment=0x2000),
        ip_packet(fragment=100),
        ip_packet()[:-1],  # cut by the snap length
        ip_packet()[:27],
        b"\x42" + ip_packet()[1:],  # a header of 8 bytes
        ip6_packet()[:-1],
        ip6_packet()[:39],
        b"\x50" + bytes(60),
        ip_packet()[:24] + b"\x00\x07" + ip_packet()[26:],  # UDP shorter than its header
    ],
)
def test_packets_that_are_no_whole_udp_datagram_are_passed_over(packet: bytes) -> None:
    assert [one.payload for one in read(capture(ip_packet(b"1"), packet, ip_packet(b"2")))] == [b"1", b"2"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 40])
def test_capture_cut_in_a_packet_raises_after_the_whole_ones(cut: int, compress: type[bytes]) -> None:
    whole = capture(ip_packet(b"1"), ip_packet(b"2"))
    last = 16 + len(ip_packet(b"2"))

    seen, text = until_error(read_capture(io.BytesIO(compress(whole[: len(whole) - last + min(cut, last - 1)]))))

    assert [one.payload for one in seen] == [b"1"]
    assert "capture ends inside a packet" in text


def test_cut_compression_raises_after_the_whole_packets() -> None:
    data = gzip.compress(capture(*(ip_packet(bytes([number])) for number in range(200))), 0)

    seen, text = until_error(read_capture(io.BytesIO(data[: len(data) // 2])))

    assert 0 < len(seen) < 200
    assert "damaged or cut" in text


def test_gzip_members_behind_each_other_and_zeros_behind_them_are_one_file() -> None:
    data = written(*SENT)

    assert read(gzip.compress(data[:50]) + bytes(9) + gzip.compress(data[50:]) + bytes(512)) == SENT


def test_damaged_compression_raises() -> None:
    data = bytearray(gzip.compress(written(*SENT)))
    data[-6] ^= 0xFF  # the checksum

    _, text = until_error(read_capture(io.BytesIO(bytes(data))))

    assert "damaged or cut" in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x1f", "begins with 1f"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "begins with 0a0d0d0a"),  # pcapng
        (capture()[:23], "ends inside its header: 19 bytes, expected 20"),
        (capture(link_type=105), "link type is 105, read are 1, 12, 101, 113"),
        (capture() + struct.pack("<IIII", 0, 0, 2**32 - 1, 0), "captured packet is 4294967295 bytes, limit 262144"),
    ],
)
def test_what_is_no_capture_is_refused_with_value_and_limit(data: bytes, message: str) -> None:
    seen, text = until_error(read_capture(io.BytesIO(data)))

    assert seen == []
    assert message in text


def test_decompressed_size_is_limited() -> None:
    data = gzip.compress(capture(*[ip_packet(bytes(60_000))] * 1000))

    seen, text = until_error(read_capture(io.BytesIO(data), max_bytes=1_000_000))

    assert len(seen) == 16
    assert "limit 1000000" in text


def test_packets_are_limited() -> None:
    seen, text = until_error(read_capture(io.BytesIO(capture(ip_packet(), ip_packet(bytes(999)))), max_packet_bytes=99))

    assert len(seen) == 1
    assert "is 1027 bytes, limit 99" in text


class Dribble(io.RawIOBase):
    """A pipe that gives a byte at a time and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 1))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_pipe_that_gives_little_at_a_time_is_read(compress: type[bytes]) -> None:
    assert list(read_capture(Dribble(compress(written(*SENT))))) == SENT  # type: ignore[arg-type]


def test_reading_does_not_run_ahead_of_what_is_taken() -> None:
    with (CAPTURES / "base/pmacct-v9.pcap.gz").open("rb") as file:
        next(read_capture(file))

        assert file.tell() < 100_000


@given(st.binary(max_size=200) | st.builds(lambda tail: capture(ip_packet()) + tail, st.binary(max_size=200)))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(CaptureError):
        assert all(isinstance(one, Datagram) for one in read_capture(io.BytesIO(data)))


datagrams = st.builds(
    Datagram,
    st.integers(0, 2**32 * 10**9 - 1),
    st.ip_addresses().map(str),
    st.integers(0, 65535),
    st.binary(max_size=100),
)


@given(st.lists(datagrams, max_size=5))
def test_reading_is_the_inverse_of_writing(sent: list[Datagram]) -> None:
    assert read(written(*sent)) == sent
