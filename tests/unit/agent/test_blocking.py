"""Claims about who may be blocked: the records, the rules, and what the helper does on its own judgement."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.verdicts import verdicts
from vedette.agent import nft_helper
from vedette.agent.adapters.sinks.nftables import NftablesSink
from vedette.agent.domain.blocking import (
    MAX_PACKET_BYTES,
    MAX_RECORDS,
    MAX_TIMEOUT_S,
    Answer,
    BadPacket,
    Block,
    is_protected,
    own_networks,
    packed,
    parse_networks,
    unpacked,
)
from vedette.agent.nft_helper import Limits, NftFailed, Table, serve
from vedette.agent.settings import NftablesSettings, read_settings
from vedette.models.toml_settings import SettingsError, WrongValue

FOE, OTHER, SIX = "198.51.100.7", "198.51.100.8", "2001:db8::7"
LIMITS = Limits(allow=parse_networks(["203.0.113.0/24"]), most=3, most_timeout_s=600, drop=True, flush_on_stop=False)

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 192.0.2.0
        /24 link UNICAST
     |-- 192.0.2.9
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
"""
IF_INET6 = "20010db8000000000000000000000009 02 40 00 80     eth0\n"
ROUTE = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    f"eth0\t00000000\t{struct.unpack('=I', bytes([192, 0, 2, 1]))[0]:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
)
IPV6_ROUTE = (
    f"{'0' * 32} 00 {'0' * 32} 00 20010db8000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
)


def test_own_addresses_and_gateways_are_read_as_the_kernel_prints_them() -> None:
    own = own_networks(FIB_TRIE, IF_INET6, ROUTE, IPV6_ROUTE)
    assert {str(network.network_address) for network in own} == {
        "192.0.2.9", "192.0.2.255", "2001:db8::9", "192.0.2.1", "2001:db8::1",
    }  # fmt: skip
    assert all(network.num_addresses == 1 for network in own)


def test_this_hosts_own_addresses_are_found() -> None:
    own = nft_helper.own_now()
    assert is_protected(ip_address("127.0.0.1"), own)
    assert ip_network("127.0.0.1") in own


@pytest.mark.parametrize(
    "text",
    ["0.0.0.1", "127.0.0.53", "169.254.1.1", "224.0.0.251", "255.255.255.255", "::", "::1", "::ffff:198.51.100.7",
     "fe80::1", "ff02::1"],
)  # fmt: skip
def test_what_a_host_cannot_live_without_is_never_blocked(text: str) -> None:
    assert is_protected(ip_address(text), ())


def test_networks_protect_what_lies_in_them_and_nothing_else() -> None:
    allow = parse_networks(["10.0.0.0/8", "2001:db8::/32"])
    assert is_protected(ip_address("10.1.2.3"), allow)
    assert is_protected(ip_address("2001:db8::1"), allow)
    assert not is_protected(ip_address("11.0.0.1"), allow)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "all", "", "10.0.0.0/33"])
def test_a_network_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(WrongValue):
        parse_networks([text])


blocks = st.builds(Block, st.ip_addresses(), st.integers(1, MAX_TIMEOUT_S))


@given(st.lists(blocks, min_size=1, max_size=MAX_RECORDS))
def test_records_come_back_as_they_were(asked: list[Block]) -> None:
    assert unpacked(packed(asked)) == asked


@given(st.binary(max_size=MAX_PACKET_BYTES + 30))
def test_any_packet_is_read_or_refused(packet: bytes) -> None:
    with suppress(BadPacket):
        for block in unpacked(packet):
            assert block is None or 1 <= block.timeout_s <= MAX_TIMEOUT_S


GOOD = packed([Block(ip_address(FOE), 60)])


@pytest.mark.parametrize(
    "record",
    [
        b"\x02" + GOOD[1:],  # another form
        GOOD[:1] + b"\x05" + GOOD[2:],  # no family
        GOOD[:3] + b"\x01" + GOOD[4:],  # what must be zero
        GOOD[:-1] + b"\x01",  # more than an IPv4 address
        packed([Block(ip_address(FOE), 0)]),
        packed([Block(ip_address(FOE), MAX_TIMEOUT_S + 1)]),
    ],
)
def test_a_record_that_is_not_well_formed_is_none_and_spoils_no_other(record: bytes) -> None:
    assert unpacked(record + GOOD) == [None, Block(ip_address(FOE), 60)]


