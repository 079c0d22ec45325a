import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.models.documents import (
    DocumentError,
    Fields,
    canonical_json,
    check_digest,
    digest_of,
    parse_json,
    time_text,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_a_value_has_one_form_and_reads_back(value):
    data = canonical_json(value)
    assert parse_json(data, "value") == value
    assert canonical_json(parse_json(data, "value")) == data


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=2, max_size=6))
def test_the_order_of_keys_does_not_matter(value):
    try:
        forward = canonical_json(value)
    except DocumentError:
        return  # lone surrogates have no UTF-8 form
    assert canonical_json(dict(reversed(value.items()))) == forward


@pytest.mark.parametrize(
    "data",
    [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1.0e0}', b'{"a":1,"a":2}', b'["\\u0041"]', b" {}", b"", b"\xff", b"{"],
)
def test_any_other_form_is_refused(data):
    with pytest.raises(DocumentError):
        parse_json(data, "value")


def test_size_is_checked_before_anything_is_parsed():
    with pytest.raises(DocumentError, match="is 11 bytes, limit 10"):
        parse_json(b"x" * 11, "value", limit=10)


def test_deep_nesting_is_refused_and_not_a_crash():
    with pytest.raises(DocumentError):
        parse_json(b"[" * 100_000 + b"]" * 100_000, "value")


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", {1, 2}, "\ud800"])
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(DocumentError):
        canonical_json(value)


def test_a_digest_names_the_bytes():
    assert digest_of(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert check_digest(digest_of(b"")) == digest_of(b"")


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 64, "sha256:" + "a" * 64 + "\n"])
def test_only_a_digest_passes_for_one(text):
    with pytest.raises(DocumentError):
        check_digest(text)


def test_times_are_written_in_utc_whatever_zone_they_came_in():
    paris = timezone(timedelta(hours=1))
    assert time_text(datetime(2026, 1, 1, 1, tzinfo=paris)) == "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "x is a list"),
        ({}, "x.a is absent"),
        ({"a": 1}, "x.a is a int, not a str"),
        ({"a": ""}, "x.a is 0 characters"),
        ({"a": "y" * 129}, "x.a is 129 characters, limits 1 and 128"),
        ({"a": "b", "z": 1}, "unknown fields z"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_limit(value, message):
    with pytest.raises(DocumentError, match=message):
        Fields(value, "x", ["a"]).text("a")


def test_true_is_no_number():
    with pytest.raises(DocumentError, match="bool"):
        Fields({"a": True}, "x", ["a"]).whole("a")


@pytest.mark.parametrize("text", ["yesterday", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00+01:00"])
def test_a_time_in_any_other_form_is_refused(text):
    with pytest.raises(DocumentError):
        Fields({"a": text}, "x", ["a"]).time("a")


def test_a_time_reads_back():
    at = datetime(2026, 11, 23, 10, 57, 41, 120, tzinfo=UTC)
    assert Fields({"a": time_text(at)}, "x", ["a"]).time("a") == at
