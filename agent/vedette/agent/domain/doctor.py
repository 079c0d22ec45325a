"""What an appliance's state means, and what to do about it: facts in, checks out.

Rules: a check is fine, worth a look (the agent does its job, and something is not as it should be), or a failure (it
does not do its job, or will not for long). Whatever is not fine says what to do. What could not be seen is said, and
is never called fine. Nothing here asks anybody: :mod:`vedette.agent.adapters.telling.doctor` gathers the facts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from vedette.agent.domain.report import Report
from vedette.agent.domain.words import ago, milliseconds, plural, size, span

CLOCK_WARN_S = 2.0
SILENT_WARN_S = 120.0
"""Exporters send at least once a minute while there is traffic; two without a packet are worth a look."""
SILENT_FAIL_S = 600.0
CERTIFICATE_WARN_DAYS = 14
_ENDLESS_YEAR = 9999
_LEAST_FREE_BYTES = 8 * 2**20
_LEAST_INODES = 1000
_MOST_NAMED = 3


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


_ORDER = (Level.OK, Level.WARN, Level.FAIL)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``remedy`` is "" when there is nothing to do."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def _ok(name: str, text: str) -> Check:
    return Check(name, Level.OK, text)


def _warn(name: str, text: str, remedy: str) -> Check:
    return Check(name, Level.WARN, text, remedy)


def _fail(name: str, text: str, remedy: str) -> Check:
    return Check(name, Level.FAIL, text, remedy)


def unknown(name: str, why: str) -> Check:
    """Return the check of something that could not be found out."""
    return _warn(name, f"not known: {why}", "run it again, as root; --verbose says more")


# The agent


class Sight(StrEnum):
    """What was seen of the agent."""

    RUNNING = "running"
    STOPPED = "stopped"
    HIDDEN = "hidden"  # it may run; its socket is not for this user
    MUTE = "mute"  # it holds its socket and says nothing of use
    OTHER = "other"  # one of another version runs: what it says is not judged by the rules of this one


@dataclass(frozen=True, slots=True)
class Ground:
    """What every check stands on. ``report`` is the running agent's own, or what its disk says."""

    sight: Sight
    report: Report = field(default_factory=dict)
    trouble: str = ""
    start: str = "vedette-agent run"

    @property
    def is_running(self) -> bool:
        """Whether the report is of a running agent."""
        return self.sight is Sight.RUNNING


def check_agent(ground: Ground) -> Iterator[Check]:
    """Judge whether it runs."""
    match ground.sight:
        case Sight.RUNNING:
            process = ground.report["process"]
            text = f"vedette-agent {ground.report['version']}, up {span(process['up_s'])}, process {process['pid']}"
            yield _ok("agent", text)
        case Sight.STOPPED:
            told = ground.trouble or "models and identity are read from its disk"
            yield _fail("agent", f"not running; {told}", f"Start it: {ground.start}")
        case Sight.HIDDEN:
            yield _warn("agent", f"not seen: {ground.trouble}", "sudo vedette-agent doctor sees it all")
        case Sight.MUTE:
            remedy = "Look at: journalctl -u vedette-agent -n 50. Then: systemctl restart vedette-agent"
            yield _fail("agent", f"it runs and cannot say how it stands: {ground.trouble}", remedy)
        case Sight.OTHER:
            remedy = "Finish the upgrade: dpkg --configure -a && systemctl restart vedette-agent. Then run this again"
            yield _fail("agent", ground.trouble, remedy)


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """The packaged unit, as systemd shows it, and the memory that the settings ask for."""

    shown: Mapping[str, str]
    wanted_bytes: int = 0


