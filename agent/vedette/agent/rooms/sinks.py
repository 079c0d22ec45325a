"""Which sinks an appliance has, by its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from vedette.agent.adapters.fleet.identity import IdentityDamaged, IdentityStore
from vedette.agent.adapters.sinks.fanout import Fanout, QueuedSink
from vedette.agent.adapters.sinks.json_lines import JsonSink
from vedette.agent.adapters.sinks.nftables import NftablesSink
from vedette.agent.adapters.sinks.syslog import SyslogSink
from vedette.agent.adapters.sinks.webhook import WebhookSink
from vedette.agent.settings import Settings
from vedette.models.toml_settings import parse_address


def build_sinks(settings: Settings, on_problem: Callable[[str, str | None], None]) -> Fanout:
    """Return all sinks that are on.

    Args:
        settings: The agent's.
        on_problem: Called from a sink's thread with its name and with what is wrong, or None when that is over.
    """
    return Fanout(tuple(_sinks(settings, on_problem)))


def _sinks(settings: Settings, on_problem: Callable[[str, str | None], None]) -> Iterator[QueuedSink]:
    json = settings.sink
    if json.path is not None:
        yield JsonSink(
            json.path,
            max_bytes=json.max_bytes,
            emits_all=json.emit_all,
            queue_bytes=json.queue_bytes,
            on_problem=partial(on_problem, JsonSink.name),
        )
    if settings.syslog is not None:
        yield SyslogSink(settings.syslog, partial(on_problem, SyslogSink.name))
    if settings.webhook is not None:
        yield WebhookSink(settings.webhook, partial(on_problem, WebhookSink.name))
    if settings.nftables is not None:
        controllers = partial(_controller_hosts, settings)
        yield NftablesSink(settings.nftables, controllers, partial(on_problem, NftablesSink.name))


def _controller_hosts(settings: Settings) -> Iterator[str]:
    """Yield the controller's hosts as the settings and the enrolment have them now."""
    try:
        identity = IdentityStore(settings.enrolment_dir).load()
    except IdentityDamaged:
        identity = None
    for address in (*settings.link.controller, *(identity.addresses if identity else ())):
        yield parse_address(address)[0]
