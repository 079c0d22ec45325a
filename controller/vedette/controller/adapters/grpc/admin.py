"""The Admin service, put together from parts.

Each room serves its own verbs from a class of its own (``admin_fleet``, ``admin_ml``, ``admin_rollout``) whose methods
are named as the RPCs and take ``(self, request, context)``; :func:`compose` makes one servicer of them. A verb that no
part serves answers UNIMPLEMENTED; one that two parts serve is a mistake in the wiring and raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from vedette.wire.v1 import admin_pb2
from vedette.wire.v1.admin_pb2_grpc import AdminServicer

METHODS = tuple(method.name for method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods)


def compose(*parts: object) -> AdminServicer:
    """Return one servicer of several parts.

    Raises:
        TypeError: Two parts serve the same verb.
    """
    servicer = cast("Callable[[], AdminServicer]", AdminServicer)()  # its methods answer UNIMPLEMENTED at run time
    served: set[str] = set()
    for part in parts:
        for name in methods_of(part):
            if name in served:
                raise TypeError(f"{type(part).__name__}.{name} is served by another part already")
            served.add(name)
            setattr(servicer, name, getattr(part, name))
    return servicer


def methods_of(part: object) -> tuple[str, ...]:
    """Return the verbs a part serves."""
    return tuple(name for name in METHODS if hasattr(part, name))
