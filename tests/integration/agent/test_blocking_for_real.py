"""The sink, the real helper and the kernel's own packet filter, in a network of two namespaces."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.verdicts import verdicts
from vedette.agent.adapters.sinks.nftables import NftablesSink
from vedette.agent.settings import NftablesSettings

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(not Path("/usr/sbin/nft").exists(), reason="needs nftables"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2"),
]

_HERE, _FOE, _FRIEND = "198.51.100.1", "198.51.100.7", "198.51.100.8"
_HERE6, _FOE6, _FRIEND6 = "2001:db8::1", "2001:db8::7", "2001:db8::8"
_CLONE_NEWNET = 0x40000000
_WAIT_S = 20.0
_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
_OTHERS = "table inet mine {\n  chain input {\n    type filter hook input priority 0; policy accept; counter\n  }\n}\n"


class Namespaces:
    """An appliance and its neighbour, at the two ends of one cable."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.appliance, self.neighbour = f"vsinks-{tag}-a", f"vsinks-{tag}-n"
        for name in (self.appliance, self.neighbour):
            _run("ip", "netns", "add", name)
        near, far = f"vs{tag}a", f"vs{tag}n"
        _run("ip", "link", "add", near, "netns", self.appliance, "type", "veth", "peer", far, "netns", self.neighbour)
        self._address(self.appliance, near, _HERE, _HERE6)
        self._address(self.neighbour, far, _FOE, _FRIEND, _FOE6, _FRIEND6)

    def _address(self, name: str, link: str, *addresses: str) -> None:
        for address in addresses:
            six = ["nodad"] if ":" in address else []
            prefix = 64 if six else 24
            _run("ip", "-n", name, "address", "add", f"{address}/{prefix}", "dev", link, *six)
        _run("ip", "-n", name, "link", "set", link, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def nft(self, *words: str, script: str = "") -> str:
        return _run("ip", "netns", "exec", self.appliance, "/usr/sbin/nft", *words, stdin=script)

    def udp(self, name: str, address: str, port: int = 0) -> socket.socket:
        """Return a socket of a namespace."""
        made: list[socket.socket] = []

        def make() -> None:
            with Path(f"/run/netns/{name}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made.append(socket.socket(family, socket.SOCK_DGRAM))
            made[0].bind((address, port))
            made[0].settimeout(_WAIT_S)

        thread = threading.Thread(target=make)  # a namespace is a thread's, and this one's ends with it
        thread.start()
        thread.join()
        return made[0]

    def remove(self) -> None:
        for name in (self.appliance, self.neighbour):
            _run("ip", "netns", "delete", name)


def _run(*words: str, stdin: str = "") -> str:
    return subprocess.run(words, input=stdin, check=True, capture_output=True, text=True, timeout=30).stdout


class Line:
    """Packets from the neighbour's addresses to the appliance."""

    def __init__(self, namespaces: Namespaces, here: str, *senders: str) -> None:
        self._server = namespaces.udp(namespaces.appliance, here)
        self._senders = {sender: namespaces.udp(namespaces.neighbour, sender) for sender in senders}

    def arrive(self, *senders: str) -> list[str]:
        """Send a packet from each and return from whom they came; the last one must come: it ends the wait."""
        for sender in senders:
            self._senders[sender].sendto(b"x", self._server.getsockname()[:2])
        came: list[str] = []
        while senders[-1] not in came:
            came.append(str(self._server.recvfrom(10)[1][0]))
        return came

    def close(self) -> None:
        for each in (self._server, *self._senders.values()):
            each.close()


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    made = Namespaces()
    yield made
    made.remove()


StartHelper = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def helper(namespaces: Namespaces, tmp_path: Path) -> Iterator[StartHelper]:
    """The real program in the appliance's namespace, given its socket as systemd does it."""
    started: list[subprocess.Popen[str]] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "helper.sock"))
    listener.listen()

    def start(settings: str = "") -> subprocess.Popen[str]:
        (tmp_path / "nftables.toml").write_text(settings)
        program = [sys.executable, "-m", "vedette.agent.nft_helper", str(tmp_path / "nftables.toml")]
        command = ["ip", "netns", "exec", namespaces.appliance, *program]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", _AS_SYSTEMD, str(listener.fileno()), *command],
                pass_fds=[listener.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.terminate()
        each.communicate(timeout=_WAIT_S)
    listener.close()


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Callable[..., list[str | None]]]:
    made: list[NftablesSink] = []
    problems: list[str | None] = []

    def flag(*sources: str, timeout_s: int = 600) -> list[str | None]:
        settings = NftablesSettings(
            dry_run=False, labels=frozenset({"scan"}), min_score=0.0, timeout_s=timeout_s, most=100, allow=(),
            queue_bytes=10**6, socket=tmp_path / "helper.sock",
        )  # fmt: skip
        made.append(NftablesSink(settings, tuple, problems.append))
        made[-1].start()
        made[-1].write(verdicts(*["{}"] * len(sources), sources=sources))
        assert made[-1].flush(_WAIT_S)
        return problems

    yield flag
    for each in made:
        each.close(_WAIT_S)


