"""``vedette-controller init``: what a new controller shall be, and the words that lead on from there.

On a packaged host, with no ``--data-dir``, everything belongs to the service user. The packaged settings file is never
written: what init learnt lies in the data directory's own ``controller.toml``, which counts wherever the packaged one
is silent (:meth:`ControllerSettings.load`).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from vedette.controller.adapters.initialise import Initialised, Plan, initialise
from vedette.controller.adapters.service_user import become_owner, become_service_user, service_user
from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import (
    DEFAULT_CONFIG,
    DEFAULT_DATA_DIR,
    DEFAULT_LISTEN,
    ControllerSettings,
    advertised,
    is_wildcard,
    with_port,
)
from vedette.models.toml_settings import WrongValue, parse_address

_PORTS_TRIED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the operator asked for; None is what is usual on this host."""

    data_dir: Path | None
    listen: str | None
    names: tuple[str, ...]


def make_controller(wish: Wish) -> str:
    """Make a controller and return the words to print.

    Raises:
        ControllerError: It cannot be made; see :func:`~vedette.controller.adapters.initialise.initialise`.
        SettingsError: The packaged settings file is wrong.
    """
    usual = _packaged_settings()
    data_dir = wish.data_dir or (usual.data_dir if usual else DEFAULT_DATA_DIR)
    is_packaged = usual is not None and data_dir.absolute() == usual.data_dir
    usual_listen = usual.listen if usual and is_packaged else DEFAULT_LISTEN
    if is_packaged:
        become_service_user(data_dir)
    else:
        become_owner(data_dir)
    plan = _plan(data_dir, wish.listen or usual_listen, wish.names)  # by now: it tries ports, as the service will
    made = initialise(plan, MIGRATIONS)
    if is_packaged:
        return _told(made, plan) + _packaged_next(made) + _overruled(plan)
    return _told(made, plan) + _next(made, plan)


def _packaged_settings() -> ControllerSettings | None:
    """Return what the packaged unit would serve, None on a host without the package."""
    return ControllerSettings.load(DEFAULT_CONFIG) if service_user() and DEFAULT_CONFIG.exists() else None


def _plan(data_dir: Path, wished: str, names: tuple[str, ...]) -> Plan:
    listen = _address(wished)
    addresses = advertised(listen, names)
    host, port = parse_address(listen)
    is_everywhere = is_wildcard(host)
    return Plan(
        data_dir=data_dir,
        listen=listen,
        enrol_listen=_next_free(listen),
        addresses=addresses,
        admin_address=addresses[0] if names or not is_everywhere else f"127.0.0.1:{port}",
        names=(*names, *([] if is_everywhere else [host])),
    )


def _told(made: Initialised, plan: Plan) -> str:
    return f"""\
Made controller {made.controller_id} in {made.data_dir}.
Agents are told to connect to {", ".join(plan.addresses)} (addresses in {made.config}; init --dns NAME sets them).
The release key in {made.data_dir}/keys is online: whoever can read this machine's files can sign models.
"""


def _next(made: Initialised, plan: Plan) -> str:
    return f"""
Next:
  vedette-controller serve --config {made.config}
  vedette --context {made.context} token create
{made.context} holds the first admin's private key and goes to {plan.admin_address}.
It works wherever you copy it; keep it secret."""


def _packaged_next(made: Initialised) -> str:
    return f"""
Next:
  systemctl start vedette-controller
  vedette login {made.context}
  vedette token create --label site=SITE       then on each appliance: vedette-agent enroll --token TOKEN
An admin who is not root gets a copy, and logs in with it (it holds a private key):
  install -m 600 -o USER {made.context} ~USER/admin.toml"""


def _overruled(plan: Plan) -> str:
    """Return what to edit where the packaged settings say otherwise than what was asked for."""
    settings = ControllerSettings.load(DEFAULT_CONFIG)
    wanted = {"listen": plan.listen, "enrol_listen": plan.enrol_listen, "addresses": plan.addresses}
    return "".join(
        f"\n{DEFAULT_CONFIG} says {key} = {_shown(getattr(settings, key))}, and that counts,"
        f" not {_shown(value)}: edit it."
        for key, value in wanted.items()
        if getattr(settings, key) != value
    )


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _address(text: str) -> str:
    try:
        host, port = parse_address(text, 7443)
    except WrongValue as exc:
        raise InvalidInput("address-invalid", f"--listen {exc}") from exc
    return with_port(host, port or _free_port(host, 0))


def _next_free(listen: str) -> str:
    host, port = parse_address(listen)
    for candidate in range(port + 1, min(port + 1 + _PORTS_TRIED, 65536)):
        if _free_port(host, candidate):
            return with_port(host, candidate)
    raise Refused("address-unusable", f"no port is free after {listen}", f"{_PORTS_TRIED} were tried")


def _free_port(host: str, port: int) -> int:
    """Return ``port``, or any when it is 0, if it can be listened on now; else 0."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError:
        return 0
