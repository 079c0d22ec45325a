"""Hypothesis strategies of everything that travels, within its limits."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=16)
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: st.integers(0, 2**32 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=32),
    datetime: TIMES,
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of values of a field's or dataclass's type, lists and maps of at most three entries."""
    if get_origin(annotation) is Annotated:
        return values_of(get_args(annotation)[0])
    origin, arms = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return st.one_of(*(st.none() if arm is types.NoneType else values_of(arm) for arm in arms))
    if origin is tuple:
        return st.lists(values_of(arms[0]), max_size=3).map(tuple)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(TEXTS, values_of(arms[1]), max_size=3)
    if is_dataclass(annotation) and isinstance(annotation, type):
        hints = get_type_hints(annotation, include_extras=True)
        return st.builds(annotation, **{item.name: values_of(hints[item.name]) for item in fields(annotation)})
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return st.sampled_from(annotation)
    return _PLAIN[annotation]
