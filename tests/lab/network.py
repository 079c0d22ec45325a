"""A lab's network: one switch, a cable to each host, and no way out.

The switch is a bridge in a network namespace of its own; each host has another one, which outlives the host's reboots
and power cuts, as a cable does. No namespace has a route beyond 10.98.0.0/24, and the machine outside has no leg in it.
Trouble is made at the switch, where no host sees how: a port goes down, packets are dropped both ways, and a token
bucket at both ends of the cable limits its rate. There is no netem in every kernel, so there is no added delay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.lab.commands import LabError, execute
from tests.lab.ground import Ground

_BRIDGE = "br0"
INTERFACE = "eth0"
_SUBNET = "10.98.0"
_BUCKET_BYTES = 16_384
"""A whole offloaded burst must fit in the bucket of a slow link, or the kernel drops it however long it waits."""
_MOST_HOSTS = 100
_MOVED = 100  # what moves goes where no cable is laid
_PATIENCE = "300ms"
"""How long a packet may wait in the bucket's queue: what a slow router buffers."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What went over a cable, as the host counts."""

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


class Link:
    """One host's cable to the switch."""

    def __init__(self, network: Network, host: str, number: int) -> None:
        self._network = network
        self._port = f"port{number}"
        self.address = f"{_SUBNET}.{number}"
        self.namespace = network.ground.name(host)
        self.loss_percent = 0.0
        self.is_up = True
        self._blocked: frozenset[str] = frozenset()
        switch = network.namespace
        _ip("netns", "add", self.namespace)
        _ip("-n", switch, "link", "add", "name", self._port, "type", "veth",
            "peer", "name", INTERFACE, "netns", self.namespace)  # fmt: skip
        _ip("-n", switch, "link", "set", "dev", self._port, "master", _BRIDGE, "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        _ip("-n", self.namespace, "link", "set", INTERFACE, "up")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", INTERFACE)

    def down(self) -> None:
        """Pull the cable out of the switch."""
        _ip("-n", self._network.namespace, "link", "set", "dev", self._port, "down")
        self.is_up = False

    def up(self) -> None:
        """Put the cable in again."""
        _ip("-n", self._network.namespace, "link", "set", "dev", self._port, "up")
        self.is_up = True

    def limit(self, rate: str | None) -> None:
        """Let so much through each way, such as ``256kbit``; None is as much as there is."""
        for namespace, device in ((self._network.namespace, self._port), (self.namespace, INTERFACE)):
            execute(["tc", "-n", namespace, "qdisc", "delete", "dev", device, "root"], check=False)
            if rate is not None:
                bucket = ["tbf", "rate", rate, "burst", str(_BUCKET_BYTES), "latency", _PATIENCE]
                execute(["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *bucket])

    def loss(self, percent: float) -> None:
        """Drop so many of 100 packets, each way; 0 is none."""
        self.loss_percent = percent
        self._network.apply_losses()

    def block(self, *directions: str) -> None:
        """Let nothing through ``to`` the host, ``from`` it, or both, and tell nobody; no direction ends it.

        Unlike :meth:`down` the host's own end stays up: what a dead router or a NAT that forgot makes.
        """
        self._blocked = frozenset(directions)
        self._network.apply_losses()

    def move(self) -> None:
        """Give the host another address, once, and take the one it had away; names follow when hosts are renamed."""
        before, self.address = self.address, f"{_SUBNET}.{int(self.address.rpartition('.')[2]) + _MOVED}"
        # The old one first: with the first address of a subnet the kernel takes its further ones away too.
        _ip("-n", self.namespace, "address", "delete", f"{before}/24", "dev", INTERFACE)
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", INTERFACE)

    def counters(self) -> Counters:
        """Return what the host has received and sent since the lab began."""
        said = execute(["ip", "-n", self.namespace, "-json", "-stats", "link", "show", INTERFACE]).data[0]["stats64"]
        got, sent = said["rx"], said["tx"]
        return Counters(got["bytes"], sent["bytes"], got["packets"], sent["packets"])

    def describe(self) -> str:
        """Return what ``ip -s link`` says at the host."""
        return execute(["ip", "-n", self.namespace, "-stats", "link", "show", INTERFACE], check=False).out

    def loss_rules(self) -> Iterator[str]:
        """Yield the switch's rules that lose this cable's packets."""
        for side, name in ((f'iifname "{self._port}"', "from"), (f'oifname "{self._port}"', "to")):
            if name in self._blocked:
                yield f"{side} drop"
        if self.loss_percent:
            dice = f"numgen random mod 10000 < {round(self.loss_percent * 100)}"
            yield f'iifname "{self._port}" {dice} drop'
            yield f'oifname "{self._port}" {dice} drop'


@dataclass(slots=True)
class Network:
    """The switch and its cables."""

    ground: Ground
    links: dict[str, Link] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "add", "name", _BRIDGE, "type", "bridge")
        _ip("-n", self.namespace, "link", "set", _BRIDGE, "up")

    @property
    def namespace(self) -> str:
        """The network namespace of the switch."""
        return self.ground.name("switch")

    def plug(self, host: str) -> Link:
        """Lay a cable to a new host.

        Raises:
            LabError: There is one with this name, or the switch is full.
        """
        if host in self.links or host == "switch":
            raise LabError(f"the lab has a host {host} already")
        if len(self.links) >= _MOST_HOSTS:
            raise LabError(f"a lab has at most {_MOST_HOSTS} hosts")
        self.links[host] = Link(self, host, len(self.links) + 10)
        return self.links[host]

    def alias(self, host: str, name: str) -> None:
        """Give a host a further name."""
        self.aliases.setdefault(host, []).append(name)

    def names(self) -> str:
        """Return /etc/hosts, for every host the same."""
        lines = [" ".join((link.address, host, *self.aliases.get(host, ()))) for host, link in self.links.items()]
        return "\n".join(("127.0.0.1 localhost", "::1 localhost", *lines, ""))

    def apply_losses(self) -> None:
        """Make the switch lose what its cables ask for, in one step."""
        rules = "\n".join(rule for link in self.links.values() for rule in link.loss_rules())
        chain = f"chain forward {{\ntype filter hook forward priority 0\n{rules}\n}}"
        # Made, deleted and made again in one transaction: no packet meets half of the rules.
        whole = f"table bridge loss\ndelete table bridge loss\ntable bridge loss {{\n{chain}\n}}\n"
        execute(["ip", "netns", "exec", self.namespace, "nft", "-f", "-"], stdin=whole)


def _ip(*words: str) -> None:
    execute(["ip", *words])
