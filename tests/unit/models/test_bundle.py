import contextlib
import hashlib
import io
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.models.bundle import (
    MAGIC,
    MAX_HEADER_BYTES,
    MAX_PARTS,
    Bundle,
    BundleError,
    Part,
    PartKind,
    document,
    prefix,
)
from vedette.models.documents import canonical_json, digest_of
from vedette.models.signing import MAX_ENVELOPE_BYTES

ASSIGNMENT, RELEASE, MODEL = b"assignment", b"release", b"model" * 1000
PARTS = (
    (document(PartKind.ASSIGNMENT, ASSIGNMENT, "a1"), ASSIGNMENT),
    (document(PartKind.RELEASE, RELEASE), RELEASE),
    (Part("blob", digest_of(MODEL), len(MODEL)), MODEL),
)


def whole(parts=PARTS):
    return prefix([part for part, _ in parts]) + b"".join(body for _, body in parts)


def with_header(value, rest=b""):
    header = value if isinstance(value, bytes) else canonical_json(value)
    return MAGIC + len(header).to_bytes(4, "big") + hashlib.sha256(header).digest() + header + rest


def parts_of(data):
    return [(part, b"".join(pieces)) for part, pieces in Bundle(io.BytesIO(data))]


def parse(data):
    """Read a bundle to its end: what the fuzzers drive."""
    for _, pieces in Bundle(io.BytesIO(data)):
        for _ in pieces:
            pass


WHOLE = whole()


def test_what_was_written_is_read():
    assert parts_of(WHOLE) == [*PARTS]


def test_a_reader_that_takes_nothing_still_checks_all_of_it():
    bundle = Bundle(io.BytesIO(WHOLE))
    assert [part.kind for part, _ in bundle] == ["assignment", "release", "blob"]
    assert bundle.done == bundle.bytes == len(WHOLE)
    damaged = WHOLE[:-1] + b"x"
    with pytest.raises(BundleError, match="damaged on the way"):
        list(Bundle(io.BytesIO(damaged)))


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_anywhere_is_refused(size):
    with pytest.raises(BundleError):
        parse(WHOLE[:size])


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(place, change):
    spoiled = bytearray(WHOLE)
    spoiled[place] ^= change
    with pytest.raises(BundleError):
        parse(bytes(spoiled))


@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_refused_and_nothing_else_happens(data, is_header):
    with contextlib.suppress(BundleError):
        parse(with_header(data) if is_header else data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["format", "parts", "kind", "digest", "size", "agent"]), inner, max_size=4
            )
        ),
    )
)
def test_any_json_as_header_is_read_or_refused(value):
    with contextlib.suppress(BundleError):
        parse(with_header({"format": 1, "parts": value}))
        parse(with_header(value))


def test_what_goes_on_behind_the_last_part_is_refused():
    with pytest.raises(BundleError, match="goes on behind its last part"):
        parse(WHOLE + b"x")


def test_a_later_format_says_what_to_do():
    with pytest.raises(BundleError, match="format 2, this version reads 1: update"):
        parse(WHOLE.replace(MAGIC, MAGIC[:-1] + b"\x02"))


def test_a_header_over_the_limit_is_refused_before_it_is_read():
    said = MAGIC + (MAX_HEADER_BYTES + 1).to_bytes(4, "big") + bytes(32)
    source = io.BytesIO(said + bytes(100))
    with pytest.raises(BundleError, match=f"limit {MAX_HEADER_BYTES}"):
        Bundle(source)
    assert source.tell() == len(said)


def test_an_unknown_part_is_passed_over_when_it_is_optional():
    note = b"enrolment of a later version"
    later = Part("enrolment", digest_of(note), len(note), is_optional=True)
    data = whole(((later, note), *PARTS))
    assert [part.kind for part, _ in parts_of(data)] == ["enrolment", "assignment", "release", "blob"]


def test_an_unknown_part_that_matters_refuses_the_file():
    part = Part("enrolment", digest_of(b"x"), 1)
    with pytest.raises(BundleError, match="holds enrolment, which this version does not know"):
        parse(whole(((part, b"x"),)))


def test_a_part_may_say_more_than_this_version_reads():
    entry = {"kind": "blob", "digest": digest_of(b"x"), "size": 1, "colour": "blue"}
    assert parts_of(with_header({"format": 1, "parts": [entry]}, b"x")) == [(Part("blob", digest_of(b"x"), 1), b"x")]


@pytest.mark.parametrize(("first", "second"), [(2, 0), (2, 1), (1, 0)])
def test_parts_out_of_their_order_are_refused(first, second):
    with pytest.raises(BundleError, match="the order is assignment, release, blob"):
        prefix([PARTS[first][0], PARTS[second][0]])


def test_a_document_over_its_limit_is_refused_before_it_is_read():
    part = Part("release", digest_of(b""), MAX_ENVELOPE_BYTES + 1)
    entry = {"kind": part.kind, "digest": part.digest, "size": part.size}
    with pytest.raises(BundleError, match=f"limit {MAX_ENVELOPE_BYTES}"):
        Bundle(io.BytesIO(with_header({"format": 1, "parts": [entry]})))


def test_more_parts_than_the_limit_are_neither_written_nor_read():
    part = PARTS[2][0]
    with pytest.raises(BundleError, match="select fewer appliances"):
        prefix([part] * (MAX_PARTS + 1))
    entry = {"kind": "blob", "digest": part.digest, "size": 1}
    with pytest.raises(BundleError, match=f"limit {MAX_PARTS}"):
        Bundle(io.BytesIO(with_header({"format": 1, "parts": [entry] * (MAX_PARTS + 1)})))


class Zeros:
    """A pipe that says it has two gigabytes, and does."""

    def __init__(self, head):
        self._head = io.BytesIO(head)
        self._zeros = bytes(1 << 20)
        self.left = 64 << 20

    def read(self, size):
        if data := self._head.read(size):
            return data
        size = min(size, self.left, len(self._zeros))
        self.left -= size
        return self._zeros[:size]


def test_memory_stays_small_however_large_a_blob_is():
    size = 64 << 20
    digest = "sha256:" + hashlib.sha256(bytes(size)).hexdigest()
    source = Zeros(with_header({"format": 1, "parts": [{"kind": "blob", "digest": digest, "size": size}]}))
    tracemalloc.start()
    try:
        assert [part.size for part, _ in Bundle(source)] == [size]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