def check_unit(facts: UnitFacts | None) -> Iterator[Check]:
    """Judge the service."""
    if facts is None:
        return
    shown, name = facts.shown, "unit"
    state = shown.get("ActiveState", "")
    if state != "active":
        why = f"{state or 'unknown'} ({shown.get('SubState', '?')}, {shown.get('Result', '?')})"
        remedy = "journalctl -u vedette-agent -n 30 says why; systemctl restart vedette-agent waits no more"
        yield _fail(name, f"vedette-agent.service is {why}", remedy)
    else:
        yield _ok(name, f"active, {_limits(shown)}, {plural(_number(shown.get('NRestarts', '')), 'restart')}")
    if shown.get("UnitFileState") == "disabled":
        yield _warn(name, "it does not start when the appliance does", "systemctl enable vedette-agent")
    if shown.get("NeedDaemonReload") == "yes":
        remedy = "systemctl daemon-reload && systemctl restart vedette-agent"
        yield _warn(name, "its files changed since systemd read them", remedy)
    if 0 < _number(shown.get("MemoryMax", "")) < facts.wanted_bytes:
        text = (
            f"its memory limit is {size(_number(shown['MemoryMax']))}, the settings ask for {size(facts.wanted_bytes)}"
        )
        yield _warn(name, text, "sudo vedette-agent configure")


def _limits(shown: Mapping[str, str]) -> str:
    used, most = _number(shown.get("MemoryCurrent", "")), _number(shown.get("MemoryMax", ""))
    told = f"memory {size(used)}" if used else "memory not counted"
    return f"{told} of {size(most)}" if most else f"{told}, no limit"


def _number(text: str) -> int:
    """Return a count of systemd's; 0 for "infinity", "[not set]" and its largest number, which means neither."""
    return int(text) if text.isdecimal() and int(text) < 2**63 else 0


# Who it is


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """The enrolment on disk: ``name`` "" is none, ``trouble`` why it cannot be used, ``exposure`` who can read it."""

    is_hidden: bool = False
    name: str = ""
    agent_id: str = ""
    addresses: tuple[str, ...] = ()
    trouble: str = ""
    remedy: str = ""
    exposure: str = ""


def check_identity(facts: IdentityFacts) -> Iterator[Check]:
    """Judge the enrolment."""
    name = "enrolment"
    if facts.is_hidden:
        yield _warn(name, "not seen: its folder is for the agent's own user", "sudo vedette-agent doctor sees it all")
    elif facts.trouble:
        yield _fail(name, facts.trouble, facts.remedy)
    elif not facts.name:
        text = "this appliance belongs to no controller; what it has, it serves"
        yield _warn(name, text, "Print a token at the controller (vedette token create), then: vedette-agent enroll")
    else:
        yield _ok(name, f"{facts.name} ({facts.agent_id}), controller at {', '.join(facts.addresses)}")
    if facts.exposure:
        yield _warn(name, facts.exposure, "")


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """The clock: ahead of the controller (None: not known), and whether the kernel says that something keeps it."""

    ahead_s: float | None
    is_kept: bool | None


def check_clock(facts: ClockFacts) -> Iterator[Check]:
    """Judge the clock."""
    kept = {True: "kept by a time service", False: "kept by no time service", None: "time service not known"}
    ahead = facts.ahead_s
    if ahead is not None and abs(ahead) > CLOCK_WARN_S:
        side = "ahead of" if ahead > 0 else "behind"
        remedy = "Verdict times are corrected; set up chrony, here or at the controller"
        yield _warn("clock", f"{span(abs(ahead))} {side} the controller, {kept[facts.is_kept]}", remedy)
        return
    told = "not compared with a controller" if ahead is None else f"{abs(ahead):.2g} s off the controller"
    if facts.is_kept is False:
        yield _warn("clock", f"{told}, {kept[False]}", "Set up chrony or systemd-timesyncd")
    else:
        yield _ok("clock", f"{told}, {kept[facts.is_kept]}")


# The way to the controller


@dataclass(frozen=True, slots=True)
class NameFacts:
    """A host name and what it resolves to; ``error`` why it does not."""

    name: str
    addresses: tuple[str, ...] = ()
    took_s: float = 0.0
    error: str = ""


