"""The two gRPC ports: 7443 for who has a certificate, 7444 for who has only a token.

grpcio either requires client certificates on a port or never asks for one, hence two. Limits keep one bad peer from
harming the rest; keepalive lets both sides know within 15 s that a cable was cut (FACTS: 12 s measured).
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc import aio

from vedette.controller.adapters.grpc.guard import Guard
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.domain.errors import StoreFailed
from vedette.wire.limits import MAX_MESSAGE_BYTES

_COMMON: tuple[tuple[str, Any], ...] = (
    ("grpc.so_reuseport", 0),  # else a second controller would silently share the port
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
)
_MEMBERS = (
    *_COMMON,
    ("grpc.max_concurrent_streams", 64),  # of one connection
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # else an unanswered keepalive ping waits 60 s: 70 s measured, 15 with this
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # agents ping every 10 s
    ("grpc.http2.max_pings_without_data", 0),
)
_STRANGERS = (
    *_COMMON,
    ("grpc.max_concurrent_streams", 8),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_connection_age_ms", 120_000),
)
_MOST_STRANGERS = 256
"""Enrolments at once; more wait for none, they are told RESOURCE_EXHAUSTED."""


def member_server(guard: Guard) -> aio.Server:
    """Return the server of the mTLS port, not yet bound."""
    return aio.server(interceptors=(guard,), options=_MEMBERS)


def stranger_server(guard: Guard) -> aio.Server:
    """Return the server of the enrolment port, not yet bound."""
    return aio.server(interceptors=(guard,), options=_STRANGERS, maximum_concurrent_rpcs=_MOST_STRANGERS)


def bind(server: aio.Server, listen: str, keys: KeyRing, *, is_for_members: bool) -> int:
    """Bind a server to an address; return the port.

    Raises:
        StoreFailed: The address cannot be had.
    """
    authority = keys.authority.pem if is_for_members else None
    pair = (keys.server.key, keys.server.certificate)
    credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=is_for_members)
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as exc:
        port, why = 0, str(exc)
    else:
        why = "it is in use, or not an address of this machine"
    if port == 0:
        remedy = "stop what uses it, or choose another in the settings"
        raise StoreFailed("address-unusable", f"cannot listen on {listen}", why, remedy)
    return port
