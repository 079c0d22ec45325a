"""``vedette-agent doctor``: looks at this appliance from all sides and changes nothing.

Every look has its own time limit and all run at once, so that one that hangs (a name server, a dead mount) costs its
limit and its own answer, never the others. What a look means is decided in :mod:`vedette.agent.domain.doctor`. To add
one: a function here that returns its checks, and a line in ``_LOOKS``, or in ``_REPORTED`` when the running agent's
report has it all.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509

from vedette.agent.adapters.fleet.channels import SERVER_NAME, ControllerUnreachable
from vedette.agent.adapters.fleet.enrolment import controller_time
from vedette.agent.adapters.fleet.identity import Identity, IdentityDamaged, IdentityStore
from vedette.agent.adapters.fleet.tunnel import open_tunnel
from vedette.agent.adapters.host.configure import FOLDER, wanted_limits
from vedette.agent.adapters.host.unit import Systemctl, systemd_runs
from vedette.agent.adapters.storage.reserve import Reserve
from vedette.agent.domain import doctor as judge
from vedette.agent.domain.advice import AdvisedError
from vedette.agent.domain.doctor import Check, Ground, Reach, Reached
from vedette.agent.settings import Settings
from vedette.models.toml_settings import parse_address

logger = logging.getLogger(__name__)

LOOK_LIMIT_S = 4.0
"""Of each look; with the five seconds that the running agent has to answer, all of it ends in ten."""
_PORT_LIMIT_S = 3.0
_GREETING_LIMIT_S = 1.5
_MOST_ADDRESSES = 4
_SETTINGS_FRAME = 4  # RFC 9113 section 6.5; the type is the fourth byte of a frame's head
_MODEL_BYTES = 64 * 2**20  # room that a new version may take beside the spool
_FIREWALL = "Is it up? Does every firewall on the way let TCP to this port through?"
_STA_UNSYNC = 0x40  # adjtimex(2)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at.

    Attributes:
        settings: Of the agent.
        config: Their file; None without one.
        ground: What the agent itself, or its disk, says.
        is_packaged: Whether the packaged unit runs it.
    """

    settings: Settings
    config: Path | None
    ground: Ground
    is_packaged: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """A patient with its identity; ``own`` None when there is none or this user may not read it."""

    patient: Patient
    facts: judge.IdentityFacts
    own: Identity | None

    @property
    def addresses(self) -> tuple[str, ...]:
        settings = self.patient.settings.link.controller
        return (settings or (self.own.addresses if self.own else ()))[:_MOST_ADDRESSES]


def examine(patient: Patient, limit_s: float = LOOK_LIMIT_S) -> list[Check]:
    """Return all checks; never raises for what is looked at, and takes no longer than ``limit_s``."""
    facts, own = _identity(patient)
    known = _Known(patient, facts, own)
    looks = {name: partial(look, known) for name, look in _LOOKS.items()}
    checks = [check for judged in _FIRST for check in judged(patient.ground)]
    checks += judge.check_identity(facts)
    for name, found in _at_once(looks, limit_s).items():
        if isinstance(found, BaseException):
            checks.append(judge.unknown(name, str(found) or type(found).__name__))
        else:
            checks += found
    return checks + [check for judged in _REPORTED for check in judged(patient.ground)]


def _at_once(jobs: Mapping[str, Callable[[], Iterable[T]]], limit_s: float) -> dict[str, list[T] | BaseException]:
    """Return what each job found, or why it found nothing; one that takes longer is left behind with its thread."""
    found: dict[str, list[T] | BaseException] = {}

    def work(name: str, job: Callable[[], Iterable[T]]) -> None:
        try:
            found[name] = list(job())
        except Exception as exc:  # whatever it is, it is what was found
            logger.debug("%s: not found out", name, exc_info=True)
            found[name] = exc

    threads = [threading.Thread(target=work, args=item, name=item[0], daemon=True) for item in jobs.items()]
    ends_at = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))
    seen = dict(found)  # a late one must not come in while this is read
    return {name: seen.get(name, TimeoutError(f"no answer in {limit_s:g} s")) for name in jobs}


# Who it is


