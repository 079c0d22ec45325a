"""Bursts of flow export: what the socket's buffer holds is kept, what it cannot hold is counted to the datagram.

``net.core.rmem_max`` belongs to the machine, not to its containers: that systemd raises it at a boot cannot be tried
here, only that the package tells systemd to, and that the agent gets all that the kernel grants.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.commands import execute, wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, COLLECTOR_PORT, Lab

_WANTED_BYTES = 4 << 20
_GRANTED = "vedette_agent_receive_buffer_bytes"
_IN_KERNEL = 'vedette_agent_datagrams_dropped_total{where="kernel"}'
_TAKEN = "vedette_agent_datagrams_total"
_CAPTURE = "base/pmacct-v9"
_BURST_FACTOR = 400
"""Its few datagrams a second at 20 times their pace would take a minute to fill the buffer of a stopped agent."""


def _booted(lab: Lab) -> Host:
    """Return an appliance that was never enrolled: it takes flows all the same."""
    edge = lab.with_package("edge-1", lab.packages.agent)
    edge.boot()
    edge.systemctl("start", AGENT)
    return edge


def _in_socket(edge: Host) -> int:
    """Return what waits in the collector's socket, with the kernel's own book-keeping."""
    lines = edge.read("/proc/net/udp").splitlines()
    found = next(line.split() for line in lines if f":{COLLECTOR_PORT:04X} " in line)
    return int(found[4].partition(":")[2], 16)


def _udp(namespace: str) -> dict[str, int]:
    """Return what the kernel has counted of UDP in a network namespace."""
    text = execute(["ip", "netns", "exec", namespace, "cat", "/proc/net/snmp"]).out
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Udp:"))
    return dict(zip(names, map(int, values), strict=True))


def _sent(lab: Lab) -> int:
    return _udp(lab.network.links["exporter0"].namespace)["OutDatagrams"]


def test_the_collector_gets_the_buffer_that_the_package_asks_the_system_for(lab: Lab) -> None:
    edge = _booted(lab)
    told = edge.run("/lib/systemd/systemd-sysctl --cat-config").out
    assert f"net.core.rmem_max = {_WANTED_BYTES}" in told
    of_this_machine = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert lab.metrics(edge)[_GRANTED] == min(_WANTED_BYTES, of_this_machine)


def test_a_burst_waits_in_the_buffer_while_the_agent_stands_still(lab: Lab) -> None:
    edge = _booted(lab)
    granted = lab.metrics(edge)[_GRANTED]
    edge.freeze(AGENT)
    traffic = lab.traffic(edge, _CAPTURE, factor=_BURST_FACTOR)
    wait_until("as much waits as was granted", lambda: _in_socket(edge) > granted, 25)  # the limit is twice that
    traffic.stop()
    sent = _sent(lab)
    edge.thaw(AGENT)
    wait_until("all of it is counted", lambda: lab.metrics(edge)[_TAKEN] == sent)
    assert lab.metrics(edge)[_IN_KERNEL] == 0


def test_what_a_burst_loses_in_the_kernel_is_counted_to_the_datagram(lab: Lab) -> None:
    edge = _booted(lab)
    edge.freeze(AGENT)
    traffic = lab.traffic(edge, _CAPTURE, factor=_BURST_FACTOR)
    wait_until("the kernel has dropped some", lambda: _udp(edge.link.namespace)["RcvbufErrors"] > 100, 25)
    edge.thaw(AGENT)
    # The kernel tells how much it dropped with the next datagram that it keeps, so the traffic goes on meanwhile.
    wait_until("losses are told", lambda: lab.metrics(edge)[_IN_KERNEL] > 100)
    traffic.stop()
    sent, lost = _sent(lab), _udp(edge.link.namespace)["RcvbufErrors"]
    wait_until("every datagram is counted", lambda: lab.metrics(edge)[_TAKEN] + lost == sent)
    assert lab.metrics(edge)[_IN_KERNEL] == lost
