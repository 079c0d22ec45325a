"""Claims about verdicts as syslog messages, at receivers on real sockets."""

from __future__ import annotations

import json
import queue
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.receivers import StreamReceiver, TlsGround, UdpReceiver, hanging_receiver, unused_port
from tests.support.verdicts import verdicts
from vedette.agent.adapters.sinks.syslog import SyslogSink
from vedette.agent.domain.syslog import FACILITIES, Said, Target, framed, parse_target, syslog_message
from vedette.agent.settings import SyslogSettings, TlsFiles
from vedette.models.toml_settings import WrongValue

LINE = b'{"timestamp":"2026-11-23T11:37:41.120Z","vedette":{"verdict":"brute","evidence":[{"feature":"a"}]}}\n'
SAID = Said("2026-11-23T11:37:41.120Z", "edge-7", 4711, "flow-threat", 3, "brute", True, 0.981)


def message(line: bytes = LINE, *, most: int = 2048, **changes: Any) -> bytes | None:
    said = Said(**({name: getattr(SAID, name) for name in Said.__slots__} | changes))
    return syslog_message(line, said, facility=FACILITIES["local0"], most=most)


def test_a_flagged_verdict_is_a_warning_with_its_line_as_the_message() -> None:
    assert message() == (
        b"<132>1 2026-11-23T11:37:41.120Z edge-7 vedette-agent 4711 verdict "
        b'[vedette@32473 model="flow-threat" version="3" verdict="brute" flagged="true" score="0.981"] ' + LINE.rstrip()
    )


def test_any_other_verdict_is_informational() -> None:
    assert (message(is_flagged=False) or b"").startswith(b"<134>1 ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"verdict": 'a"b\\c]d'}, rb'verdict="a\"b\\c\]d"'),
        ({"verdict": "a\nb"}, rb'verdict="a?b"'),
        ({"verdict": "brüte"}, 'verdict="brüte"'.encode()),
        ({"host": "edge 7\n<13>"}, b" edge-7-<13> vedette-agent "),
        ({"host": ""}, b" - vedette-agent "),
        ({"host": "h" * 300}, b" " + b"h" * 255 + b" vedette-agent "),
    ],
)
def test_no_name_breaks_out_of_its_field(changes: dict[str, Any], expected: bytes) -> None:
    made = message(**changes)
    assert made is not None
    assert expected in made
    assert b"\n" not in made


def test_a_message_too_long_leaves_out_its_evidence_and_is_whole_json() -> None:
    whole = message()
    assert whole is not None
    made = message(most=len(whole) - 1)
    assert made is not None
    assert json.loads(made.partition(b"] ")[2]) == {
        "timestamp": "2026-11-23T11:37:41.120Z",
        "vedette": {"verdict": "brute"},
    }
    assert message(most=len(made)) == made
    assert message(most=len(made) - 1) is None


def test_a_frame_counts_bytes() -> None:
    assert framed("ü".encode()) == b"2 \xc3\xbc"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("udp://logs.example", Target("udp", "logs.example", 514)),
        ("tcp://10.0.0.1:601", Target("tcp", "10.0.0.1", 601)),
        ("tls://[2001:db8::1]", Target("tls", "2001:db8::1", 6514)),
    ],
)
def test_a_target_is_a_transport_a_host_and_a_port(raw: str, expected: Target) -> None:
    assert parse_target(raw) == expected
    assert parse_target(str(expected)) == expected


@pytest.mark.parametrize("raw", ["logs.example", "http://logs", "udp:logs", "udp://", "tls://h:99999", "tcp://h:1/x"])
def test_what_is_no_target_is_refused(raw: str) -> None:
    with pytest.raises(WrongValue):
        parse_target(raw)


