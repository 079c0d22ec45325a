"""Flagged source addresses to the packet filter, through a privileged helper.

Rules: off unless asked for, and then only for the labels that are named. An address that must never be blocked is held
back here, and by the helper once more: this host's own, its gateways, the controller's, the exporters' (a blocked one
would blind the agent), loopback, link-local, multicast and what the settings allow. An address is asked for once and
again only when its time is over. Nothing waits for a helper that is away: an address that goes on is flagged again.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from vedette.agent.adapters.sinks.fanout import OnProblem, QueuedSink, Verdicts
from vedette.agent.domain.blocking import MAX_RECORDS, Address, Answer, Block, Blocked, Network, is_protected, packed
from vedette.agent.nft_helper import own_now
from vedette.agent.settings import NftablesSettings

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20.0  # the helper's own limit for nft is 10 s, for each of its three steps; by far most take 10 ms
_RESOLVE_S = 300.0


class NftablesSink(QueuedSink):
    """The packet filter of this appliance.

    Args:
        settings: What is blocked.
        controllers: Returns the hosts of the controller as they are known now.
        on_problem: Told when the helper begins to fail, and when that ends.
    """

    name = "nftables"
    lost_at = ("full", "helper")

    def __init__(
        self, settings: NftablesSettings, controllers: Callable[[], Iterable[str]], on_problem: OnProblem
    ) -> None:
        super().__init__(emits_all=False, queue_bytes=settings.queue_bytes, on_problem=on_problem)
        self._settings = settings
        self._controllers = controllers
        self._controller_networks: tuple[Network, ...] = ()
        self._resolved_at: float | None = None
        self._asked = Blocked(settings.most)
        self._spared = Blocked(settings.most)

    def _deliver(self, verdicts: Verdicts) -> None:
        now_s = time.monotonic()
        self._asked.forget(now_s)
        self._spared.forget(now_s)
        wanted = dict.fromkeys(self._wanted(verdicts))
        if not wanted:
            return
        protected = (*self._settings.allow, *own_now(), *self._resolved(now_s), *_hosts(verdicts.exporters))
        blocks = [
            Block(address, self._settings.timeout_s)
            for address in wanted
            if address not in self._asked and not self._is_spared(address, protected, now_s)
        ]
        if self._settings.dry_run:
            self._tell_only(blocks, now_s)
            return
        for begin in range(0, len(blocks), MAX_RECORDS):
            self._ask(blocks[begin : begin + MAX_RECORDS], now_s)

    def _wanted(self, verdicts: Verdicts) -> Iterator[Address]:
        sources = verdicts.flows[["src_hi", "src_lo"]].tolist()
        for source, label, score in zip(sources, verdicts.labels, verdicts.scores.tolist(), strict=True):
            if label in self._settings.labels and score >= self._settings.min_score:
                yield _address(*source)

    def _is_spared(self, address: Address, protected: tuple[Network, ...], now_s: float) -> bool:
        if not is_protected(address, protected):
            return False
        if address not in self._spared and not self._spared.is_full:
            logger.info("%s is flagged and never blocked: it is protected", address)
            self._spared.add(address, now_s + self._settings.timeout_s)
        return True

    def _tell_only(self, blocks: list[Block], now_s: float) -> None:
        for block in blocks:
            if self._asked.is_full:
                self.counters.lost["full"] += 1
                continue
            logger.info("would block %s for %d s (sink.nftables.dry_run)", block.address, block.timeout_s)
            self._asked.add(block.address, now_s + block.timeout_s)
            self.counters.written += 1

    def _ask(self, blocks: list[Block], now_s: float) -> None:
        try:
            answers = self._answers(blocks)
        except (OSError, ValueError) as exc:
            self.counters.lost["helper"] += len(blocks)
            why = getattr(exc, "strerror", None) or str(exc)
            self._say(f"the helper that blocks addresses does not answer at {self._settings.socket}: {why}; {_REMEDY}")
            return
        problem = None
        for block, answer in zip(blocks, answers, strict=True):
            if answer in (Answer.ADDED, Answer.ALREADY):
                self._asked.add(block.address, now_s + block.timeout_s)
                self.counters.written += answer is Answer.ADDED
            elif answer is Answer.PROTECTED:
                self._is_spared(block.address, (ip_network(block.address),), now_s)
            else:
                self.counters.lost["full" if answer is Answer.FULL else "helper"] += 1
                problem = _PROBLEMS[answer]
        self._say(problem)

    def _answers(self, blocks: list[Block]) -> list[Answer]:
        """Return what the helper says of each.

        Raises:
            OSError: It does not answer.
            ValueError: What it says is no answer.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
            made.settimeout(_TIMEOUT_S)
            made.connect(str(self._settings.socket))
            made.send(packed(blocks))
            answer = made.recv(MAX_RECORDS + 1)
        if len(answer) != len(blocks):
            raise ValueError(f"it answered {len(answer)} of {len(blocks)} records")
        return [Answer(byte) for byte in answer]

    def _resolved(self, now_s: float) -> tuple[Network, ...]:
        """Return the controller's addresses; those known before when a name cannot be resolved just now."""
        if self._resolved_at is None or now_s - self._resolved_at >= _RESOLVE_S:
            found = tuple(network for host in self._controllers() for network in _resolve(host))
            self._controller_networks = found or self._controller_networks
            self._resolved_at = now_s
        return self._controller_networks

    def _let_go(self) -> None:
        self._resolved_at = None


_REMEDY = "sudo vedette-agent configure --nftables; journalctl -u vedette-nft-helper"
_PROBLEMS = {
    Answer.FULL: "as many addresses are blocked as may be: raise most in /etc/vedette/nftables.toml, or shorten "
    "sink.nftables.timeout_s",
    Answer.INVALID: "the helper refuses what it is asked: is sink.nftables.timeout_s above most_timeout_s in "
    "/etc/vedette/nftables.toml?",
    Answer.FAILED: "nft does not do what it is asked: journalctl -u vedette-nft-helper",
}


def _address(high: int, low: int) -> Address:
    if high == 0 and low >> 32 == 0xFFFF:
        return IPv4Address(low & 0xFFFF_FFFF)
    return IPv6Address(high << 64 | low)


def _hosts(texts: Iterable[str]) -> Iterator[Network]:
    """Yield the addresses among names; an exporter may be a file."""
    for text in dict.fromkeys(texts):
        with suppress(ValueError):
            yield ip_network(ip_address(text))


def _resolve(host: str) -> Iterator[Network]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        logger.debug("the controller's name %s has no address now: %s", host, exc)
        return
    yield from (ip_network(str(address[0]).partition("%")[0]) for *_, address in found)
