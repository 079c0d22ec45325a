"""Read template sets of NetFlow v9 and IPFIX into :class:`Template` values, within limits.

A template keeps the bytes it was defined with: they tell at once that a refresh changes nothing, and they are what is
saved. The layout is only compiled when data comes, so that defining many templates costs a hostile sender more than us.
Which exporter has which templates, and what happens to them, is for ``netflow`` to decide.

Source: RFC 3954 sections 5.2 and 6.1, RFC 7011 sections 3.4 and 8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from vedette.models.errors import ModelsError
from vedette.models.flows.layouts import VARIABLE_LENGTH, Field, Layout, LayoutError, check_fields

_PAIR = struct.Struct(">HH")
_WORD = struct.Struct(">I")
_FIRST_TEMPLATE_ID = 256
_ENTERPRISE_BIT = 0x8000


class Reason(StrEnum):
    """Why bytes of an exporter were not used; the names under which they are counted."""

    SHORT = "short"  # no whole header
    VERSION = "version"  # neither 5, 9 nor 10
    LENGTH = "length"  # the header promises more or fewer bytes than came
    SET_LENGTH = "set_length"  # a set shorter than its header or longer than the datagram
    RESERVED_SET = "reserved_set"  # a set id that no standard gives a meaning
    TOO_MANY_SETS = "too_many_sets"
    TEMPLATE_ID = "template_id"
    TEMPLATE_TRUNCATED = "template_truncated"
    TEMPLATE_EMPTY = "template_empty"  # its records would have no bytes
    TEMPLATE_FIELDS = "template_fields"  # more fields than the limit
    TEMPLATE_BYTES = "template_bytes"  # longer records than the limit
    TEMPLATE_SCOPE = "template_scope"  # scope and field counts contradict each other
    FIELD_LENGTH = "field_length"  # an element cannot have this length
    RECORD_LENGTH = "record_length"  # a variable-length field reaches past its set
    SAVED_TEMPLATES = "saved_templates"  # not what dump_templates() writes


class NetflowError(ModelsError):
    """An exporter's bytes do not say what they must.

    Attributes:
        exporter: Address it came from, as text.
        reason: Under which it is counted.
        what: The thing that is wrong, for a reader.
        value: What was found.
        limit: What was allowed or expected.
    """

    def __init__(self, reason: Reason, what: str, value: int, limit: int, exporter: str = "") -> None:
        super().__init__(f"{exporter or 'export'}: {what} is {value}, limit {limit}")
        self.exporter, self.reason, self.what, self.value, self.limit = exporter, reason, what, value, limit


@dataclass(frozen=True, slots=True)
class Limits:
    """What the decoder keeps and accepts at most.

    The defaults hold it to 60 MiB: measured with 8,192 templates of 256 fields, each different and each used.
    """

    states: int = 1024  # of an exporter at a source port; the longest silent goes first
    states_per_address: int = 64  # so that one sender cannot push out all others
    templates_per_state: int = 512
    templates: int = 8192  # over all of them
    template_fields: int = 256
    record_bytes: int = 16_384
    sets_per_datagram: int = 256
    samplers_per_state: int = 64  # rates by the id of a sampler; the longest not repeated goes first
    saved_bytes: int = 64 << 20


@dataclass(slots=True)
class Template:
    """One template as its exporter defined it."""

    definition: bytes  # the template record, header included
    version: int
    is_options: bool
    _layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """The compiled form, made when first asked for; equal templates of many exporters share one."""
        if self._layout is None:
            # The first two bytes are the id, which exporters choose as they like.
            self._layout = _layout(self.definition[2:], self.version, self.is_options)
        return self._layout


class _Specification(NamedTuple):
    """What a definition says; not kept, as it takes ten times the bytes."""

    bytes: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An IPFIX exporter takes back one template, or all of one kind when the id is that of the kind's set."""

    template_id: int
    is_options: bool


@lru_cache(maxsize=1024)
def _layout(definition: bytes, version: int, is_options: bool) -> Layout:
    said = _read_definition(b"\xff\xff" + definition, 0, version, is_options)
    return Layout(said.fields, version=version, options=is_options)


