"""Claims about every parser of bytes that others wrote: it reads them or refuses them, in words that can be told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

_EXTREMES = (
    *(0, -1, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**53, 2**63, 2**64, 10**400, -(10**400)),
    *(1e308, -1e308, 5e-324, float("inf"), float("nan"), None, True, "", "\0", "\ud800", "a" * 2000, [], {}, [[]] * 40),
    *("0001-01-01T00:00:00.000000Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "sha256:" + "0" * 64),
)
_TOKENS = (
    b"\0",
    b"\xff" * 8,
    b"\xec\x41",
    b"[" * 300,
    b"{",
    b'"',
    b"\n",
    b"\r\n\r\n",
    b"-",
    b"e999",
    b"9" * 30,
    b"#",
    b"=",
)


def _edited(draw: Any, data: bytes, others: tuple[bytes, ...]) -> bytes:
    """Return bytes after one edit: a flip, a cut, something put in, a splice, a piece twice."""
    at = draw(st.integers(0, len(data)))
    end = min(at + draw(st.sampled_from([1, 1, 2, 4, 8, 60])), len(data))
    match draw(st.sampled_from(["set", "drop", "token", "splice", "twice", "cut"])):
        case "set":
            return data[:at] + draw(st.binary(min_size=end - at, max_size=end - at)) + data[end:]
        case "drop":
            return data[:at] + data[end:]
        case "token":
            return data[:at] + draw(st.sampled_from(_TOKENS)) + data[at:]
        case "splice":
            other = draw(st.sampled_from(others))
            return data[:at] + other[draw(st.integers(0, len(other))) :]
        case "twice":
            return data[:end] + data[at:]
        case _:
            return data[:at]


def _with_another_value(draw: Any, value: Any) -> Any:
    """Return a JSON value with one value, anywhere in it, made an extreme one, or a name changed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 9)):
            return {key: item for key, item in value.items() if key != name} | {draw(st.text(max_size=3)): value[name]}
        return value | {name: _with_another_value(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _with_another_value(draw, value[place]), *value[place + 1 :]]
    return draw(st.sampled_from(_EXTREMES))


@st.composite
def damaged(draw: Any, seeds: tuple[bytes, ...]) -> bytes:
    """Return what a parser reads, after a few edits; of JSON also after a change of its values."""
    data = draw(st.sampled_from(seeds))
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if isinstance(value, dict) and draw(st.booleans()):
        return json.dumps(_with_another_value(draw, value), sort_keys=True, separators=(",", ":")).encode()
    for _ in range(draw(st.integers(1, 4))):
        data = _edited(draw, data, seeds)
    return data


@pytest.mark.parametrize("name", targets.names())
def test_what_was_found_once_is_read_or_refused(name: str) -> None:
    target = targets.load(name)
    for data in (*target.seeds, *target.corpus()):
        target.feed(data)


@pytest.mark.parametrize("name", targets.names())
def test_whatever_is_read_is_read_or_refused(name: str) -> None:
    target = targets.load(name)

    @settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(target.seeds) | st.binary(max_size=200))
    def read_or_refused(data: bytes) -> None:
        target.feed(data)

    read_or_refused()


def test_every_kept_input_is_of_a_target_and_small() -> None:
    kept = [path for path in targets.CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in kept} <= set(targets.names())
    assert max(path.stat().st_size for path in kept) <= targets.MOST_BYTES
    assert sum(path.stat().st_size for path in kept) <= 300_000


def test_a_parser_that_breaks_its_word_is_found() -> None:
    def parse(data: bytes) -> None:
        if data == b"hang on":
            raise KeyError(data)
        if data:
            raise ValueError("\ud800" if data == b"half" else "a" * len(data))

    target = targets.Target("lies", parse, (ValueError,), (b"",))
    target.feed(b"short")
    with pytest.raises(KeyError):
        target.feed(b"hang on")
    with pytest.raises(targets.Unfit, match="no UTF-8"):
        target.feed(b"half")
    with pytest.raises(targets.Unfit, match="of 5000 characters"):
        target.feed(bytes(5000))
