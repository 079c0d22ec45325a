"""The one table from our errors to gRPC statuses, and the form in which a caller gets them.

An error travels as its status, the three public lines as details, and its code as trailing metadata ``vedette-code``.
What was not foreseen is told as INTERNAL without its text; that stays in our log.
"""

from __future__ import annotations

import grpc

from vedette.controller.domain import errors
from vedette.models.errors import ModelsError
from vedette.wire.errors import WireError

CODE_KEY = "vedette-code"
_MAX_DETAIL_BYTES = 6000
"""Of details as they travel: percent-encoded, in a header block of which clients take 8 KiB by default."""

STATUS_OF: dict[type[errors.ControllerError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyThere: grpc.StatusCode.ALREADY_EXISTS,
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreFailed: grpc.StatusCode.INTERNAL,
}


def public_error(exc: Exception) -> tuple[grpc.StatusCode, str, str]:
    """Return status, details and code to tell a caller of an error."""
    match exc:
        case errors.ControllerError():
            return status_of(exc), _fitting(exc.public_text), exc.code
        case WireError():
            return grpc.StatusCode.INVALID_ARGUMENT, _lines("the message breaks its contract", exc), "bad-message"
        case ModelsError():
            return grpc.StatusCode.INVALID_ARGUMENT, _lines("what was sent is not what it must be", exc), "bad-document"
    return grpc.StatusCode.INTERNAL, "the controller failed\n\nits log says why", "internal"


def status_of(exc: errors.ControllerError) -> grpc.StatusCode:
    """Return the status of an error, by the nearest of its classes in the table."""
    return next((STATUS_OF[kind] for kind in type(exc).__mro__ if kind in STATUS_OF), grpc.StatusCode.INTERNAL)


def _lines(what: str, exc: Exception) -> str:
    return _fitting(f"{what}\n{exc}\n")


def _fitting(text: str) -> str:
    """Return as much of a text, from its start, as fits into details."""
    travelled = 0
    for place, character in enumerate(text):
        is_plain = " " <= character <= "~" and character != "%"
        travelled += 1 if is_plain else 3 * len(character.encode(errors="replace"))
        if travelled > _MAX_DETAIL_BYTES:
            return text[:place]
    return text
