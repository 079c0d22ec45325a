"""What an operator may set: ``/etc/vedette/agent.toml``, one table of keys that also writes the help and the docs.

Read once, by ``app`` and ``cli``; importing this module reads nothing. What ``enroll`` learns is kept in
``state_dir/enrolment`` and never written here.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vedette.agent.domain.blocking import MAX_TIMEOUT_S, Network, parse_networks
from vedette.agent.domain.proxy import STRAIGHT, Ways, parse_direct, parse_proxy
from vedette.agent.domain.syslog import FACILITIES, Target, parse_target
from vedette.agent.domain.webhook import Endpoint, parse_endpoint
from vedette.models import toml_settings as kinds
from vedette.models.toml_settings import Kind, Option, SettingsError, load_settings, parse_address

DEFAULT_FILE = Path("/etc/vedette/agent.toml")
PACKAGED_STATE_DIR = Path("/var/lib/vedette-agent")
RUN_DIR = Path("/run/vedette-agent")
MIB = 2**20


def _parse_no_proxy(raw: Any) -> tuple[str, ...]:
    return parse_direct(kinds.texts().parse(raw))


def _target_or_off() -> Kind:
    return Kind('udp://HOST:514, tcp://HOST:514 or tls://HOST:6514; "" is off', lambda raw: _checked(raw, parse_target))


def _networks() -> Kind:
    several = kinds.texts(most=1024)

    def parse(raw: Any) -> tuple[str, ...]:
        texts: tuple[str, ...] = several.parse(raw)
        parse_networks(texts)
        return texts

    return Kind("list of networks", parse)


def _url_or_off() -> Kind:
    return Kind('URL, "" is off', lambda raw: _checked(raw, parse_endpoint))


def _checked(raw: Any, parse: Callable[[str], object]) -> str:
    words: str = kinds.text().parse(raw)
    if words:
        parse(words)
    return words


_CPU_LIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")


def cpus_of(text: str) -> tuple[int, ...]:
    """Return the processors of a list such as ``0,4-7``, ascending; none for ``""``.

    Raises:
        WrongValue: It is no such list, or a range runs backwards.

    Source: cpuset(7), "List format".
    """
    if not text:
        return ()
    if _CPU_LIST.fullmatch(text) is None:
        raise kinds.WrongValue(f'is {text[:80]!r}, expected processors such as "2-3" or "0,4-7"')
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise kinds.WrongValue(f"is {text[:80]!r}, the range {part} runs backwards")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def _cpus() -> Kind:
    def parse(raw: Any) -> str:
        if not isinstance(raw, str):
            raise kinds.WrongValue(f'is {raw!r}, expected a text such as "2-3"')
        cpus_of(raw)
        return raw

    return Kind('list of processors, "" is any', parse)


OPTIONS: tuple[Option, ...] = (
    Option("state_dir", kinds.path(), PACKAGED_STATE_DIR, "where identity, models and the spool are kept"),
    Option("name", kinds.text(most=64), "", 'wished name of this appliance; "" is its host name'),
    Option(
        "controller",
        kinds.addresses(default_port=7443),
        (),
        "controller addresses, in order of preference; empty: those learnt at enrolment",
    ),
    Option(
        "link.retry_cap_s",
        kinds.number(least=1, most=86_400),
        900.0,
        "longest wait between two tries to reach the controller, seconds; each wait is drawn from zero to its cap",
    ),
    Option(
        "link.proxy",
        kinds.Kind('"http://[USER:PASSWORD@]HOST:PORT", "" is none', parse_proxy),
        None,
        "HTTP proxy on the way to the controller (CONNECT), for enrolment too; no environment variable is read",
    ),
    Option(
        "link.no_proxy",
        kinds.Kind("list of names, addresses, networks", _parse_no_proxy),
        (),
        "controllers that are reached without link.proxy: names with all below them, addresses, networks (10.0.0.0/8)",
    ),
    Option(
        "source.netflow.listen",
        kinds.address(optional=True, default_port=2055),
        "0.0.0.0:2055",
        "UDP address for NetFlow v5, v9 and IPFIX",
    ),
    Option(
        "source.netflow.receive_buffer",
        kinds.size(least=4096, most=1024 * MIB),
        4 * MIB,
        "socket buffer asked of the kernel; what it granted is in /metrics",
    ),
    Option(
        "source.netflow.queue",
        kinds.size(least=64 * 1024, most=4096 * MIB),
        64 * MIB,
        "datagrams that may wait to be decoded, in bytes; beyond it the newest are dropped and counted",
    ),
    Option(
        "source.netflow.batch_ms",
        kinds.integer(least=1, most=5000),
        200,
        "how long datagrams are gathered before they are decoded together, milliseconds",
    ),
    Option(
        "source.eve.path",
        kinds.text(),
        "",
        'Suricata\'s EVE log, such as "/var/log/suricata/eve.json"; its flow events are followed; "" is off',
    ),
    Option(
        "source.eve.link_bytes",
        kinds.integer(most=64),
        14,
        "bytes of each packet that Suricata counts and IP does not: 14 for Ethernet, 18 with VLAN tags, 0 for NFQ",
    ),
    Option(
        "source.zeek.path",
        kinds.text(),
        "",
        'Zeek\'s conn.log, JSON or TSV, such as "/opt/zeek/logs/current/conn.log"; "" is off',
    ),
    Option(
        "source.host.interval_s",
        kinds.integer(most=86_400),
        0,
        "seconds between two rows of the appliance's own metrics for models that read them; 0 is off",
    ),
    Option(
        "inference.socket",
        kinds.text(),
        str(RUN_DIR / "inference.sock"),
        "unix socket where programs of this appliance ask models (Open Inference Protocol v2, gRPC), mode 0660; unset, "
        'it is in state_dir where that is not the packaged one; "" is off',
    ),
    Option(
        "inference.listen",
        kinds.address(optional=True, default_port=8001),
        None,
        "TCP address for the same; one that is not loopback takes the next three keys, too",
    ),
    Option("inference.tls_certificate", kinds.text(), "", "PEM file of the certificate chain of `inference.listen`"),
    Option("inference.tls_key", kinds.text(), "", "PEM file of its private key, mode 0640 or less"),
    Option(
        "inference.token_file",
        kinds.text(),
        "",
        "file of the token that callers of `inference.listen` show (`authorization: Bearer TOKEN`), mode 0640 or less",
    ),
    Option(
        "inference.max_message",
        kinds.size(least=64 * 1024, most=1024 * MIB),
        64 * MIB,
        "largest request of a program; as many may be in progress as fit four times this",
    ),
    Option(
        "inference.workers",
        kinds.integer(least=1, most=64),
        1,
        "worker processes of each model; more than one for programs that ask at the same time",
    ),
    Option(
        "inference.threads",
        kinds.integer(least=0, most=1024),
        0,
        "threads a worker computes with; 0 is one per whole core of budget.cpu_percent, shared among inference.workers",
    ),
    Option("inference.cpus", _cpus(), "", 'processors that workers run on, such as "2-3" or "0,4-7"; "" is any'),
    Option(
        "inference.queue",
        kinds.integer(least=1, most=100_000),
        256,
        "requests of one model that may wait for a worker; beyond it some are refused and told when to retry",
    ),
    Option(
        "inference.spare",
        kinds.choice("auto", "on", "off"),
        "auto",
        "a warm process that workers are forked from, so that a dead one is replaced at once and further ones take "
        "little memory; auto has it where 256 MiB are available at the start",
    ),
    Option(
        "sink.json.path",
        kinds.text(),
        "/var/log/vedette/verdicts.jsonl",
        'file for verdicts, one JSON object a line, reopened on SIGHUP; "" is off',
    ),
    Option("sink.json.emit", kinds.choice("flagged", "all"), "flagged", "which verdicts are written"),
    Option(
        "sink.json.queue",
        kinds.size(least=64 * 1024, most=1024 * MIB),
        16 * MIB,
        "verdict lines that may wait for the disk; beyond it new ones are dropped and counted",
    ),
    Option(
        "sink.json.max_size",
        kinds.size(most=2**50),
        1024 * MIB,
        "greatest size of the file; beyond it verdicts are counted as lost until it is rotated; 0 is none",
    ),
    Option(
        "sink.json.evidence_per_s",
        kinds.integer(least=0, most=100_000),
        50,
        "flagged flows a second whose verdict says which features drove it; further ones go without, counted",
    ),
    Option("sink.syslog.address", _target_or_off(), "", "syslog receiver (RFC 5424) that verdicts are sent to"),
    Option("sink.syslog.emit", kinds.choice("flagged", "all"), "flagged", "which verdicts are sent"),
    Option(
        "sink.syslog.facility",
        kinds.choice(*FACILITIES),
        "local0",
        "facility of the messages; their severity is warning for flagged verdicts, else informational",
    ),
    Option(
        "sink.syslog.max_message",
        kinds.size(least=480, most=65_000),
        2048,
        "greatest message, bytes: a longer one leaves out its evidence; one that is still longer is counted as lost",
    ),
    Option("sink.syslog.ca", kinds.text(), "", 'file of the authorities of a tls:// receiver; "" is the system\'s'),
    Option("sink.syslog.certificate", kinds.text(), "", 'file of our certificate for a tls:// receiver; "" is none'),
    Option("sink.syslog.key", kinds.text(), "", 'file of its private key; "" is in the file of the certificate'),
    Option(
        "sink.syslog.server_name",
        kinds.text(most=253),
        "",
        'name that the certificate of a tls:// receiver must have; "" is the host of the address',
    ),
    Option(
        "sink.syslog.queue",
        kinds.size(least=64 * 1024, most=1024 * MIB),
        8 * MIB,
        "verdict lines that may wait for the receiver; beyond it new ones are dropped and counted",
    ),
    Option(
        "sink.syslog.retry_cap_s",
        kinds.number(least=0.1, most=3600),
        60.0,
        "longest wait between two tries to reach the receiver, seconds; each is drawn from zero to its cap",
    ),
    Option("sink.webhook.url", _url_or_off(), "", "http:// or https:// URL that batches of verdicts are posted to"),
    Option("sink.webhook.emit", kinds.choice("flagged", "all"), "flagged", "which verdicts are posted"),
    Option(
        "sink.webhook.secret_file",
        kinds.text(),
        "",
        'file of the secret that requests are signed with, HMAC-SHA256; not readable by everybody; "" signs nothing',
    ),
    Option("sink.webhook.batch", kinds.integer(least=1, most=10_000), 500, "verdicts of a request, at the most"),
    Option(
        "sink.webhook.batch_age_s",
        kinds.number(least=0.0, most=3600),
        5.0,
        "how long a verdict waits for others to be posted with, seconds",
    ),
    Option(
        "sink.webhook.timeout_s",
        kinds.number(least=0.1, most=600),
        10.0,
        "how long one request may take, from connecting to the end of the answer, seconds",
    ),
    Option("sink.webhook.ca", kinds.text(), "", 'file of the authorities of an https:// URL; "" is the system\'s'),
    Option("sink.webhook.certificate", kinds.text(), "", 'file of our certificate for an https:// URL; "" is none'),
    Option("sink.webhook.key", kinds.text(), "", 'file of its private key; "" is in the file of the certificate'),
    Option(
        "sink.webhook.queue",
        kinds.size(least=64 * 1024, most=1024 * MIB),
        8 * MIB,
        "verdict lines that may wait for the receiver; beyond it new ones are dropped and counted",
    ),
    Option(
        "sink.webhook.retry_cap_s",
        kinds.number(least=0.1, most=86_400),
        300.0,
        "longest wait between two tries, seconds, unless the receiver asks for more; drawn from zero to its cap",
    ),
    Option(
        "sink.webhook.give_up_s",
        kinds.number(least=1, most=7 * 86_400),
        3600.0,
        "how long one batch is tried, seconds; then it is counted as lost and the next one is tried",
    ),
    Option(
        "sink.nftables.enabled",
        kinds.boolean(),
        False,
        "have the sources of flagged flows blocked, by the helper that `vedette-agent configure --nftables` starts",
    ),
    Option(
        "sink.nftables.dry_run", kinds.boolean(), False, "only log which addresses would be blocked; needs no helper"
    ),
    Option("sink.nftables.labels", kinds.texts(), (), "verdicts that an address is blocked for; no other is"),
    Option(
        "sink.nftables.min_score", kinds.number(least=0.0, most=1.0), 0.0, "least score that an address is blocked for"
    ),
    Option(
        "sink.nftables.timeout_s",
        kinds.integer(least=1, most=MAX_TIMEOUT_S),
        3600,
        "how long an address is blocked, seconds; the helper has a limit of its own in /etc/vedette/nftables.toml",
    ),
    Option(
        "sink.nftables.most",
        kinds.integer(least=1, most=65_536),
        1024,
        "addresses to have blocked at once; the helper has a limit of its own in /etc/vedette/nftables.toml",
    ),
    Option(
        "sink.nftables.allow",
        _networks(),
        (),
        "networks that are never blocked, beside this host, its gateways, exporters, controller and link-local ones",
    ),
    Option(
        "sink.nftables.queue",
        kinds.size(least=64 * 1024, most=1024 * MIB),
        1 * MIB,
        "verdict lines that may wait for the helper; beyond it new ones are dropped and counted",
    ),
    Option(
        "sink.nftables.socket",
        kinds.path(),
        Path("/run/vedette-nft-helper.sock"),
        "unix socket where the helper answers",
    ),
    Option(
        "metrics.listen",
        kinds.address(optional=True, default_port=9464),
        "127.0.0.1:9464",
        "HTTP address of /metrics, Prometheus text",
    ),
    Option(
        "status.socket",
        kinds.text(),
        "",
        'unix socket where the running agent answers `status`; "" is agent.sock in state_dir, or in /run/vedette-agent '
        "where that is there and state_dir is the packaged one",
    ),
    Option(
        "telemetry.interval_s",
        kinds.number(least=0.2, most=86_400),
        60.0,
        "span of one telemetry window, seconds",
    ),
    Option(
        "telemetry.spool",
        kinds.size(least=64 * 1024, most=64 * 1024 * MIB),
        64 * MIB,
        "disk for telemetry that waits for the controller; beyond it windows are merged, to hours, then to days",
    ),
    Option(
        "budget.memory",
        kinds.size(least=64 * MIB),
        512 * MIB,
        "address space of one model's worker process; a model that wants more is refused",
    ),
    Option(
        "budget.cpu_percent",
        kinds.integer(least=1, most=100_000),
        100,
        "processor time of the packaged service, 100 is one core; a worker computes with one thread per whole core",
    ),
    Option(
        "budget.network_down",
        kinds.size(least=0),
        0,
        "bytes a second that downloads of models may take of the line, as a mean; 0 is no limit",
    ),
    Option(
        "budget.network_up",
        kinds.size(least=0),
        0,
        "bytes a second that telemetry may take of the line, as a mean; 0 is no limit",
    ),
    Option(
        "budget.disk",
        kinds.size(least=MIB),
        4096 * MIB,
        "disk for models: those of versions that are in no slot any more are kept while they fit, for a return without "
        "download, the longest unused leave first",
    ),
)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How the controller is reached. ``controller`` empty: as learnt at enrolment."""

    controller: tuple[str, ...]
    retry_cap_s: float
    ways: Ways = STRAIGHT


