"""The only translator between generated messages and plain values.

A :class:`Pair` maps a dataclass onto the message of the same name, field by field, driven by the dataclass's
annotations; ``to_wire`` never fails on a valid value, ``from_wire`` validates: limits, enumerations, presence of what
has no default. An unknown enumeration value (a newer peer's) is an error of that message, never a guess.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from vedette.wire import values, views
from vedette.wire.errors import WireError
from vedette.wire.v1 import admin_pb2, enrolment_pb2, fleet_pb2, telemetry_pb2
from vedette.wire.values import DEFAULT_LIMIT, Limit

V = TypeVar("V")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class _Codec:
    """How one kind of field travels. ``put`` sets it on a message, ``take`` reads and checks it."""

    put: Callable[[Any, str, Any], None]
    take: Callable[[Any, str, str], Any]


class Pair(Generic[V, M]):
    """Translate between a dataclass and its message."""

    def __init__(self, value_type: type[V], message_type: type[M]) -> None:
        self._value_type = value_type
        self._message_type = message_type

    def to_wire(self, value: V) -> M:
        """Return the message of a value."""
        message = self._message_type()
        _fill(message, value)
        return message

    def from_wire(self, message: M) -> V:
        """Return the value of a message.

        Raises:
            WireError: A limit is broken, an enumeration value is unknown or a required field is absent.
        """
        return cast("V", _read(message, self._value_type, self._value_type.__name__))


def _fill(message: Any, value: Any) -> None:
    for name, codec, _ in _plan(cast("Hashable", type(value))):
        codec.put(message, name, getattr(value, name))


def _read(message: Any, value_type: type[Any], where: str) -> Any:
    taken: dict[str, Any] = {}
    for name, codec, required in _plan(cast("Hashable", value_type)):
        item = codec.take(message, name, f"{where}.{name}")
        if item is None and required:
            raise WireError(f"{where}.{name} is absent and has no default")
        taken[name] = item
    return value_type(**taken)


@cache
def _plan(value_type: Hashable) -> tuple[tuple[str, _Codec, bool], ...]:
    hints = get_type_hints(cast("Any", value_type), include_extras=True)
    return tuple(
        (item.name, _codec(hints[item.name]), item.default is MISSING and item.default_factory is MISSING)
        for item in fields(cast("Any", value_type))
    )


def _strip(annotation: Any) -> tuple[Any, int, bool]:
    """Return the bare type, its limit and whether it may be None."""
    limit = DEFAULT_LIMIT
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        limit = next((extra.most for extra in extras if isinstance(extra, Limit)), limit)
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [arm for arm in get_args(annotation) if arm is not types.NoneType]
        return inner[0], limit, True
    return annotation, limit, False


def _codec(annotation: Any) -> _Codec:
    bare, limit, _ = _strip(annotation)
    origin = get_origin(bare)
    if origin is tuple:
        return _repeated(get_args(bare)[0], limit)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(limit)
    if is_dataclass(bare) and isinstance(bare, type):
        return _nested(bare)
    if bare is datetime:
        return _time()
    if isinstance(bare, type) and issubclass(bare, StrEnum):
        return _enumeration(bare)
    return _scalar(bare, limit)


def _bounded(item: Any, limit: int, where: str) -> Any:
    if isinstance(item, str | bytes) and len(item) > limit:
        unit = "characters" if isinstance(item, str) else "bytes"
        raise WireError(f"{where} is {len(item)} {unit}, limit {limit}")
    return item


def _scalar(bare: type[Any], limit: int) -> _Codec:
    def put(message: Any, name: str, item: Any) -> None:
        setattr(message, name, item)

    def take(message: Any, name: str, where: str) -> Any:
        return _bounded(getattr(message, name), limit, where)

    return _Codec(put, take)


def _enumeration(bare: type[StrEnum]) -> _Codec:
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in bare.__name__).lstrip("_") + "_"

    def put(message: Any, name: str, item: Any) -> None:
        kind = message.DESCRIPTOR.fields_by_name[name].enum_type
        setattr(message, name, kind.values_by_name[prefix + item.name].number)

    def take(message: Any, name: str, where: str) -> Any:
        kind = message.DESCRIPTOR.fields_by_name[name].enum_type
        number = getattr(message, name)
        known = kind.values_by_number.get(number)
        if known is None or number == 0:
            raise WireError(f"{where} is {number}, known are 1 to {max(kind.values_by_number)}")
        return bare[known.name.removeprefix(prefix)]

    return _Codec(put, take)


def _time() -> _Codec:
    def put(message: Any, name: str, item: Any) -> None:
        if item is not None:
            getattr(message, name).CopyFrom(time_to_wire(item))

    def take(message: Any, name: str, where: str) -> Any:
        return time_from_wire(getattr(message, name), where) if message.HasField(name) else None

    return _Codec(put, take)


def _nested(bare: type[Any]) -> _Codec:
    def put(message: Any, name: str, item: Any) -> None:
        if item is not None:
            target = getattr(message, name)
            target.SetInParent()  # an empty message is present all the same
            _fill(target, item)

    def take(message: Any, name: str, where: str) -> Any:
        return _read(getattr(message, name), bare, where) if message.HasField(name) else None

    return _Codec(put, take)


def _repeated(annotation: Any, limit: int) -> _Codec:
    bare, item_limit, _ = _strip(annotation)
    is_value = is_dataclass(bare) and isinstance(bare, type)

    def put(message: Any, name: str, items: Any) -> None:
        target = getattr(message, name)
        if not is_value:
            target.extend(items)
            return
        for item in items:
            _fill(target.add(), item)

    def take(message: Any, name: str, where: str) -> Any:
        items = _counted(getattr(message, name), limit, where)
        if is_value:
            return tuple(_read(item, bare, f"{where}[{i}]") for i, item in enumerate(items))
        return tuple(_bounded(item, item_limit, f"{where}[{i}]") for i, item in enumerate(items))

    return _Codec(put, take)


def _mapping(limit: int) -> _Codec:
    def put(message: Any, name: str, items: Any) -> None:
        target = getattr(message, name)
        for key, item in items.items():
            if is_dataclass(item):
                _fill(target[key], item)  # reading a missing key of a message map creates it
            else:
                target[key] = item

    def take(message: Any, name: str, where: str) -> Any:
        items = _counted(getattr(message, name), limit, where)
        value_type = _map_value_type(message, name)
        return {
            _bounded(key, DEFAULT_LIMIT, f"{where} key"): _read(item, value_type, f"{where}[{key}]")
            if value_type
            else _bounded(item, DEFAULT_LIMIT, f"{where}[{key}]")
            for key, item in items.items()
        }

    return _Codec(put, take)


def _map_value_type(message: Any, name: str) -> type[Any] | None:
    kind = message.DESCRIPTOR.fields_by_name[name].message_type.fields_by_name["value"].message_type
    if kind is None:
        return None
    return cast("type[Any]", getattr(views, kind.name, None) or getattr(values, kind.name))


def _counted(items: Any, limit: int, where: str) -> Any:
    if len(items) > limit:
        raise WireError(f"{where} has {len(items)} entries, limit {limit}")
    return items


def time_to_wire(at: datetime) -> Timestamp:
    """Return the timestamp of an aware time.

    Raises:
        ValueError: The time has no zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"time {at.isoformat()} has no zone; times are aware UTC")
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def time_from_wire(stamp: Timestamp, where: str) -> datetime:
    """Return the aware UTC time of a timestamp.

    Raises:
        WireError: Seconds or nanoseconds are outside what a timestamp may hold (years 1 to 9999).
    """
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as exc:
        raise WireError(f"{where} is {stamp.seconds} s {stamp.nanos} ns, outside the years 1 to 9999") from exc