class Bench:
    """A sink, its problems, and what it needs to reach a receiver."""

    def __init__(self, transport: str, port: int, **changes: Any) -> None:
        self.problems: list[str | None] = []
        self.told: queue.Queue[str | None] = queue.Queue()
        known: dict[str, Any] = {
            "facility": 16, "max_message": 2048, "tls": TlsFiles(), "server_name": "", "emit_all": True,
            "queue_bytes": 10**6, "retry_cap_s": 0.01,
        }  # fmt: skip
        target = Target(transport, "127.0.0.1", port)
        self.sink = SyslogSink(SyslogSettings(target=target, **(known | changes)), self._problem)
        self.sink.start()

    def _problem(self, problem: str | None) -> None:
        self.problems.append(problem)
        self.told.put(problem)

    def await_problem(self) -> str | None:
        return self.told.get(timeout=20.0)

    def write(self, *lines: str) -> None:
        self.sink.write(verdicts(*(json.dumps({"n": line, "vedette": {}}) for line in lines)))


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*arguments: Any, **changes: Any) -> Bench:
        made.append(Bench(*arguments, **changes))
        return made[-1]

    yield make
    for each in made:
        each.sink.close(0.0)


def number(received: bytes) -> str:
    return str(json.loads(received.partition(b"] ")[2])["n"])


def test_over_udp_each_verdict_is_a_datagram(bench: Callable[..., Bench]) -> None:
    receiver = UdpReceiver()
    sending = bench("udp", receiver.port)
    sending.write("1", "2")
    received = [receiver.message(), receiver.message()]
    assert [number(item) for item in received] == ["1", "2"]
    assert received[0].startswith(b"<132>1 2026-11-23T11:37:41.120Z edge-7 ")
    assert sending.sink.flush(20.0)
    assert (sending.sink.counters.written, sending.sink.counters.bytes) == (2, sum(map(len, received)))
    receiver.close()


def test_over_udp_a_port_where_nobody_listens_is_told_until_somebody_does(bench: Callable[..., Bench]) -> None:
    port = unused_port(socket.SOCK_DGRAM)
    sending = bench("udp", port)
    sending.write("1")
    while sending.told.empty():  # the refusal comes back after the datagram
        sending.write("2")
        sending.sink.flush(1.0)
    assert f"udp://127.0.0.1:{port}" in str(sending.await_problem())
    assert sending.sink.counters.lost["network"] > 0
    receiver = UdpReceiver(port)
    assert sending.await_problem() is None
    assert number(receiver.message()) == "2"
    receiver.close()


def test_over_udp_a_verdict_is_written_or_lost_and_never_both(bench: Callable[..., Bench]) -> None:
    port = unused_port(socket.SOCK_DGRAM)
    sending = bench("udp", port)
    for line in ("1", "2", "3"):
        sending.write(line)
    assert "Connection refused" in str(sending.await_problem())
    receiver = UdpReceiver(port)
    assert sending.await_problem() is None
    sending.write("4")
    assert sending.sink.flush(20.0)
    written, lost = sending.sink.counters.written, sending.sink.counters.lost["network"]
    assert [number(receiver.message()) for _ in range(written)] == ["1", "2", "3", "4"][lost:]
    assert (written, lost) == (3, 1), "the second was sent again and again, and is not lost"
    receiver.close()


def test_over_udp_the_last_verdict_of_an_evening_is_known_to_be_lost(bench: Callable[..., Bench]) -> None:
    sending = bench("udp", unused_port(socket.SOCK_DGRAM))
    sending.write("1")
    assert "Connection refused" in str(sending.await_problem())
    assert sending.sink.flush(20.0)
    assert (sending.sink.counters.written, sending.sink.counters.lost["network"]) == (0, 1)


def test_over_tcp_verdicts_arrive_in_order_through_a_restart_of_the_receiver(bench: Callable[..., Bench]) -> None:
    receiver = StreamReceiver()
    sending = bench("tcp", receiver.port)
    sending.write("1", "2")
    assert [number(receiver.message()) for _ in range(2)] == ["1", "2"]
    port = receiver.port
    receiver.close()
    sending.write("3")
    assert f"tcp://127.0.0.1:{port}" in str(sending.await_problem())
    sending.write("4")
    again = StreamReceiver(port)
    assert [number(again.message()) for _ in range(2)] == ["3", "4"]
    assert sending.await_problem() is None
    assert sending.sink.flush(20.0)
    assert (sending.sink.counters.written, sending.sink.counters.lost.total()) == (4, 0)
    again.close()


