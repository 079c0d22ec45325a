"""The privileged helper: adds addresses to the nftables sets of a table of its own, and can do nothing else.

A process of its own with CAP_NET_ADMIN alone, started by systemd at the first request on its socket. It trusts nobody:
who connects is asked of the kernel, and each address is checked again with what is read here (the root-owned
``/etc/vedette/nftables.toml``, this host's addresses and gateways). It only ever adds; the kernel removes an address
when its time is over. No other table is read or written.

Source: nft(8), "SETS" and "ADD ELEMENT"; systemd's sd_listen_fds(3); unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

from vedette.agent.domain.blocking import (
    MAX_PACKET_BYTES,
    MAX_TIMEOUT_S,
    Address,
    Answer,
    BadPacket,
    Block,
    Blocked,
    Network,
    is_protected,
    own_networks,
    parse_networks,
    unpacked,
)
from vedette.models import toml_settings as kinds
from vedette.models.toml_settings import Kind, Option, SettingsError, load_settings
from vedette.wire.systemd import log_to_journal_or_stderr

logger = logging.getLogger("vedette.nft_helper")

SETTINGS_FILE = Path("/etc/vedette/nftables.toml")
TABLE = "inet vedette"
_SETS = {4: "blocked4", 6: "blocked6"}
_NFT = "/usr/sbin/nft"
_NFT_S = 10.0
_IDLE_S = 5.0  # after which a connection that asks nothing makes way for the next
_LOOK_S = 30.0  # how long what the table holds is believed without looking: somebody may have flushed it
_FIRST_FD = 3  # SD_LISTEN_FDS_START
_AGENT_USER = "vedette-agent"
_PROC = Path("/proc/self/net")
_PROC_FILES = ("fib_trie", "if_inet6", "route", "ipv6_route")
_EXIT_USAGE = 2


def _networks() -> Kind:
    several = kinds.texts(most=1024)
    return Kind("list of networks", lambda raw: parse_networks(several.parse(raw)))


OPTIONS: tuple[Option, ...] = (
    Option(
        "allow",
        _networks(),
        (),
        "networks that are never blocked: put in what you administer this host from, and the controller; this host's "
        "own addresses, its gateways, loopback, link-local and multicast never are",
    ),
    Option("most", kinds.integer(least=1, most=65_536), 1024, "addresses that are blocked at once, at the most"),
    Option("most_timeout_s", kinds.integer(least=1, most=MAX_TIMEOUT_S), 86_400, "longest block, seconds"),
    Option(
        "drop",
        kinds.boolean(),
        True,
        "packets from blocked addresses are dropped; false only fills the sets, for chains of yours in the same table",
    ),
    Option(
        "flush_on_stop", kinds.boolean(), False, "the sets are emptied when the agent stops; else blocks run their time"
    ),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What root allows."""

    allow: tuple[Network, ...]
    most: int
    most_timeout_s: int
    drop: bool
    flush_on_stop: bool


class NftFailed(Exception):
    """nft did not do what it was asked; the text is what it said."""


class _Stop(BaseException):
    """SIGTERM came."""


def run_nft(arguments: Sequence[str], script: str = "") -> str:
    """Run nft and return its output.

    Raises:
        NftFailed: It failed, is not installed, or hangs.
    """
    command = [_NFT, *arguments]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=_NFT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NftFailed(str(exc)) from exc
    if done.returncode != 0:
        raise NftFailed(done.stderr.strip()[:500] or f"nft ended with {done.returncode}")
    return done.stdout