def read_templates(
    body: bytes, version: int, *, is_options: bool, known: dict[int, Template], limits: Limits
) -> Iterator[tuple[int, Template | Withdrawal | NetflowError]]:
    """Yield (template id, what its definition says) for each one of a template set; ``known``'s own where unchanged.

    A definition that is refused yields its error; when the next one cannot be found behind it, it is the last.
    """
    offset, end = 0, len(body)
    while end - offset >= _PAIR.size:
        template_id, count = _PAIR.unpack_from(body, offset)
        old = known.get(template_id)
        if old is not None and old.is_options == is_options and body.startswith(old.definition, offset):
            offset += len(old.definition)
            yield template_id, old
            continue
        if template_id == 0 and not any(body[offset:]):
            return  # padding
        if version == 10 and count == 0:
            offset += _PAIR.size
            yield template_id, Withdrawal(template_id, is_options)
            continue
        try:
            said = _read_definition(body, offset, version, is_options, limits.template_fields)
        except NetflowError as error:
            yield template_id, error
            return
        definition = body[offset : offset + said.bytes]
        offset += said.bytes
        fault = _fault(said, limits, options=is_options)
        yield template_id, fault or Template(definition, version, is_options)


def _read_definition(
    body: bytes, start: int, version: int, is_options: bool, max_fields: int = 0xFFFF
) -> _Specification:
    """Return what the definition at ``start`` says.

    Raises:
        NetflowError: It has a set's id, too many fields, or reaches past the set.
    """
    template_id, count = _PAIR.unpack_from(body, start)
    if template_id < _FIRST_TEMPLATE_ID:
        raise NetflowError(Reason.TEMPLATE_ID, "template id", template_id, _FIRST_TEMPLATE_ID)
    offset = start + _PAIR.size
    if is_options:
        if len(body) - offset < 2:
            raise NetflowError(Reason.TEMPLATE_TRUNCATED, "bytes of an options template", len(body) - start, 6)
        second = int.from_bytes(body[offset : offset + 2], "big")
        offset += 2
        count = _option_fields(version, count, second)
    if count > max_fields:
        raise NetflowError(Reason.TEMPLATE_FIELDS, f"fields of template {template_id}", count, max_fields)
    offset, fields = _read_fields(body, offset, count, version)
    return _Specification(offset - start, fields)


def _option_fields(version: int, first: int, second: int) -> int:
    """Return how many fields an options template has, scope included."""
    if version == 9:  # both are lengths in bytes (RFC 3954 section 6.1)
        if first % 4 or second % 4:
            raise NetflowError(Reason.TEMPLATE_SCOPE, "length of v9 option fields modulo 4", first % 4 or second % 4, 0)
        return (first + second) // 4
    # "Scope Field Count MUST NOT be zero" (RFC 7011 section 3.4.2.2); that harms nobody, more scope than fields does.
    if second > first:
        raise NetflowError(Reason.TEMPLATE_SCOPE, "scope fields of an options template", second, first)
    return first


def _read_fields(body: bytes, offset: int, count: int, version: int) -> tuple[int, tuple[Field, ...]]:
    fields: list[Field] = []
    end = len(body)
    for _ in range(count):
        if end - offset < _PAIR.size:
            raise NetflowError(Reason.TEMPLATE_TRUNCATED, "whole fields of a template", len(fields), count)
        element, length = _PAIR.unpack_from(body, offset)
        offset += _PAIR.size
        enterprise = 0
        if version == 10 and element & _ENTERPRISE_BIT:
            if end - offset < _WORD.size:
                raise NetflowError(Reason.TEMPLATE_TRUNCATED, "whole fields of a template", len(fields), count)
            (enterprise,) = _WORD.unpack_from(body, offset)
            element &= ~_ENTERPRISE_BIT
            offset += _WORD.size
        fields.append(Field(element, length, enterprise))
    return offset, tuple(fields)


def _fault(said: _Specification, limits: Limits, *, options: bool) -> NetflowError | None:
    """Return why records of a definition cannot be read, or None when they can."""
    # A field of variable length has one byte at least, which says its length. The standard of v9 knows none, H3C's
    # NetStream sends them; of their own length they would not fit a datagram.
    size = sum(1 if field.length == VARIABLE_LENGTH else field.length for field in said.fields)
    if size == 0:
        return NetflowError(Reason.TEMPLATE_EMPTY, "bytes of a template's records", 0, 1)
    if size > limits.record_bytes:
        return NetflowError(Reason.TEMPLATE_BYTES, "bytes of a template's records", size, limits.record_bytes)
    try:
        check_fields(said.fields, options=options)
    except LayoutError as error:
        return NetflowError(Reason.FIELD_LENGTH, error.what, error.value, error.limit)
    return None