Flag = Callable[..., list[str | None]]


def test_packets_of_a_flagged_address_are_dropped_and_no_others(
    namespaces: Namespaces, helper: StartHelper, sink: Flag
) -> None:
    namespaces.nft("-f", "-", script=_OTHERS)
    before = namespaces.nft("-s", "list", "table", "inet", "mine")
    four, six = Line(namespaces, _HERE, _FOE, _FRIEND), Line(namespaces, _HERE6, _FOE6, _FRIEND6)
    assert four.arrive(_FOE, _FRIEND) == [_FOE, _FRIEND]
    assert six.arrive(_FOE6, _FRIEND6) == [_FOE6, _FRIEND6]
    helper("")
    assert sink(_FOE, _FOE6, _HERE, "127.0.0.1") == []
    assert four.arrive(_FOE, _FRIEND) == [_FRIEND]
    assert six.arrive(_FOE6, _FRIEND6) == [_FRIEND6]
    listed = namespaces.nft("list", "table", "inet", "vedette")
    assert listed.count("counter packets 1 ") == 2
    assert _HERE not in listed.replace(f"{_HERE}00", "")
    assert namespaces.nft("-s", "list", "table", "inet", "mine") == before
    four.close()
    six.close()


def test_a_block_ends_by_itself(namespaces: Namespaces, helper: StartHelper, sink: Flag) -> None:
    line = Line(namespaces, _HERE, _FOE, _FRIEND)
    helper("")
    assert sink(_FOE, timeout_s=1) == []
    assert line.arrive(_FOE, _FRIEND) == [_FRIEND]
    while line.arrive(_FOE, _FRIEND) == [_FRIEND]:  # the test's own time-out ends a block that never does
        pass
    line.close()


@pytest.mark.parametrize(("settings", "stays"), [("", True), ("flush_on_stop = true", False)])
def test_what_is_blocked_outlives_the_helper_unless_it_shall_not(
    namespaces: Namespaces, helper: StartHelper, sink: Flag, settings: str, stays: bool
) -> None:
    line = Line(namespaces, _HERE, _FOE, _FRIEND)
    first = helper(settings)
    assert sink(_FOE) == []
    first.send_signal(signal.SIGTERM)
    assert first.wait(_WAIT_S) == 0
    assert line.arrive(_FOE, _FRIEND) == ([_FRIEND] if stays else [_FOE, _FRIEND])
    helper("most = 1")
    problems = sink(_FRIEND)
    assert bool(problems) is stays  # the one that stayed is the one that may be
    line.close()


def test_without_the_drop_only_the_sets_are_filled(namespaces: Namespaces, helper: StartHelper, sink: Flag) -> None:
    line = Line(namespaces, _HERE, _FOE, _FRIEND)
    helper("drop = false")
    assert sink(_FOE) == []
    assert line.arrive(_FOE, _FRIEND) == [_FOE, _FRIEND]
    assert _FOE in namespaces.nft("list", "set", "inet", "vedette", "blocked4")
    line.close()


def test_a_flushed_ruleset_is_no_end_of_blocking(namespaces: Namespaces, helper: StartHelper, sink: Flag) -> None:
    line = Line(namespaces, _HERE, _FOE, _FRIEND)
    helper("")
    assert sink(_FOE) == []
    namespaces.nft("flush", "ruleset")
    assert any(sink(_FRIEND, _FOE))  # this request finds no table, and the next one makes it anew
    sink(_FOE)
    assert line.arrive(_FOE, _FRIEND) == [_FRIEND]
    line.close()


def test_settings_with_a_mistake_are_told_and_end_it(helper: StartHelper) -> None:
    made = helper('alow = ["10.0.0.0/8"]')
    _, said = made.communicate(timeout=_WAIT_S)
    assert made.returncode == 2
    assert "allow" in said.replace("alow", "")