def _identity(patient: Patient) -> tuple[judge.IdentityFacts, Identity | None]:
    store = IdentityStore(patient.settings.enrolment_dir)
    try:
        next(patient.settings.enrolment_dir.iterdir(), None)
        own = store.load()
    except FileNotFoundError:
        return judge.IdentityFacts(), None
    except PermissionError:
        return judge.IdentityFacts(is_hidden=True), None
    except IdentityDamaged as exc:
        if isinstance(exc.__cause__, PermissionError):
            return judge.IdentityFacts(is_hidden=True), None
        return judge.IdentityFacts(trouble=f"{exc.what}: {exc.why}", remedy=exc.remedy), None
    if own is None:
        return judge.IdentityFacts(), None
    own = own.reached_at(patient.settings.link.controller)
    return judge.IdentityFacts(
        name=own.name, agent_id=own.agent_id, addresses=own.addresses, exposure=store.exposure() or ""
    ), own


# The service


def _unit(known: _Known) -> Iterable[Check]:
    if not known.patient.is_packaged or not systemd_runs():
        return ()
    shown = Systemctl().shown()
    limits = wanted_limits(known.patient.settings, FOLDER)
    return judge.check_unit(judge.UnitFacts(shown, wanted_bytes=limits.memory_max))


# The clock


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as it is read; the rest is room for what the kernel writes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def is_clock_kept() -> bool | None:
    """Return whether the kernel's clock is kept by a time service; None when it does not say."""
    timex = _Timex()  # modes 0: only read
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    return None if state < 0 else not timex.status & _STA_UNSYNC


def _clock(known: _Known) -> Iterable[Check]:
    ahead_s = known.patient.ground.report.get("process", {}).get("clock_ahead_s")
    if ahead_s is None and known.own is not None and known.own.enrol_address:
        with suppress(AdvisedError):  # the link's own check says why
            ahead_s = _ahead_s(known.own, known.patient.settings)
    return judge.check_clock(judge.ClockFacts(ahead_s, is_clock_kept()))


def _ahead_s(own: Identity, settings: Settings) -> float:
    proxy = settings.link.ways.proxy_to(own.enrol_address)
    asked = time.monotonic()
    told = controller_time(own.enrol_address, own.ca, proxy, _PORT_LIMIT_S)
    return (datetime.now(UTC) - told).total_seconds() - (time.monotonic() - asked) / 2


# The way to the controller


def _targets(known: _Known) -> list[tuple[str, int]]:
    """Return where connections go first: to the proxy where there is one, else to the controller."""
    ways = known.patient.settings.link.ways
    found: dict[tuple[str, int], None] = {}
    for address in known.addresses:
        proxy = ways.proxy_to(address)
        found[(proxy.host, proxy.port) if proxy else parse_address(address)] = None
    return list(found)