FACTS = Pair(values.Facts, fleet_pb2.Facts)
HELLO = Pair(values.Hello, fleet_pb2.Hello)
WELCOME = Pair(values.Welcome, fleet_pb2.Welcome)
DESIRED = Pair(values.DesiredState, fleet_pb2.DesiredState)
STATUS = Pair(values.Status, fleet_pb2.Status)
RESULT = Pair(values.GenerationResult, fleet_pb2.GenerationResult)
HELLO_RESPONSE = Pair(values.HelloResponse, enrolment_pb2.HelloResponse)
ENROL_REQUEST = Pair(values.EnrolRequest, enrolment_pb2.EnrolRequest)
ENROL_RESPONSE = Pair(values.EnrolResponse, enrolment_pb2.EnrolResponse)
BATCH = Pair(values.TelemetryBatch, telemetry_pb2.TelemetryBatch)
ACKNOWLEDGEMENT = Pair(values.TelemetryAcknowledgement, telemetry_pb2.TelemetryAcknowledgement)

OVERVIEW = Pair(views.Overview, admin_pb2.Overview)
TOKEN = Pair(views.Token, admin_pb2.Token)
AGENT = Pair(views.Agent, admin_pb2.Agent)
DATA_IMPORT = Pair(views.DataImport, admin_pb2.DataImport)
LABEL_IMPORT = Pair(views.LabelImport, admin_pb2.LabelImport)
DATASET = Pair(views.Dataset, admin_pb2.Dataset)
SNAPSHOT = Pair(views.Snapshot, admin_pb2.Snapshot)
RUN = Pair(views.Run, admin_pb2.Run)
VERSION = Pair(views.Version, admin_pb2.Version)
ROLLOUT = Pair(views.Rollout, admin_pb2.Rollout)
DRIFT = Pair(views.DriftReport, admin_pb2.DriftReport)
TELEMETRY_IMPORT = Pair(views.TelemetryImport, admin_pb2.TelemetryImport)
MODEL_EXPORT = Pair(views.ModelExport, admin_pb2.ModelExport)
AGENT_TELEMETRY = Pair(views.AgentTelemetry, admin_pb2.AgentTelemetry)