def check_dns(names: Sequence[NameFacts]) -> Iterator[Check]:
    """Judge names; addresses as numbers need none."""
    for facts in names:
        if facts.error:
            remedy = f"Look at /etc/resolv.conf; try: getent ahosts {facts.name}"
            yield _fail("dns", f"{facts.name} cannot be resolved: {facts.error}", remedy)
        else:
            found = ", ".join(facts.addresses[:_MOST_NAMED])
            yield _ok("dns", f"{facts.name} is {found} ({milliseconds(facts.took_s * 1000)})")


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """Which own address leads to another; ``error`` why none does."""

    target: str
    source: str = ""
    error: str = ""


def check_route(routes: Sequence[RouteFacts]) -> Iterator[Check]:
    """Judge routes."""
    if good := [f"{route.target} from {route.source}" for route in routes if not route.error]:
        yield _ok("route", ", ".join(good[:_MOST_NAMED]))
    for route in routes:
        if route.error:
            remedy = f"ip route get {route.target}; is the interface up?"
            judged = _warn if good else _fail
            yield judged("route", f"none to {route.target}: {route.error}", remedy)


class Reached(StrEnum):
    """How far a look at a controller's port came."""

    NOT = "not"  # no connection
    NO_TLS = "no-tls"  # something else answers, or its certificate is not the controller's
    REFUSED = "refused"  # it does not take this agent's certificate
    UNSURE = "unsure"  # TLS without this agent's certificate, which this user may not read
    FULLY = "fully"


@dataclass(frozen=True, slots=True)
class Reach:
    """A look at one port of a controller. ``proxy`` is on the way, "" for none."""

    port: str  # "agents" or "enrolment"
    address: str
    reached: Reached
    error: str = ""
    remedy: str = ""
    proxy: str = ""
    rtt_ms: float = 0.0
    tls: str = ""
    certificate_until: datetime | None = None


def check_link(reaches: Sequence[Reach], ground: Ground, identity: IdentityFacts, today: datetime) -> Iterator[Check]:
    """Judge how the controller is reached, from here and by the agent itself."""
    if not reaches:
        return
    link = ground.report.get("link", {}) if ground.is_running else {}
    agents = [reach for reach in reaches if reach.port == "agents"]
    is_reached = any(reach.reached in (Reached.FULLY, Reached.UNSURE) for reach in agents)
    for reach in reaches:
        yield _reach(reach, is_reached or link.get("state") == "connected", today)
    if is_reached and link and identity.name and link["state"] != "connected":
        yield _not_connected(ground)


def _reach(reach: Reach, has_other: bool, today: datetime) -> Check:
    where = reach.address + (f" by proxy {reach.proxy}" if reach.proxy else "")
    name = "link" if reach.port == "agents" else "enrol port"
    if reach.reached not in (Reached.FULLY, Reached.UNSURE):
        judged = _warn if has_other or reach.port != "agents" else _fail
        return judged(name, f"{where}: {reach.error}", reach.remedy)
    text = f"{where}, {reach.tls or 'TCP only, certificate not seen'}, {milliseconds(reach.rtt_ms)}"
    until = reach.certificate_until
    if until is None:
        return _ok(name, text)
    if until.year >= _ENDLESS_YEAR:
        return _ok(name, f"{text}; certificate without an end")
    text = f"{text}; certificate until {until:%-d %b %Y}"
    if (until - today).days < CERTIFICATE_WARN_DAYS:
        return _warn(name, text, "It ends soon: enrol again with a new token")
    return _ok(name, text)


_LINK_CODES = (
    "controller-unreachable",
    "controller-certificate-wrong",
    "controller-refused",
    "proxy-unreachable",
    "proxy-refused",
    "message-too-large",
    "protocol-broken",
)


def _not_connected(ground: Ground) -> Check:
    """Return why an agent has no session though its controller can be reached from here."""
    said = [held["text"] for held in ground.report["conditions"] if held["code"] in _LINK_CODES]
    text = f"the agent is not connected ({ground.report['link']['state']})"
    if said:
        return _fail("link", f"{text}: {said[0]}", "")
    return _warn("link", text, "It tries again by itself; at once: systemctl restart vedette-agent")


