"""The controller's settings: one table of keys for reading, checking, ``--help`` and the docs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from vedette.models import toml_settings as toml

DEFAULT_CONFIG = Path("/etc/vedette/controller.toml")
DEFAULT_DATA_DIR = Path("/var/lib/vedette-controller")
LEARNT = "controller.toml"
"""In the data directory: what ``init`` learnt there, in force wherever the settings file is silent."""
DEFAULT_LISTEN = "0.0.0.0:7443"

_MEMORY = toml.size(least=256 << 20, most=1 << 40)

OPTIONS = (
    toml.Option("data_dir", toml.path(), DEFAULT_DATA_DIR, "Keys, database and blobs lie here"),
    toml.Option("listen", toml.address(), DEFAULT_LISTEN, "Where agents and admins connect (gRPC, mTLS)"),
    toml.Option(
        "enrol_listen",
        toml.address(optional=True),
        None,
        "Where appliances enrol (gRPC, server TLS only); the next free port after listen when not set",
    ),
    toml.Option("http", toml.address(optional=True), "127.0.0.1:7480", "Where /healthz and /metrics are served"),
    toml.Option(
        "addresses",
        toml.addresses(),
        (),
        "What tokens and enrolments tell agents to connect to; derived from listen when empty",
    ),
    toml.Option(
        "fleet.status_interval_s",
        toml.integer(least=1, most=3600),
        30,
        "An agent says how it stands at least this often; after three times that, silence ends its stream",
    ),
    toml.Option(
        "telemetry.keep_days", toml.integer(least=1, most=3650), 90, "Telemetry windows older than this are deleted"
    ),
    toml.Option(
        "backup.keep",
        toml.integer(most=10_000),
        14,
        "How many backups stay in a folder of backups; 0 keeps all",
    ),
    toml.Option(
        "import.memory", _MEMORY, 1536 << 20, "Address space of a child that parses uploads and makes snapshots"
    ),
    toml.Option("registry.memory", _MEMORY, 1 << 30, "Address space of a child that tries an uploaded model"),
    toml.Option(
        "training.memory", _MEMORY, 3 << 30, "Address space of a child that trains; its libraries take 1.8 GiB"
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """What a controller is told from outside."""

    data_dir: Path
    listen: str = DEFAULT_LISTEN
    enrol_listen: str | None = None
    http: str | None = None
    addresses: tuple[str, ...] = ()
    status_interval_s: int = 30
    keep_days: int = 90
    backup_keep: int = 14
    import_memory_bytes: int = 1536 << 20
    registry_memory_bytes: int = 1 << 30
    training_memory_bytes: int = 3 << 30
    files: tuple[Path, ...] = ()  # they come from; an earlier one overrules a later one

    @classmethod
    def load(cls, path: Path) -> ControllerSettings:
        """Return the settings of a file; a relative ``data_dir`` is relative to the file.

        A key that the file does not set has the value of :data:`LEARNT` in the data directory, if that is another file.

        Raises:
            SettingsError: A file cannot be read, or a key is unknown, of a wrong type or out of range.
        """
        found = toml.load_settings(path, OPTIONS)
        files: tuple[Path, ...] = (path.absolute(),)
        data_dir = files[0].parent / found["data_dir"]
        learnt = data_dir / LEARNT
        if os.path.exists(learnt) and not os.path.samefile(learnt, path):  # noqa: PTH110, PTH121 - False when not permitted
            found = toml.load_settings(path, OPTIONS, instead_of_defaults=toml.load_settings(learnt, OPTIONS))
            files = (*files, learnt)
        return cls(
            data_dir=data_dir,
            files=files,
            listen=found["listen"],
            enrol_listen=found["enrol_listen"],
            http=found["http"],
            addresses=found["addresses"],
            status_interval_s=found["fleet.status_interval_s"],
            keep_days=found["telemetry.keep_days"],
            backup_keep=found["backup.keep"],
            import_memory_bytes=found["import.memory"],
            registry_memory_bytes=found["registry.memory"],
            training_memory_bytes=found["training.memory"],
        )


def advertised(listen: str, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the addresses that others should use for a server that listens on ``listen``.

    Args:
        listen: HOST:PORT.
        names: DNS names or addresses it is known by; they come first.
    """
    host, port = toml.parse_address(listen)
    hosts = [*names, *([] if is_wildcard(host) else [host])] or [socket.gethostname()]
    return tuple(with_port(host, port) for host in dict.fromkeys(hosts))


def is_wildcard(host: str) -> bool:
    """Return whether listening on a host means listening on every address of this machine."""
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def with_port(host: str, port: int) -> str:
    """Return HOST:PORT, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