@dataclass(frozen=True, slots=True)
class NetflowSettings:
    """The collector. ``listen`` None: off."""

    listen: tuple[str, int] | None
    receive_buffer_bytes: int
    queue_bytes: int
    batch_s: float


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log files of other programs that flows are read from. A path of None: off."""

    eve: Path | None
    eve_link_bytes: int
    zeek: Path | None


@dataclass(frozen=True, slots=True)
class OipSettings:
    """Where programs ask models. ``socket`` None: no unix socket; ``listen`` None: no TCP."""

    socket: Path | None = None
    listen: tuple[str, int] | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    max_message_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True)
class WorkersSettings:
    """The processes that models run in. ``threads`` 0: by the budget; ``cpus`` empty: any; ``spare`` None: by room."""

    processes: int = 1
    threads: int = 0
    cpus: tuple[int, ...] = ()
    queue: int = 256
    spare: bool | None = None


@dataclass(frozen=True, slots=True)
class JsonSinkSettings:
    """Where verdicts go. ``path`` None: nowhere."""

    path: Path | None
    emit_all: bool
    queue_bytes: int
    max_bytes: int | None
    evidence_per_s: int


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Whom to believe and who to be. ``ca`` None: the system's authorities; ``certificate`` None: nobody."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class SyslogSettings:
    """A syslog receiver and how it is spoken to. ``facility`` is its number; ``server_name`` "": the target's host."""

    target: Target
    facility: int
    max_message: int
    tls: TlsFiles
    server_name: str
    emit_all: bool
    queue_bytes: int
    retry_cap_s: float


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """A webhook and how it is spoken to. ``secret_file`` None: requests are not signed."""

    endpoint: Endpoint
    secret_file: Path | None
    tls: TlsFiles
    batch_rows: int
    batch_age_s: float
    timeout_s: float
    retry_cap_s: float
    give_up_s: float
    emit_all: bool
    queue_bytes: int