# The disk


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A file system that the agent writes to; ``wanted_bytes`` is what it may still come to need."""

    path: str
    what: str
    free_bytes: int = 0
    total_bytes: int = 0
    free_inodes: int | None = None  # None: it counts none
    wanted_bytes: int = 0
    is_read_only: bool = False
    has_reserve: bool = True


def check_disk(disks: Sequence[DiskFacts]) -> Iterator[Check]:
    """Judge space and whether there can be written."""
    for disk in disks:
        yield _disk(disk)


def _disk(disk: DiskFacts) -> Check:
    where = f"{disk.path} ({disk.what})"
    if disk.is_read_only:
        return _fail("disk", f"{where} takes no writes", "See dmesg; mount it writable or replace the disk")
    if disk.free_inodes is not None and disk.free_inodes < _LEAST_INODES:
        judged = _warn if disk.free_inodes else _fail
        return judged("disk", f"{where}: {plural(disk.free_inodes, 'inode')} left", "Delete small files: df -i")
    return _space(disk, f"{where}: {size(disk.free_bytes)} free of {size(disk.total_bytes)}")


def _space(disk: DiskFacts, free: str) -> Check:
    if disk.free_bytes < _LEAST_FREE_BYTES:
        remedy = f"Make room: du -xh {disk.path} | sort -h"
        return _fail("disk", f"{free}, it needs {size(_LEAST_FREE_BYTES)}", remedy)
    if disk.free_bytes < disk.wanted_bytes:
        remedy = "Make room, or lower telemetry.spool"
        return _warn("disk", f"{free}, it may come to need {size(disk.wanted_bytes)}", remedy)
    if not disk.has_reserve:
        return _warn("disk", f"{free}; it was full, its reserve is given up", "It is taken again at the next start")
    return _ok("disk", free)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file, folder or socket that is not as the agent needs it."""

    path: str
    problem: str
    remedy: str
    is_fatal: bool = False


def check_files(looked_at: int, hidden: Sequence[str], wrong: Sequence[FileFacts]) -> Iterator[Check]:
    """Judge permissions and owners."""
    for facts in wrong:
        yield Check(
            "files", Level.FAIL if facts.is_fatal else Level.WARN, f"{facts.path} {facts.problem}", facts.remedy
        )
    if hidden:
        text = f"not seen: {', '.join(hidden[:_MOST_NAMED])}"
        yield _warn("files", text, "sudo vedette-agent doctor sees it all")
    elif not wrong:
        yield _ok("files", f"{plural(looked_at, 'path')} with the right owners and permissions")


# Flows


def check_flows(ground: Ground) -> Iterator[Check]:
    """Judge what is heard on the flow port."""
    if not ground.is_running:
        return
    flows, up_s = ground.report["flows"], ground.report["process"]["up_s"]
    if flows.get("listen") is None:
        yield _ok("flows", "no flow port: source.netflow.listen is off")
        return
    yield _silence(flows, up_s)
    yield from _loss(flows)
    for exporter in flows["exporters"]:
        yield from _exporter(exporter)


def _silence(flows: Mapping[str, Any], up_s: float) -> Check:
    host, _, port = flows["listen"].rpartition(":")
    heard = [exporter for exporter in flows["exporters"] if exporter["heard_s_ago"] is not None]
    last = min(heard, key=lambda exporter: exporter["heard_s_ago"], default=None)
    silent_s = min(up_s, last["heard_s_ago"]) if last else up_s
    if last and silent_s < SILENT_WARN_S:
        many = plural(flows["exporters_known"], "exporter")
        return _ok("flows", f"{many} on UDP {port}, last packet {ago(silent_s)} from {last['address']}")
    text = f"no packet on UDP {port} for {span(silent_s)}"
    text += f". Last exporter {last['address']}" if last else " since the start"
    remedy = f"Firewall? Try: tcpdump -ni any udp port {port}"
    if host in ("127.0.0.1", "[::1]"):
        remedy = f"It listens on {host} only: set source.netflow.listen"
    return _fail("flows", text, remedy) if silent_s >= SILENT_FAIL_S else _warn("flows", text, remedy)


