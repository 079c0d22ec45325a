"""Claims about cutting a log's bytes into lines."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vedette.models.flows.log_lines import LineSplitter


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    st.binary(max_size=300).map(lambda data: data.replace(b"\x01", b"\n")), st.lists(st.integers(0, 400), max_size=9)
)
def test_however_the_bytes_come_the_lines_are_the_same_and_none_is_over_the_limit(data: bytes, cuts: list[int]) -> None:
    splitter = LineSplitter(limit=20)
    lines = [line for piece in pieces(data, cuts) for line in splitter.feed(piece)]
    *whole, rest = data.split(b"\n")
    assert lines == [line for line in whole if len(line) <= 20]
    assert splitter.too_long == sum(len(line) > 20 for line in (*whole, rest))
    assert splitter.held_bytes == (len(rest) if len(rest) <= 20 else 0)
    assert splitter.finish() == ([rest] if 0 < len(rest) <= 20 else [])


def test_a_line_that_never_ends_is_not_held() -> None:
    splitter = LineSplitter(limit=1000)
    for _ in range(100):
        assert splitter.feed(b"x" * 999) == []
        assert splitter.held_bytes <= 1000
    assert splitter.feed(b"end\nnext\n") == [b"next"]
    assert splitter.too_long == 1


def test_reading_from_the_middle_begins_with_the_next_line() -> None:
    splitter = LineSplitter()
    splitter.skip()
    assert splitter.feed(b"rest of a line\nwhole\n") == [b"whole"]
    assert splitter.too_long == 0
    splitter.feed(b"half")
    splitter.clear()
    assert splitter.feed(b"new\n") == [b"new"]