class Nft:
    """An nft that keeps scripts and lists what it was told to add."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self.fails: str | None = None
        self.held: dict[str, list[dict[str, Any]]] = {"blocked4": [], "blocked6": []}

    def __call__(self, arguments: Sequence[str], script: str) -> str:
        if self.fails is not None:
            raise NftFailed(self.fails)
        if arguments[0] == "-j":
            sets = [{"set": {"name": name, "elem": held}} for name, held in self.held.items()]
            return json.dumps({"nftables": [{"metainfo": {}}, {"table": {}}, *sets]})
        self.scripts.append(script)
        return ""

    @property
    def added(self) -> list[str]:
        return [line for script in self.scripts for line in script.splitlines() if line.startswith("add element")]


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ask(*addresses: str, timeout_s: int = 60) -> list[Block]:
    return [Block(ip_address(address), timeout_s) for address in addresses]


def test_addresses_are_added_with_their_time_by_family_and_once() -> None:
    nft, clock = Nft(), Clock()
    table = Table(LIMITS, nft, clock)
    assert table.block(ask(FOE, SIX, FOE), ()) == [Answer.ADDED, Answer.ADDED, Answer.ALREADY]
    assert nft.added == [
        f"add element inet vedette blocked4 {{ {FOE} timeout 60s }}",
        f"add element inet vedette blocked6 {{ {SIX} timeout 60s }}",
    ]
    clock.now_s += 60
    assert table.block(ask(FOE), ()) == [Answer.ADDED]


def test_no_script_names_another_table_or_takes_anything_away_but_its_own_rules() -> None:
    nft = Nft()
    table = Table(LIMITS, nft, Clock())
    table.block(ask(FOE, SIX), ())
    table.flush()
    lines = [line for script in nft.scripts for line in script.splitlines()]
    assert all(" inet vedette" in line for line in lines)
    assert [line for line in lines if not line.startswith("add ")] == [
        "flush chain inet vedette early", "flush set inet vedette blocked4", "flush set inet vedette blocked6",
    ]  # fmt: skip


def test_the_helper_judges_by_itself() -> None:
    own = parse_networks(["192.0.2.9"])
    table = Table(LIMITS, Nft(), Clock())
    asked = [None, *ask("203.0.113.5", "192.0.2.9", "127.0.0.1"), *ask(FOE, timeout_s=601)]
    assert table.block(asked, own) == [
        Answer.INVALID, Answer.PROTECTED, Answer.PROTECTED, Answer.PROTECTED, Answer.INVALID,
    ]  # fmt: skip


def test_no_more_are_blocked_than_may_be_until_one_is_over() -> None:
    clock = Clock()
    table = Table(LIMITS, Nft(), clock)
    foes = [f"198.51.100.{number}" for number in range(1, 6)]
    answers = table.block([*ask(foes[0], timeout_s=10), *ask(*foes[1:])], ())
    assert answers == [Answer.ADDED] * 3 + [Answer.FULL] * 2
    clock.now_s += 10
    assert table.block(ask(foes[4]), ()) == [Answer.ADDED]


def test_what_an_earlier_helper_blocked_counts() -> None:
    nft = Nft()
    nft.held["blocked4"] = [{"elem": {"val": f"198.51.100.{n}", "timeout": 60, "expires": 30}} for n in (1, 2, 3)]
    table = Table(LIMITS, nft, Clock())
    assert table.block(ask("198.51.100.1", FOE), ()) == [Answer.ALREADY, Answer.FULL]


def test_what_somebody_flushed_is_seen_within_half_a_minute() -> None:
    nft, clock = Nft(), Clock()
    table = Table(LIMITS, nft, clock)
    table.block(ask(FOE, timeout_s=600), ())
    clock.now_s += 30
    assert table.block(ask(FOE), ()) == [Answer.ADDED]


def test_an_nft_that_fails_blocks_nobody_and_is_asked_again() -> None:
    nft = Nft()
    table = Table(LIMITS, nft, Clock())
    nft.fails = "Operation not permitted"
    assert table.block(ask(FOE), ()) == [Answer.FAILED]
    nft.fails = None
    assert table.block(ask(OTHER), ()) == [Answer.ADDED]
    nft.fails = "No such file or directory"
    assert table.block([*ask(FOE, OTHER), None], ()) == [Answer.FAILED, Answer.ALREADY, Answer.INVALID]
    nft.fails = None
    assert table.block(ask(FOE), ()) == [Answer.ADDED]


@pytest.mark.parametrize("listing", ["", "[]", "{}", '{"nftables": [{"set": {"name": "blocked4", "elem": [1]}}]}'])
def test_a_list_that_is_none_of_nfts_blocks_nobody(listing: str) -> None:
    assert Table(LIMITS, lambda arguments, script: listing, Clock()).block(ask(FOE), ()) == [Answer.FAILED]


class Helper:
    """The helper's own loop on a socket, with an nft that keeps what it is told."""

    def __init__(self, folder: Path, *users: int) -> None:
        self.path = folder / "helper.sock"
        self.nft = Nft()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=[users], daemon=True)
        self._thread.start()

    def _serve(self, users: tuple[int, ...]) -> None:
        with suppress(OSError):
            serve(self._listener, Table(LIMITS, self.nft, Clock()), users)

    def ask(self, packet: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
            made.settimeout(20.0)
            made.connect(str(self.path))
            made.send(packet)
            return made.recv(1000)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(20.0)
        self._listener.close()


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    made = Helper(tmp_path, os.getuid())
    yield made
    made.close()


def test_a_packet_is_answered_with_a_byte_for_each_record(helper: Helper) -> None:
    assert helper.ask(packed(ask(FOE, "127.0.0.1"))) == bytes([Answer.ADDED, Answer.PROTECTED])


@pytest.mark.parametrize("packet", [GOOD[:-1], GOOD + b"x", GOOD * (MAX_RECORDS + 1)])
def test_a_packet_that_is_none_ends_its_connection_and_nothing_else(helper: Helper, packet: bytes) -> None:
    with suppress(ConnectionError):
        assert helper.ask(packet) == b""
    assert helper.nft.added == []
    assert helper.ask(GOOD) == bytes([Answer.ADDED])


def test_nobody_but_who_may_is_answered(tmp_path: Path) -> None:
    made = Helper(tmp_path, 4_000_000_000)
    with suppress(ConnectionError):
        assert made.ask(GOOD) == b""
    made.close()
    assert made.nft.added == []


class Bench:
    """A sink, its problems, and what it needs."""

    def __init__(self, path: Path, *controllers: str, **changes: Any) -> None:
        self.problems: list[str | None] = []
        known: dict[str, Any] = {
            "dry_run": False, "labels": frozenset({"scan"}), "min_score": 0.5, "timeout_s": 60, "most": 100,
            "allow": parse_networks(["192.0.2.0/28"]), "queue_bytes": 10**6,
        }  # fmt: skip
        settings = NftablesSettings(socket=path, **(known | changes))
        self.sink = NftablesSink(settings, lambda: controllers, self.problems.append)
        self.sink.start()

    def flag(self, *sources: str, **more: Any) -> None:
        self.sink.write(verdicts(*["{}"] * len(sources), sources=sources, **more))
        assert self.sink.flush(20.0)


def test_sources_of_named_labels_and_scores_are_blocked_once(helper: Helper) -> None:
    bench = Bench(helper.path)
    bench.flag(FOE, FOE, SIX, OTHER, "198.51.100.9", labels=["scan"] * 4 + ["brute"], scores=[0.9] * 3 + [0.1, 0.9])
    bench.flag(FOE)
    assert [line.split("{ ")[1].split()[0] for line in helper.nft.added] == [FOE, SIX]
    assert bench.sink.counters.written == 2
    bench.sink.close(20.0)
    assert bench.problems == []


def test_the_agent_holds_back_who_is_protected(helper: Helper, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench(helper.path, "198.51.100.8", "no-such-host.invalid")
    bench.flag("192.0.2.5", OTHER, "127.0.0.1", "198.51.100.30", exporters=["198.51.100.30", "eve.json", "", "x"])
    assert helper.nft.scripts == []
    assert f"{OTHER} is flagged and never blocked" in caplog.text
    bench.sink.close(20.0)


def test_a_dry_run_asks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench = Bench(tmp_path / "none.sock", dry_run=True, most=1)
    bench.flag(FOE, OTHER)
    bench.flag(FOE)
    assert caplog.text.count("would block") == 1
    assert (bench.sink.counters.written, bench.sink.counters.lost["full"]) == (1, 1)
    bench.sink.close(20.0)


def test_a_helper_that_is_away_is_told_with_what_to_do_and_is_asked_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "helper.sock")
    bench.flag(FOE)
    assert "vedette-agent configure --nftables" in str(bench.problems[0])
    assert bench.sink.counters.lost["helper"] == 1
    made = Helper(tmp_path, os.getuid())
    bench.flag(FOE)
    assert bench.problems[-1] is None
    assert bench.sink.counters.written == 1
    bench.sink.close(20.0)
    made.close()


def test_a_full_helper_and_one_that_refuses_are_told(helper: Helper) -> None:
    bench = Bench(helper.path)
    bench.flag(*(f"198.51.100.{number}" for number in range(1, 6)))
    assert "raise most in /etc/vedette/nftables.toml" in str(bench.problems[-1])
    assert (bench.sink.counters.written, bench.sink.counters.lost["full"]) == (3, 2)
    bench.sink.close(20.0)
    long = Bench(helper.path, timeout_s=601)
    long.flag("198.51.100.77")
    assert "most_timeout_s" in str(long.problems[-1])
    long.sink.close(20.0)


def test_blocking_without_a_label_is_refused_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("sink.nftables.enabled = true\n")
    with pytest.raises(SettingsError, match=r"sink\.nftables\.labels = \["):
        read_settings(tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_text('sink.nftables.allow = ["10.0.0.1/8"]\n')
    with pytest.raises(SettingsError, match="host bits"):
        read_settings(tmp_path / "agent.toml")