@dataclass(frozen=True, slots=True)
class NftablesSettings:
    """Which addresses are blocked, for how long, and through whom."""

    dry_run: bool
    labels: frozenset[str]
    min_score: float
    timeout_s: int
    most: int
    allow: tuple[Network, ...]
    queue_bytes: int
    socket: Path


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What is reported and how much of it waits."""

    interval_s: float
    spool_bytes: int


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What models may take of the appliance."""

    memory_bytes: int
    cpu_percent: int
    disk_bytes: int = 4096 * MIB
    download_bytes_per_s: int = 0  # 0: no limit
    telemetry_bytes_per_s: int = 0

    @property
    def threads(self) -> int:
        """How many a worker computes with."""
        return max(1, self.cpu_percent // 100)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of an agent's settings."""

    state_dir: Path
    name: str
    link: LinkSettings
    netflow: NetflowSettings
    logs: LogSettings
    host_interval_s: int
    oip: OipSettings
    sink: JsonSinkSettings
    syslog: SyslogSettings | None
    webhook: WebhookSettings | None
    nftables: NftablesSettings | None
    metrics_listen: tuple[str, int] | None
    status_socket: Path | None
    telemetry: TelemetrySettings
    budget: BudgetSettings
    workers: WorkersSettings = field(default_factory=WorkersSettings)

    @property
    def enrolment_dir(self) -> Path:
        """Where the identity is kept."""
        return self.state_dir / "enrolment"

    @property
    def status_sockets(self) -> tuple[Path, ...]:
        """Where the running daemon answers ``status``: at the first of these whose folder is there.

        A packaged agent's is in its runtime folder, which lies in memory and can be written when no disk can.
        """
        if self.status_socket is not None:
            return (self.status_socket,)
        beside_state = self.state_dir / "agent.sock"
        return (RUN_DIR / "agent.sock", beside_state) if self.state_dir == PACKAGED_STATE_DIR else (beside_state,)


def read_settings(file: Path | None = None) -> Settings:
    """Return the settings of a file; with None those of the packaged file, or all defaults when there is none.

    Raises:
        SettingsError: The file is missing though named, is not TOML, or a key is unknown, wrong or out of range.
    """
    if file is None and not DEFAULT_FILE.exists():
        return default_settings()
    return settings_from(load_settings(file or DEFAULT_FILE, OPTIONS))


def default_settings() -> Settings:
    """Return the settings of a file that sets nothing."""
    return settings_from({option.key: option.default for option in OPTIONS})


def settings_from(value: Mapping[str, Any]) -> Settings:
    """Return the settings of checked values by key."""
    sink_path = value["sink.json.path"]
    return Settings(
        state_dir=value["state_dir"],
        name=value["name"] or socket.gethostname(),
        link=LinkSettings(
            value["controller"], value["link.retry_cap_s"], Ways(value["link.proxy"], value["link.no_proxy"])
        ),
        netflow=NetflowSettings(
            listen=_address(value["source.netflow.listen"]),
            receive_buffer_bytes=value["source.netflow.receive_buffer"],
            queue_bytes=value["source.netflow.queue"],
            batch_s=value["source.netflow.batch_ms"] / 1000,
        ),
        logs=LogSettings(
            eve=_optional_path(value["source.eve.path"]),
            eve_link_bytes=value["source.eve.link_bytes"],
            zeek=_optional_path(value["source.zeek.path"]),
        ),
        host_interval_s=value["source.host.interval_s"],
        oip=_oip_from(value),
        sink=JsonSinkSettings(
            path=Path(sink_path) if sink_path else None,
            emit_all=value["sink.json.emit"] == "all",
            queue_bytes=value["sink.json.queue"],
            max_bytes=value["sink.json.max_size"] or None,
            evidence_per_s=value["sink.json.evidence_per_s"],
        ),
        syslog=_syslog(value),
        webhook=_webhook(value),
        nftables=_nftables(value),
        metrics_listen=_address(value["metrics.listen"]),
        status_socket=Path(value["status.socket"]) if value["status.socket"] else None,
        telemetry=TelemetrySettings(value["telemetry.interval_s"], value["telemetry.spool"]),
        budget=BudgetSettings(
            memory_bytes=value["budget.memory"],
            cpu_percent=value["budget.cpu_percent"],
            disk_bytes=value["budget.disk"],
            download_bytes_per_s=value["budget.network_down"],
            telemetry_bytes_per_s=value["budget.network_up"],
        ),
        workers=WorkersSettings(
            processes=value["inference.workers"],
            threads=value["inference.threads"],
            cpus=cpus_of(value["inference.cpus"]),
            queue=value["inference.queue"],
            spare={"on": True, "off": False, "auto": None}[value["inference.spare"]],
        ),
    )


def _optional_path(text: str) -> Path | None:
    return Path(text) if text else None


def _oip_from(value: Mapping[str, Any]) -> OipSettings:
    """Return the server's settings.

    Raises:
        SettingsError: Others would reach it without TLS or a token, or half of a pair is set.
    """
    names = ("tls_certificate", "tls_key", "token_file")
    files = {name: Path(value[f"inference.{name}"]) if value[f"inference.{name}"] else None for name in names}
    listen = _address(value["inference.listen"])
    missing = [f"inference.{name}" for name in names if files[name] is None]
    if listen is not None and missing and not _is_loopback(listen[0]):
        raise SettingsError(
            f"inference.listen is {value['inference.listen']}, which other hosts may reach",
            f"that takes TLS and a token; not set: {', '.join(missing)}",
            "set them, or listen on 127.0.0.1",
        )
    if (files["tls_certificate"] is None) != (files["tls_key"] is None):
        there = "tls_key" if files["tls_key"] else "tls_certificate"
        raise SettingsError(f"inference.{there} is set alone", "TLS takes a certificate and its key", "set both")
    if listen is not None and files["token_file"] is not None and files["tls_key"] is None:
        raise SettingsError(
            "inference.token_file is set without TLS", "a token in plain text is none", "set inference.tls_certificate"
        )
    return OipSettings(
        socket=_socket(value["inference.socket"], value["state_dir"]),
        listen=listen,
        max_message_bytes=value["inference.max_message"],
        **files,
    )


def _socket(text: str, state_dir: Path) -> Path | None:
    """Return where the unix socket lies; agents beside the packaged one have each their own."""
    path = Path(text) if text else None
    return state_dir / path.name if path == RUN_DIR / "inference.sock" and state_dir != PACKAGED_STATE_DIR else path


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(text: str | None) -> tuple[str, int] | None:
    return parse_address(text) if text else None


def _syslog(value: Mapping[str, Any]) -> SyslogSettings | None:
    if not value["sink.syslog.address"]:
        return None
    return SyslogSettings(
        target=parse_target(value["sink.syslog.address"]),
        facility=FACILITIES[value["sink.syslog.facility"]],
        max_message=value["sink.syslog.max_message"],
        tls=_tls_files(value, "sink.syslog"),
        server_name=value["sink.syslog.server_name"],
        emit_all=value["sink.syslog.emit"] == "all",
        queue_bytes=value["sink.syslog.queue"],
        retry_cap_s=value["sink.syslog.retry_cap_s"],
    )


def _webhook(value: Mapping[str, Any]) -> WebhookSettings | None:
    if not value["sink.webhook.url"]:
        return None
    return WebhookSettings(
        endpoint=parse_endpoint(value["sink.webhook.url"]),
        secret_file=_path(value["sink.webhook.secret_file"]),
        tls=_tls_files(value, "sink.webhook"),
        batch_rows=value["sink.webhook.batch"],
        batch_age_s=value["sink.webhook.batch_age_s"],
        timeout_s=value["sink.webhook.timeout_s"],
        retry_cap_s=value["sink.webhook.retry_cap_s"],
        give_up_s=value["sink.webhook.give_up_s"],
        emit_all=value["sink.webhook.emit"] == "all",
        queue_bytes=value["sink.webhook.queue"],
    )


def _nftables(value: Mapping[str, Any]) -> NftablesSettings | None:
    if not value["sink.nftables.enabled"]:
        return None
    if not value["sink.nftables.labels"]:
        raise SettingsError(
            "sink.nftables.enabled is true and sink.nftables.labels is empty",
            "no verdict would have an address blocked",
            'name the verdicts that shall, for instance sink.nftables.labels = ["scan_syn", "brute"]',
        )
    return NftablesSettings(
        dry_run=value["sink.nftables.dry_run"],
        labels=frozenset(value["sink.nftables.labels"]),
        min_score=value["sink.nftables.min_score"],
        timeout_s=value["sink.nftables.timeout_s"],
        most=value["sink.nftables.most"],
        allow=parse_networks(value["sink.nftables.allow"]),
        queue_bytes=value["sink.nftables.queue"],
        socket=value["sink.nftables.socket"],
    )


def _tls_files(value: Mapping[str, Any], table: str) -> TlsFiles:
    return TlsFiles(*(_path(value[f"{table}.{name}"]) for name in ("ca", "certificate", "key")))


def _path(text: str) -> Path | None:
    return Path(text) if text else None