AgentWord = values.Hello | values.Status | values.GenerationResult
"""What an agent may say on its stream."""
ControllerWord = values.DesiredState | values.Welcome
"""What the controller may say on a stream."""


def agent_word_to_wire(word: AgentWord) -> fleet_pb2.AgentMessage:
    """Return the stream message of an agent's word."""
    match word:
        case values.Hello():
            return fleet_pb2.AgentMessage(hello=HELLO.to_wire(word))
        case values.Status():
            return fleet_pb2.AgentMessage(status=STATUS.to_wire(word))
        case values.GenerationResult():
            return fleet_pb2.AgentMessage(result=RESULT.to_wire(word))


def agent_word_from_wire(message: fleet_pb2.AgentMessage) -> AgentWord:
    """Return what an agent said.

    Raises:
        WireError: The message is empty, of a newer kind, or breaks its contract.
    """
    match message.WhichOneof("body"):
        case "hello":
            return HELLO.from_wire(message.hello)
        case "status":
            return STATUS.from_wire(message.status)
        case "result":
            return RESULT.from_wire(message.result)
    raise WireError("AgentMessage.body is empty or of a kind this version does not know")


def controller_word_to_wire(word: ControllerWord) -> fleet_pb2.ControllerMessage:
    """Return the stream message of a controller's word."""
    match word:
        case values.DesiredState():
            return fleet_pb2.ControllerMessage(desired=DESIRED.to_wire(word))
        case values.Welcome():
            return fleet_pb2.ControllerMessage(welcome=WELCOME.to_wire(word))


def controller_word_from_wire(message: fleet_pb2.ControllerMessage) -> ControllerWord:
    """Return what the controller said.

    Raises:
        WireError: The message is empty, of a newer kind, or breaks its contract.
    """
    match message.WhichOneof("body"):
        case "desired":
            return DESIRED.from_wire(message.desired)
        case "welcome":
            return WELCOME.from_wire(message.welcome)
    raise WireError("ControllerMessage.body is empty or of a kind this version does not know")