def _is_number(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


def _dns(known: _Known) -> Iterable[Check]:
    names = dict.fromkeys(host for host, _ in _targets(known) if not _is_number(host))
    found = _at_once({name: partial(_resolved, name) for name in names}, _PORT_LIMIT_S)
    return judge.check_dns([_first(found[name], judge.NameFacts(name)) for name in names])


def _first(found: list[Any] | BaseException, unanswered: Any) -> Any:
    """Return the one finding of a job; with none, the given one with the reason as its error."""
    return replace(unanswered, error=str(found)) if isinstance(found, BaseException) else found[0]


def _resolved(name: str) -> Iterator[judge.NameFacts]:
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        yield judge.NameFacts(name, error=exc.strerror or str(exc))
        return
    addresses = tuple(dict.fromkeys(str(item[4][0]) for item in found))
    yield judge.NameFacts(name, addresses, time.monotonic() - began)


def _route(known: _Known) -> Iterable[Check]:
    return judge.check_route([route for host, port in _targets(known) for route in _routes(host, port)])


def _routes(host: str, port: int) -> Iterator[judge.RouteFacts]:
    """Ask the kernel which own address it would send from; a UDP socket that is connected sends nothing."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return  # the check of names says so
    for family, kind, _, _, where in found[:1]:
        with socket.socket(family, kind) as probe:
            try:
                probe.connect(where)
            except OSError as exc:
                yield judge.RouteFacts(str(where[0]), error=exc.strerror or str(exc))
            else:
                yield judge.RouteFacts(str(where[0]), source=str(probe.getsockname()[0]))


def _link(known: _Known) -> Iterable[Check]:
    ports = [("agents", address) for address in known.addresses]
    if known.own is not None and known.own.enrol_address:
        ports.append(("enrolment", known.own.enrol_address))
    jobs = {f"{port} {address}": partial(_reach, known, port, address) for port, address in ports}
    found = _at_once(jobs, _PORT_LIMIT_S + _GREETING_LIMIT_S / 2)
    reaches = [
        _first(found[f"{port} {address}"], Reach(port, address, Reached.NOT, remedy=_FIREWALL))
        for port, address in ports
    ]
    return judge.check_link(reaches, known.patient.ground, known.facts, datetime.now(UTC))


def _reach(known: _Known, port: str, address: str) -> Iterator[Reach]:
    proxy = known.patient.settings.link.ways.proxy_to(address)
    reach = Reach(port, address, Reached.NOT, proxy=proxy.address if proxy else "")
    began = time.monotonic()
    try:
        raw = open_tunnel(address, proxy, _PORT_LIMIT_S)
    except ControllerUnreachable as exc:
        yield replace(reach, error=exc.why, remedy=_FIREWALL)
        return
    except AdvisedError as exc:  # the proxy's
        yield replace(reach, error=f"{exc.what}: {exc.why}", remedy=exc.remedy)
        return
    reach = replace(reach, rtt_ms=(time.monotonic() - began) * 1000)
    with raw:
        if known.own is None:
            yield replace(reach, reached=Reached.UNSURE)
        else:
            yield _greeted(known.own, known.patient.settings.enrolment_dir, raw, reach)


def _greeted(own: Identity, folder: Path, raw: socket.socket, reach: Reach) -> Reach:
    """Return how a port greets. TLS 1.3 ends before the server has judged our certificate; then HTTP/2 begins."""
    remedy = "Look for a proxy that opens TLS or a captive portal; after a move to another controller, enrol again"
    try:
        context = _context(own, folder if reach.port == "agents" else None)
        raw.settimeout(_GREETING_LIMIT_S)
        secured = context.wrap_socket(raw, server_hostname=SERVER_NAME)
    except (ssl.SSLError, OSError) as exc:
        why = getattr(exc, "verify_message", "") or getattr(exc, "reason", "") or str(exc)
        return replace(
            reach, reached=Reached.NO_TLS, error=f"it does not speak as the controller: {why}", remedy=remedy
        )
    with secured:
        reach = replace(reach, tls=f"TLS {(secured.version() or '').removeprefix('TLSv')}")
        if reach.port != "agents":
            return replace(reach, reached=Reached.FULLY)
        try:
            head = secured.recv(9)
        except (ssl.SSLError, OSError) as exc:
            head, why = b"", str(exc)
        else:
            why = "it closed the connection" if not head else "it does not speak HTTP/2"
    if len(head) > 3 and head[3] == _SETTINGS_FRAME:
        return replace(reach, reached=Reached.FULLY, certificate_until=_until(own))
    why = f"it does not take this agent's certificate: {why}"
    return replace(
        reach, reached=Reached.REFUSED, error=why, remedy="At the controller: vedette agent ls; or enrol again"
    )


def _context(own: Identity, folder: Path | None) -> ssl.SSLContext:
    """Return a context that believes the pinned CA alone; with a folder it shows the certificate that is there."""
    context = ssl.create_default_context(cadata=own.ca.decode())
    context.set_alpn_protocols(["h2"])
    if folder is not None:
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


def _until(own: Identity) -> datetime:
    return x509.load_pem_x509_certificate(own.certificate).not_valid_after_utc


# The disk


def _disk(known: _Known) -> Iterable[Check]:
    settings = known.patient.settings
    folders = {settings.state_dir: "state"}
    if settings.sink.path is not None:
        folders.setdefault(settings.sink.path.parent, "verdicts")
    devices: dict[int, judge.DiskFacts] = {}
    for folder, what in folders.items():
        there = _nearest(folder)
        wanted = settings.telemetry.spool_bytes + _MODEL_BYTES if what == "state" else 0
        devices.setdefault(there.stat().st_dev, _disk_facts(there, what, wanted))
    state = devices[_nearest(settings.state_dir).stat().st_dev]
    devices[_nearest(settings.state_dir).stat().st_dev] = replace(state, has_reserve=_has_reserve(settings))
    return judge.check_disk(list(devices.values()))


def _nearest(folder: Path) -> Path:
    """Return the folder, or while it is not there yet the one it would be made in."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _disk_facts(folder: Path, what: str, wanted_bytes: int) -> judge.DiskFacts:
    disk = os.statvfs(folder)
    return judge.DiskFacts(
        path=str(folder),
        what=what,
        free_bytes=disk.f_bavail * disk.f_frsize,
        total_bytes=disk.f_blocks * disk.f_frsize,
        free_inodes=disk.f_favail if disk.f_files else None,  # btrfs and others count none
        wanted_bytes=wanted_bytes,
        is_read_only=bool(disk.f_flag & os.ST_RDONLY),
    )


def _has_reserve(settings: Settings) -> bool:
    database = settings.state_dir / "state.db"
    return not database.exists() or Reserve(database).is_there


def _files(known: _Known) -> Iterable[Check]:
    settings = known.patient.settings
    hidden: list[str] = []
    wrong = list(_wrong_verdicts(settings)) + list(_exposed_password(known.patient))
    looked_at = 1
    try:
        owner = settings.state_dir.stat().st_uid
        entries = [settings.state_dir, *_below(settings.state_dir)]
    except FileNotFoundError:
        entries, owner = [], os.geteuid()
    except PermissionError:
        hidden.append(str(settings.state_dir))
        entries, owner = [], os.geteuid()
    looked_at += len(entries)
    if entries and os.geteuid() not in (0, owner):
        hidden.append(str(settings.state_dir))
    else:
        wrong += [facts for path in entries for facts in _wrong_owner(path, owner)]
    return judge.check_files(looked_at, hidden, wrong)


def _below(folder: Path) -> Iterator[Path]:
    """Return what the agent made itself; not each of its models."""
    yield from folder.iterdir()
    enrolment = folder / "enrolment"
    if enrolment.is_dir():
        yield from enrolment.iterdir()


def _wrong_owner(path: Path, owner: int) -> Iterator[judge.FileFacts]:
    with suppress(FileNotFoundError):  # gone meanwhile: files are replaced under a running agent
        found = path.lstat().st_uid
        if found != owner:
            problem = f"belongs to user {found}, the agent is user {owner}"
            yield judge.FileFacts(str(path), problem, f"chown {owner} {path}", is_fatal=True)
        elif os.geteuid() == owner and not os.access(path, os.R_OK | os.W_OK) and not path.is_symlink():
            yield judge.FileFacts(str(path), "may not be read and written by its owner", f"chmod u+rwX {path}", True)


def _wrong_verdicts(settings: Settings) -> Iterator[judge.FileFacts]:
    path = settings.sink.path
    if path is None:
        return
    target = path if path.exists() else _nearest(path.parent)
    if not os.access(target, os.W_OK):
        yield judge.FileFacts(
            str(target),
            f"may not be written by user {os.geteuid()}",
            "Verdicts go there: change its owner or sink.json.path",
            is_fatal=not _is_another(settings),
        )


def _is_another(settings: Settings) -> bool:
    """Whether the agent is another user than who asks, who then need not be able to write its files."""
    with suppress(OSError):
        return settings.state_dir.stat().st_uid != os.geteuid()
    return True


def _exposed_password(patient: Patient) -> Iterator[judge.FileFacts]:
    proxy, config = patient.settings.link.ways.proxy, patient.config
    if proxy is not None and proxy.authorization and config is not None and config.stat().st_mode & 0o004:
        yield judge.FileFacts(
            str(config), "holds the proxy's password and everybody may read it", f"chmod o-r {config}"
        )


# Runtime and GPU


def _runtime(known: _Known) -> Iterable[Check]:
    command = [sys.executable, "-P", "-s", "-m", "vedette.agent.adapters.host.runtime_probe"]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=LOOK_LIMIT_S - 0.5,
        check=False,
        cwd="/",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        why = f"its process ended with {done.returncode}: {done.stderr.decode('utf-8', 'replace').strip()[-200:]}"
        return judge.check_runtime(judge.RuntimeFacts(error=why))
    return judge.check_runtime(judge.RuntimeFacts(**{key: _frozen(item) for key, item in found.items()}))


def _frozen(item: str | Sequence[str]) -> Any:
    return item if isinstance(item, str) else tuple(item)


_FIRST: tuple[Callable[[Ground], Iterable[Check]], ...] = (judge.check_agent,)
_LOOKS: Mapping[str, Callable[[_Known], Iterable[Check]]] = {
    "unit": _unit,
    "clock": _clock,
    "dns": _dns,
    "route": _route,
    "link": _link,
    "disk": _disk,
    "files": _files,
    "runtime": _runtime,
}
_REPORTED: tuple[Callable[[Ground], Iterable[Check]], ...] = (
    judge.check_flows,
    judge.check_sources,
    judge.check_models,
    judge.check_sinks,
    judge.check_spool,
    judge.check_pressure,
    judge.check_conditions,
)