def _loss(flows: Mapping[str, Any]) -> Iterator[Check]:
    asked, granted = flows["buffer_asked_bytes"], flows["buffer_granted_bytes"]
    widen = f"sysctl -w net.core.rmem_max={asked}, and in /etc/sysctl.d; then restart the agent"
    if flows["dropped_kernel"]:
        text = f"the kernel dropped {plural(flows['dropped_kernel'], 'packet')} before they were read"
        remedy = widen if granted < asked else "Raise source.netflow.receive_buffer"
        yield _warn("flows", text, remedy)
    elif 0 < granted < asked:
        yield _warn("flows", f"the socket's buffer is {size(granted)}, {size(asked)} were asked for", widen)
    if flows["dropped_queue"]:
        text = f"{plural(flows['dropped_queue'], 'packet')} found the queue full: decoding was too slow"
        yield _warn("flows", text, "Give it more of a processor (budget.cpu_percent), or sample at the exporter")


def _exporter(exporter: Mapping[str, Any]) -> Iterator[Check]:
    if missing := exporter["templates_missing"]:
        ids = ", ".join(map(str, missing[:_MOST_NAMED]))
        text = f"{exporter['address']} sends data of template {ids}, which it has not described"
        yield _warn("flows", text, "Wait for its next template; set its template refresh to a minute")
    if abs(exporter["clock_ahead_s"]) > SILENT_WARN_S and exporter["heard_s_ago"] is not None:
        side = "ahead of" if exporter["clock_ahead_s"] > 0 else "behind"
        text = f"the clock of {exporter['address']} is {span(abs(exporter['clock_ahead_s']))} {side} this one"
        yield _warn("flows", text, "Flow times are the exporter's: set up NTP there")


# Models


def check_models(ground: Ground) -> Iterator[Check]:
    """Judge what serves, and what is not tried again."""
    if ground.sight not in (Sight.RUNNING, Sight.STOPPED):
        return
    slots = ground.report["slots"]
    if not slots:
        remedy = "At the controller: vedette rollout start MODEL:VERSION --to SELECTOR"
        yield _warn("model", "none yet: flows are counted and not scored", remedy)
    for slot in slots.values():
        yield _slot(slot, ground.is_running)
    for build, reason in list(ground.report["quarantine"].items())[:_MOST_NAMED]:
        text = f"build {build.removeprefix('sha256:')[:12]} is not tried again: {reason}"
        yield _warn("model", text, "Register another version; this digest stays refused here")


def _slot(slot: Mapping[str, Any], is_running: bool) -> Check:
    active = slot["active"]
    if active is None:
        why = slot["reason"] or slot["state"]
        judged = _warn if slot["state"] in ("downloading", "verified", "staged", "tested") else _fail
        return judged("model", f"slot {slot['slot']} serves nothing: {why}", "docs/serving.md lists the reasons")
    what = f"{active['model']}:{active['version']}"
    if not is_running:
        return _ok("model", f"{what} would serve in slot {slot['slot']}")
    if not slot.get("workers"):
        text = f"{what} has no worker now: it is being replaced"
        return _warn("model", text, "If it lasts: journalctl -u vedette-agent -p warning")
    text = f"{what}, {_tested(slot)}, {_workers(slot)}"
    if slot["worker_restarts"]:
        remedy = f"journalctl -u vedette-agent VEDETTE_SLOT={slot['slot']}"
        return _warn("model", f"{text}, replaced {plural(slot['worker_restarts'], 'time')}", remedy)
    if slot["reason"]:
        return _warn("model", f"{text}; the newest candidate failed: {slot['reason']}", "docs/serving.md lists why")
    return _ok("model", text)