class Table:
    """The table ``inet vedette``: one set for each family, and the chain that drops.

    Args:
        limits: Root's.
        nft: Runs nft.
        monotonic: Seconds.
    """

    def __init__(
        self,
        limits: Limits,
        nft: Callable[[Sequence[str], str], str] = run_nft,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._nft = nft
        self._monotonic = monotonic
        self._blocked = Blocked(limits.most)
        self._looked_at: float | None = None

    def block(self, asked: Sequence[Block | None], own: Iterable[Network]) -> list[Answer]:
        """Add what may be added and return what became of each."""
        try:
            self._look()
        except NftFailed as exc:
            logger.error("the table %s cannot be made or read: %s", TABLE, exc)  # noqa: TRY400 - nft says it all
            return [Answer.FAILED for _ in asked]
        protected = (*self._limits.allow, *own)
        answers: list[Answer] = []
        added: list[Block] = []
        for block in asked:
            answers.append(self._judged(block, protected))
            if block is not None and answers[-1] is Answer.ADDED:
                self._blocked.add(block.address, self._monotonic() + block.timeout_s)
                added.append(block)
        if added and not self._added(added):
            return [Answer.FAILED if answer is Answer.ADDED else answer for answer in answers]
        return answers

    def flush(self) -> None:
        """Take every block back.

        Raises:
            NftFailed: nft would not.
        """
        self._nft(["-f", "-"], "".join(f"flush set {TABLE} {name}\n" for name in _SETS.values()))

    def _judged(self, block: Block | None, protected: tuple[Network, ...]) -> Answer:
        if block is None or block.timeout_s > self._limits.most_timeout_s:
            return Answer.INVALID
        if is_protected(block.address, protected):
            return Answer.PROTECTED
        if block.address in self._blocked:
            return Answer.ALREADY
        return Answer.FULL if self._blocked.is_full else Answer.ADDED

    def _added(self, blocks: Sequence[Block]) -> bool:
        try:
            self._nft(["-f", "-"], _add_script(blocks))
        except NftFailed as exc:
            for block in blocks:
                self._blocked.remove(block.address)
            self._looked_at = None  # whoever removed the table meant it for now: the next request makes it anew
            logger.error("%d addresses could not be blocked: %s", len(blocks), exc)  # noqa: TRY400
            return False
        for block in blocks:
            logger.info("blocks %s for %d s", block.address, block.timeout_s)
        return True

    def _look(self) -> None:
        """Have the table there, and know what it holds, at the first request and when that was long ago."""
        now_s = self._monotonic()
        if self._looked_at is None or now_s - self._looked_at >= _LOOK_S:
            self._nft(["-f", "-"], table_script(drop=self._limits.drop))
            self._blocked = Blocked(self._limits.most)
            for address, left_s in _elements(self._nft(["-j", "list", "table", *TABLE.split()], "")):
                self._blocked.add(address, now_s + left_s)
            self._looked_at = now_s
        self._blocked.forget(now_s)


def table_script(*, drop: bool) -> str:
    """Return what makes the table, or leaves it as it is; the rules of its chain are made anew in the same step."""
    lines = [f"add table {TABLE}"]
    lines += [f"add set {TABLE} {_SETS[4]} {{ type ipv4_addr; flags timeout; }}"]
    lines += [f"add set {TABLE} {_SETS[6]} {{ type ipv6_addr; flags timeout; }}"]
    # Before connection tracking, so that a blocked flood costs little; for what is forwarded, too.
    lines += [f"add chain {TABLE} early {{ type filter hook prerouting priority raw; policy accept; }}"]
    lines += [f"flush chain {TABLE} early"]
    if drop:
        lines += [f"add rule {TABLE} early ip saddr @{_SETS[4]} counter drop"]
        lines += [f"add rule {TABLE} early ip6 saddr @{_SETS[6]} counter drop"]
    return "".join(f"{line}\n" for line in lines)


def _add_script(blocks: Sequence[Block]) -> str:
    lines = []
    for family, name in _SETS.items():
        items = [f"{block.address} timeout {block.timeout_s}s" for block in blocks if block.address.version == family]
        if items:
            lines.append(f"add element {TABLE} {name} {{ {', '.join(items)} }}\n")
    return "".join(lines)


def _elements(listing: str) -> list[tuple[Address, float]]:
    """Return the addresses of our sets with the seconds that are left of each, from ``nft -j list table``.

    Raises:
        NftFailed: It is not what nft prints.
    """
    try:
        sets = [item["set"] for item in json.loads(listing)["nftables"] if "set" in item]
        elements = [each["elem"] for each_set in sets if each_set["name"] in _SETS.values() for each in _of(each_set)]
        return [(ip_address(each["val"]), float(each["expires"])) for each in elements]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
        raise NftFailed(f"its list cannot be read: {exc!r}") from exc


def _of(listed: dict[str, Any]) -> list[Any]:
    found: list[Any] = listed.get("elem", [])
    return found


def own_now() -> tuple[Network, ...]:
    """Return this host's addresses and gateways as they are now."""
    return own_networks(*(_read_proc(name) for name in _PROC_FILES))


def _read_proc(name: str) -> str:
    try:
        return (_PROC / name).read_text()
    except FileNotFoundError:  # a host without IPv6
        return ""


def serve(listener: socket.socket, table: Table, users: Iterable[int]) -> NoReturn:
    """Answer one connection after the other, for ever.

    Args:
        listener: A SOCK_SEQPACKET socket that listens.
        table: Where blocks go.
        users: Who may ask.
    """
    trusted = frozenset(users)
    while True:
        connection, _ = listener.accept()
        with connection:
            user = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if user not in trusted:
                logger.warning("user %d asked and was not answered", user)
                continue
            connection.settimeout(_IDLE_S)
            try:
                _answer(connection, table)
            except (OSError, BadPacket) as exc:
                logger.warning("a connection of user %d was closed: %s", user, exc)


def _answer(connection: socket.socket, table: Table) -> None:
    # One byte more than the greatest packet: the kernel cuts a longer one to the buffer, and it must not pass for one.
    while packet := connection.recv(MAX_PACKET_BYTES + 1):
        connection.send(bytes(table.block(unpacked(packet), own_now())))


def _read_limits(path: Path) -> Limits:
    value = load_settings(path, OPTIONS) if path.exists() else {option.key: option.default for option in OPTIONS}
    return Limits(**value)


def _listener() -> socket.socket | None:
    """Return the socket that systemd passed to this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_FIRST_FD)


def _stop(*_: object) -> None:
    raise _Stop


def _users() -> tuple[int, ...]:
    """Return who may ask: root, and the agent's user where there is one."""
    with suppress(KeyError):
        return (0, pwd.getpwnam(_AGENT_USER).pw_uid)
    return (0,)


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM; return the exit code. The only argument is a settings file, instead of the packaged one."""
    log_to_journal_or_stderr(logging.INFO, "%(levelname)s %(message)s", "vedette-nft-helper")
    listener = _listener()
    if listener is None:
        logger.error("systemd starts this program by its socket: systemctl start vedette-nft-helper.socket")
        return _EXIT_USAGE
    try:
        limits = _read_limits(Path(arguments[0]) if arguments else SETTINGS_FILE)
    except SettingsError as exc:
        logger.error("%s", exc)  # noqa: TRY400 - it is the operator's, with its remedy
        return _EXIT_USAGE
    table = Table(limits)
    signal.signal(signal.SIGTERM, _stop)
    try:
        serve(listener, table, _users())
    except _Stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if limits.flush_on_stop:
            table.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