def test_a_connection_that_the_receiver_closed_is_found_before_anything_is_written_into_it(
    bench: Callable[..., Bench],
) -> None:
    receiver = StreamReceiver()
    sending = bench("tcp", receiver.port)
    sending.write("1")
    receiver.message()
    receiver.cut()
    assert receiver.ends.get(timeout=20.0) == b""
    sending.write("2")
    assert number(receiver.message()) == "2"
    assert sending.problems == []
    receiver.close()


def test_over_tls_the_receiver_is_checked_by_name_and_both_part_in_order(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    ground = TlsGround(tmp_path)
    receiver = StreamReceiver(context=ground.context)
    sending = bench("tls", receiver.port, tls=TlsFiles(ca=ground.ca), server_name="logs.example")
    sending.write("1")
    assert number(receiver.message()) == "1"
    sending.sink.close(20.0)
    assert receiver.ends.get(timeout=20.0) == b""
    receiver.close()


@pytest.mark.parametrize(("server_name", "is_known"), [("other.example", True), ("logs.example", False)])
def test_over_tls_a_wrong_name_or_an_unknown_authority_gets_nothing(
    bench: Callable[..., Bench], tmp_path: Path, server_name: str, is_known: bool
) -> None:
    ground = TlsGround(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    ca = ground.ca if is_known else TlsGround(other).ca
    receiver = StreamReceiver(context=ground.context)
    sending = bench("tls", receiver.port, tls=TlsFiles(ca=ca), server_name=server_name)
    sending.write("1")
    assert "certificate is not believed" in str(sending.await_problem())
    assert receiver.ends.get(timeout=20.0) == b""
    assert receiver.messages.empty()
    receiver.close()


def test_over_tls_a_certificate_of_ours_is_shown_where_one_is_set(bench: Callable[..., Bench], tmp_path: Path) -> None:
    ground = TlsGround(tmp_path, asks_client=True)
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    plain = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "our.key").write_bytes(key.private_bytes(*plain))
    (tmp_path / "our.pem").write_bytes(ground.authority.client(request.public_bytes(pem), "agent-1"))
    receiver = StreamReceiver(context=ground.context)
    files = TlsFiles(ca=ground.ca, certificate=tmp_path / "our.pem", key=tmp_path / "our.key")
    sending = bench("tls", receiver.port, tls=files, server_name="logs.example")
    sending.write("1")
    assert number(receiver.message()) == "1"
    assert receiver.client_names.get(timeout=20.0) == "vedette:agent:agent-1"
    receiver.close()


def test_files_are_read_again_at_each_connection(bench: Callable[..., Bench], tmp_path: Path) -> None:
    ground = TlsGround(tmp_path)
    pem = ground.ca.read_bytes()
    ground.ca.unlink()
    receiver = StreamReceiver(context=ground.context)
    sending = bench("tls", receiver.port, tls=TlsFiles(ca=ground.ca), server_name="logs.example")
    sending.write("1")
    assert "No such file" in str(sending.await_problem())
    ground.ca.write_bytes(pem)
    sending.sink.reopen()
    assert number(receiver.message()) == "1"
    receiver.close()


def test_a_message_over_the_limit_is_counted_and_the_others_go(bench: Callable[..., Bench]) -> None:
    receiver = StreamReceiver()
    sending = bench("tcp", receiver.port, max_message=480)
    sending.write("1", "x" * 480, "3")
    assert [number(receiver.message()) for _ in range(2)] == ["1", "3"]
    assert sending.sink.flush(20.0)
    assert dict(sending.sink.counters.lost) == {"queue": 0, "size": 1, "network": 0, "end": 0}
    receiver.close()


def test_a_receiver_that_reads_nothing_costs_the_newest_and_no_more_memory_than_the_queue(
    bench: Callable[..., Bench],
) -> None:
    with hanging_receiver() as port:
        sending = bench("tcp", port, queue_bytes=70_000, max_message=65_000)
        for _ in range(400):
            sending.write("x" * 60_000)
        assert sending.sink.counters.lost["queue"] > 300
        assert sending.sink.waiting_bytes <= 70_000