def _workers(slot: Mapping[str, Any]) -> str:
    used = max(worker["memory_bytes"] for worker in slot["workers"])
    count = len(slot["workers"])
    what = "worker" if count == 1 else f"{count} workers, each up to"
    return f"{what} {size(used)} of {size(slot['memory_budget_bytes'])}"


def _tested(slot: Mapping[str, Any]) -> str:
    age_s = slot.get("self_test_s_ago")
    return "not self-tested in this run" if age_s is None else f"self-test passed {ago(age_s)}"


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What a process of its own found: onnxruntime's version ("" with ``error``) and providers; the GPUs."""

    version: str = ""
    providers: tuple[str, ...] = ()
    error: str = ""
    gpus: tuple[str, ...] = ()
    gpu_nodes: tuple[str, ...] = ()
    closed_nodes: tuple[str, ...] = ()  # that this user may not open


def check_runtime(facts: RuntimeFacts) -> Iterator[Check]:
    """Judge the runtime and the GPU."""
    if facts.version:
        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in facts.providers)
        yield _ok("runtime", f"onnxruntime {facts.version} ({providers})")
    else:
        yield _fail("runtime", f"onnxruntime cannot be loaded: {facts.error}", "Install the agent's package again")
    if facts.gpus:
        yield _ok("gpu", ", ".join(facts.gpus[:_MOST_NAMED]))
    elif facts.closed_nodes:
        text = f"{facts.closed_nodes[0]} may not be opened by this user"
        yield _warn("gpu", text, "sudo vedette-agent configure --gpu; or nothing, if the GPU is not for the agent")
    elif facts.gpu_nodes:
        text = f"{facts.gpu_nodes[0]} is there and its driver does not answer"
        yield _warn("gpu", text, "nvidia-smi says why; a kernel update may want the driver built again")


# What goes out


def check_sinks(ground: Ground) -> Iterator[Check]:
    """Judge where verdicts go."""
    for sink in ground.report.get("sinks", ()):
        lost = sum(sink["lost"].values())
        text = f"{sink['sink']}: {plural(sink['written'], 'verdict')} written" + (f", {lost:,} lost" if lost else "")
        if sink["problem"]:
            yield _fail("sink", f"{text}; {sink['problem']}", "")
        elif lost:
            places = ", ".join(f"{count:,} {where}" for where, count in sink["lost"].items() if count)
            yield _warn("sink", f"{text} ({places})", "It takes them more slowly than they come, or was away")
        else:
            yield _ok("sink", text)


def check_sources(ground: Ground) -> Iterator[Check]:
    """Judge the files that flows are read from."""
    for source in ground.report.get("sources", ()):
        text = f"{source['source']} {source['path']}: {plural(source['records'], 'flow')} read"
        if source["problem"]:
            yield _fail("source", f"{text}; {source['problem']}", "Check the path and its permissions")
        elif bad := sum(source["bad"].values()):
            text = f"{text}, {plural(bad, 'line')} unreadable"
            yield _warn("source", text, "docs/sources.md says what is read; is it another file's format?")
        else:
            behind = f", {size(source['behind_bytes'])} behind" if source["behind_bytes"] else ""
            yield _ok("source", text + behind)


def check_spool(ground: Ground) -> Iterator[Check]:
    """Judge telemetry that waits."""
    spool = ground.report.get("spool")
    if not spool:
        return
    text = f"{size(spool['waiting_bytes'])} of telemetry wait, of {size(spool['budget_bytes'])}"
    if spool["oldest_s_ago"] is not None:
        text = f"{text}, the oldest of {ago(spool['oldest_s_ago'])}"
    if spool["batches_dropped"]:
        text = f"{text}; {plural(spool['batches_dropped'], 'batch', 'batches')} given up since the start"
        yield _warn("spool", text, "Mend the link, or raise telemetry.spool")
    elif 2 * spool["waiting_bytes"] > spool["budget_bytes"]:
        yield _warn("spool", text, "Mend the link before it is full, or raise telemetry.spool")
    else:
        yield _ok("spool", text)


