"""Blocking: the packaged helper under its own unit, and packets that the kernel drops."""

from __future__ import annotations

import re
import sys

from tests.lab.commands import execute, wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, Lab
from tests.lab.models import flow_model
from tests.lab.network import INTERFACE

_HELPER = "vedette-nft-helper"
_SETTINGS = f"""{BRISK}
[sink.nftables]
enabled = true
labels = ["scan"]
"""
_EXPOSURE_AT_MOST = 1.1
_FOE, _FRIEND = "198.51.100.7", "198.51.100.8"
_PYTHON = "/usr/lib/vedette-agent/bin/python3"
_ASK = """
import socket, sys
from ipaddress import ip_address
from vedette.agent.domain.blocking import Block, packed
made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
made.connect("/run/vedette-nft-helper.sock")
made.send(packed([Block(ip_address(text), 600) for text in sys.argv[1:]]))
print(*made.recv(100))
"""
_SEND = """
import socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.bind((sys.argv[1], 0))
made.sendto(b"x", (sys.argv[2], 9))
"""


class Neighbour:
    """Somebody on the appliance's cable who may have any address."""

    def __init__(self, lab: Lab, edge: Host) -> None:
        self._link, self._edge = lab.network.plug("neighbour"), edge

    def send(self, source: str) -> None:
        namespace = self._link.namespace
        execute(["ip", "-n", namespace, "address", "replace", f"{source}/32", "dev", INTERFACE])
        execute(["ip", "netns", "exec", namespace, sys.executable, "-c", _SEND, source, self._edge.address])


def _dropped(edge: Host) -> int:
    """Return how many packets the helper's own chain has dropped."""
    listed = edge.run("nft list chain inet vedette early").out
    return sum(map(int, re.findall(r"counter packets (\d+) bytes \d+ drop", listed)))


def _blocked(edge: Host) -> list[str]:
    return re.findall(r"([0-9a-f.:]+) timeout", edge.run("nft list table inet vedette").out)


def _ask(edge: Host, *addresses: str, user: str = AGENT) -> str:
    return edge.run([_PYTHON, "-c", _ASK, *addresses], user=user, check=False).text.strip()


def test_the_helper_starts_when_it_is_asked_answers_the_agent_alone_and_packets_are_dropped(lab: Lab) -> None:
    edge = lab.with_package("edge-1", lab.packages.agent)
    edge.boot()
    neighbour = Neighbour(lab, edge)
    edge.run("nft add table inet mine")
    before = edge.run("nft list ruleset").out
    edge.systemctl("start", AGENT)
    assert not edge.exists("/run/vedette-nft-helper.sock")
    edge.run("vedette-agent configure --nftables")
    edge.systemctl("restart", AGENT)
    assert not edge.is_active(_HELPER)

    assert _ask(edge, _FOE, "127.0.0.1", edge.address) == "0 2 2"
    assert edge.is_active(_HELPER)
    neighbour.send(_FRIEND)
    assert _dropped(edge) == 0
    neighbour.send(_FOE)
    wait_until("its packet was dropped", lambda: _dropped(edge) == 1)
    assert "Permission denied" in _ask(edge, _FRIEND, user="nobody")
    assert _blocked(edge) == [_FOE]

    pid = edge.main_pid(f"{_HELPER}.service")
    status = edge.read(f"/proc/{pid}/status")
    assert re.search(r"^CapBnd:\s+0000000000001000$", status, re.MULTILINE)  # CAP_NET_ADMIN is bit 12
    assert re.search(r"^CapEff:\s+0000000000001000$", status, re.MULTILINE)
    assert not re.search(r"^Uid:\s+0\s", status, re.MULTILINE)
    said = edge.run(["systemd-analyze", "security", "--no-pager", _HELPER]).out
    assert float(re.findall(r"Overall exposure level for \S+ ([\d.]+)", said)[0]) <= _EXPOSURE_AT_MOST

    edge.systemctl("stop", AGENT)
    wait_until("the helper stopped with it", lambda: not edge.is_active(_HELPER))
    assert _blocked(edge) == [_FOE]
    edge.run(f"DEBIAN_FRONTEND=noninteractive apt-get -y remove {AGENT}", timeout=300)
    assert edge.run("nft list ruleset").out == before


def test_a_source_that_a_model_flags_is_blocked_on_the_appliance(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=_SETTINGS)
    edge.run("vedette-agent configure --nftables")
    edge.systemctl("restart", AGENT)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    foes = wait_until("an address is blocked", lambda: _blocked(edge), 60)

    neighbour = Neighbour(lab, edge)
    neighbour.send(foes[0])
    wait_until("its packets are dropped", lambda: _dropped(edge) > 0)
    flagged = {verdict["src_ip"] for verdict in lab.verdicts(edge) if verdict["vedette"]["flagged"]}
    assert set(foes) <= flagged
    assert lab.is_online(edge)
    assert lab.metrics(edge)['vedette_agent_sink_written_total{sink="nftables"}'] == len(foes)
