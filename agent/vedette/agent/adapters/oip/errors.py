"""What became of a request, as gRPC tells it: one table from the agent's errors to a status, and the retry hint.

The protocol fixes no codes; these are FAILURES.md section 7. Only what another try may mend says so: UNAVAILABLE, and
RESOURCE_EXHAUSTED with the time to wait, as google.rpc.RetryInfo and as
``grpc-retry-pushback-ms``, which the retry policies of gRPC clients wait for (gRFC A6).
"""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from vedette.agent.domain.errors import (
    AgentError,
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelFailed,
    NoActiveModel,
    OutOfMemory,
    Overloaded,
    WorkerCrashed,
    WorkerTimeout,
)
from vedette.wire.oip.retry_pb2 import RetryHint, RichStatus

Metadata = tuple[tuple[str, str | bytes], ...]
_Code = grpc.StatusCode
_MOST_TEXT = 1024
"""Of a status text in bytes: a header must fit the 8 KiB that clients take."""

_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
_DETAILS_KEY = "grpc-status-details-bin"


class NotServed(InferenceError):
    """No model, or version of it, of that name is here: the caller must ask for another."""


class NotOffered(InferenceError):
    """The call is known and is not for this server: the caller must do without it."""


class Governed(InferenceError):
    """The call would change what the controller decides."""


class NotAllowed(InferenceError):
    """The caller showed no token, or a wrong one."""


_CODES: tuple[tuple[type[AgentError], grpc.StatusCode], ...] = (
    (NotServed, _Code.NOT_FOUND),
    (NotOffered, _Code.UNIMPLEMENTED),
    (Governed, _Code.FAILED_PRECONDITION),
    (NotAllowed, _Code.UNAUTHENTICATED),
    (InvalidRequest, _Code.INVALID_ARGUMENT),
    (Overloaded, _Code.RESOURCE_EXHAUSTED),
    (NoActiveModel, _Code.UNAVAILABLE),
    (DeadlineExceeded, _Code.DEADLINE_EXCEEDED),
    (WorkerTimeout, _Code.DEADLINE_EXCEEDED),
    # Tried twice already, on two workers. A client that tried it for ever would have the build quarantined.
    (WorkerCrashed, _Code.INTERNAL),
    (OutOfMemory, _Code.INTERNAL),
    (ModelFailed, _Code.INTERNAL),
)


def code_of(error: AgentError) -> grpc.StatusCode:
    """Return the status of an error; INTERNAL for one that is not a caller's business."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), _Code.INTERNAL)


def text_of(error: AgentError) -> str:
    """Return the error's words in one line that fits a header."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.encode("utf-8", "replace")[:_MOST_TEXT].decode("utf-8", "ignore")


def trailers_of(error: AgentError) -> Metadata:
    """Return when to come again, where another try may help."""
    if not isinstance(error, Overloaded):
        return ()
    wait_ms = max(1, round(error.retry_after_s * 1000))
    hint = RetryHint()
    hint.retry_delay.FromMilliseconds(wait_ms)
    packed = AnyMessage(type_url=_RETRY_INFO, value=hint.SerializeToString())
    status = RichStatus(code=_Code.RESOURCE_EXHAUSTED.value[0], message=text_of(error), details=[packed])
    return ((_DETAILS_KEY, status.SerializeToString()), ("grpc-retry-pushback-ms", str(wait_ms)))