def check_pressure(ground: Ground) -> Iterator[Check]:
    """Judge what is given up."""
    pressure = ground.report.get("pressure")
    if not pressure:
        return
    level, remedy = pressure["level"], "Raise budget.cpu_percent or budget.memory, or relieve the host"
    if level == "none":
        yield _ok("pressure", "nothing is given up")
    elif level == "flows":
        yield _warn("pressure", f"only {pressure['flow_share']:.0%} of the conversations are scored", remedy)
    else:
        given_up = {"shadow": "shadow runs", "profiles": "detail of profiles", "waiting": "promptness"}
        yield _warn("pressure", f"given up: {given_up.get(level, level)}", remedy)


_TOLD_ELSEWHERE = frozenset(
    {*_LINK_CODES, "not-enrolled", "identity-exposed", "identity-damaged", "clock-wrong", "under-pressure"}
)


def check_conditions(ground: Ground) -> Iterator[Check]:
    """Judge what else the agent itself says that holds."""
    for held in ground.report.get("conditions", ()):
        if held["code"] in _TOLD_ELSEWHERE or held["severity"] == "info":
            continue
        level = Level.FAIL if held["severity"] == "error" else Level.WARN
        yield Check(held["code"], level, held["text"], f"Holds since {held['since']}; see docs/agent.md, Conditions")


# All of it


def sorted_checks(checks: Iterable[Check]) -> list[Check]:
    """Return checks with what must be acted on last, else in the order they came."""
    return sorted(checks, key=lambda check: _ORDER.index(check.level))


def is_failed(checks: Iterable[Check]) -> bool:
    """Return whether any check failed."""
    return any(check.level is Level.FAIL for check in checks)


_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31;1"}
_LEAST_NAME, _LEAST_WIDTH = 13, 40


def doctor_text(checks: Sequence[Check], columns: int, *, is_coloured: bool = False) -> str:
    """Return checks for a terminal: one a paragraph, wrapped beside its name, and a line that sums up."""
    width = max(_LEAST_NAME, *(len(check.name) for check in checks))
    lines = [line for check in sorted_checks(checks) for line in _paragraph(check, columns, width, is_coloured)]
    return "\n".join([*lines, _sum_up(checks)]) + "\n"


def _paragraph(check: Check, columns: int, width: int, is_coloured: bool) -> list[str]:
    indent = width + len("  FAIL  ")
    text = f"{check.text.rstrip('.')}. {check.remedy}" if check.remedy else check.text
    rest = textwrap.wrap(
        text,
        max(columns, _LEAST_WIDTH) - indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    head = f"{check.level:<5}"
    head = f"\x1b[{_COLOURS[check.level]}m{head}\x1b[0m" if is_coloured else head
    first = f" {head} {check.name:<{width}} {rest[0] if rest else ''}".rstrip()
    return [first, *(" " * indent + line for line in rest[1:])]


def _sum_up(checks: Sequence[Check]) -> str:
    counts = {level: sum(check.level is level for check in checks) for level in Level}
    if not counts[Level.FAIL] and not counts[Level.WARN]:
        return f"All is well: {plural(counts[Level.OK], 'check')}."
    parts = [f"{counts[Level.FAIL]} failed"] if counts[Level.FAIL] else []
    parts += [f"{counts[Level.WARN]} to look at"] if counts[Level.WARN] else []
    return f"{', '.join(parts)}, {counts[Level.OK]} fine."


def doctor_report(checks: Sequence[Check]) -> dict[str, Any]:
    """Return checks as ``doctor --output json`` prints them."""
    return {
        "healthy": not is_failed(checks),
        "checks": [
            {"name": check.name, "level": check.level.lower(), "text": check.text, "remedy": check.remedy}
            for check in sorted_checks(checks)
        ],
    }
