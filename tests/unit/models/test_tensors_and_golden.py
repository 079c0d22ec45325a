import contextlib
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vedette.models.golden import Golden, Sample, mismatch
from vedette.models.release import Tolerance
from vedette.models.tensors import MAX_TENSOR_FILE_BYTES, TensorFileError, dump_tensors, load_tensors

EXACT = Tolerance(0.0, 0.0)
arrays = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<u4", "|u1", "|b1"]).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
FILE = dump_tensors({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([1, 2], np.int64)})


@given(st.dictionaries(st.text(max_size=6).filter(lambda name: name != "__metadata__"), arrays, max_size=4))
def test_arrays_read_back_bit_for_bit(named):
    try:
        data = dump_tensors(named)
    except UnicodeEncodeError:
        return
    again = load_tensors(data)
    assert {name: array.tobytes() for name, array in again.items()} == {n: a.tobytes() for n, a in named.items()}
    assert all(again[name].dtype == named[name].dtype and again[name].shape == named[name].shape for name in named)


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_spoiled_file_is_arrays_or_a_typed_error(place, change):
    spoiled = bytearray(FILE)
    spoiled[place] ^= change
    with contextlib.suppress(TensorFileError):
        load_tensors(bytes(spoiled))


@given(st.integers(0, len(FILE) - 1))
def test_a_cut_file_is_refused(length):
    with pytest.raises(TensorFileError):
        load_tensors(FILE[:length])


def with_header(header: object) -> bytes:
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + bytes(16)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "OBJ", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": "F32"},
        7,
    ],
)
def test_a_header_that_lies_is_refused(entry):
    with pytest.raises(TensorFileError):
        load_tensors(with_header({"x": entry}))


def test_a_header_longer_than_the_file_is_refused_before_it_is_read():
    with pytest.raises(TensorFileError, match="header of"):
        load_tensors((2**60).to_bytes(8, "little") + b"{}")


def test_size_is_checked_first():
    with pytest.raises(TensorFileError, match=str(MAX_TENSOR_FILE_BYTES)):
        load_tensors(bytes(MAX_TENSOR_FILE_BYTES + 1))


def test_an_array_of_other_objects_than_bytes_has_no_form():
    with pytest.raises(TensorFileError, match="object"):
        dump_tensors({"x": np.array([object()])})


def test_golden_samples_read_back():
    golden = Golden({"x": np.ones((3, 2), np.float32)}, {"score": np.zeros(3, np.float32)})
    again = Golden.from_bytes(golden.to_bytes())
    assert again.inputs["x"].shape == (3, 2)
    assert mismatch(golden.outputs, again.outputs, EXACT) is None


def test_several_golden_requests_of_other_shapes_read_back_in_their_order():
    later = tuple(Sample({"x": np.full(rows, rows)}, {"y": np.float64(rows)}) for rows in (1, 2, 11))
    golden = Golden({"x": np.ones(0)}, {"y": np.array(0.0)}, later)
    again = Golden.from_bytes(golden.to_bytes())
    assert [(sample.inputs["x"].tolist(), sample.outputs["y"].item()) for sample in again.samples] == [
        ([], 0.0),
        ([1], 1.0),
        ([2, 2], 2.0),
        ([11] * 11, 11.0),
    ]


@pytest.mark.parametrize("names", [("input.x", "output.y", "2/input.x", "2/output.y"), ("1/input.x", "1/output.y")])
def test_golden_requests_that_are_not_numbered_one_by_one_are_refused(names):
    with pytest.raises(TensorFileError):
        Golden.from_bytes(dump_tensors({name: np.ones(1) for name in names}))


def test_more_golden_requests_than_the_limit_are_refused():
    sample = Sample({"x": np.ones(1)}, {"y": np.ones(1)})
    with pytest.raises(TensorFileError, match="17 golden requests, limit 16"):
        Golden(sample.inputs, sample.outputs, (sample,) * 16)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({}, {"y": np.ones(1)}),
        ({"x": np.ones(1)}, {}),
        ({"x": np.ones(0)}, {"y": np.ones(0)}),
    ],
)
def test_golden_samples_of_nothing_are_refused(inputs, outputs):
    with pytest.raises(TensorFileError):
        Golden(inputs, outputs)


def test_a_golden_file_with_anything_else_in_it_is_refused():
    with pytest.raises(TensorFileError, match="neither input nor output"):
        Golden.from_bytes(dump_tensors({"input.x": np.ones(1), "output.y": np.ones(1), "z": np.ones(1)}))


WANT = np.array([1.0, 100.0, np.nan, np.inf], np.float32)


@pytest.mark.parametrize(
    ("got", "tolerance", "said"),
    [
        (WANT, EXACT, None),
        (np.array([1.0, 100.5, np.nan, np.inf], np.float32), Tolerance(0, 0.01), None),
        (np.array([1.0, 102.0, np.nan, np.inf], np.float32), Tolerance(0, 0.01), r"at \[1\] is 102.0, golden is 100.0"),
        (np.array([1.1, 100.0, np.nan, np.inf], np.float32), Tolerance(0.2, 0), None),
        (np.array([1.0, 100.0, 0.0, np.inf], np.float32), Tolerance(9, 0.5), r"at \[2\]"),
        (np.array([1.0, 100.0, np.nan, 3e38], np.float32), Tolerance(9, 0.5), r"at \[3\]"),
        (WANT.astype(np.float64), EXACT, "float64"),
        (WANT[:3], EXACT, r"\[3\]"),
    ],
)
def test_a_difference_is_named_with_its_place_and_both_values(got, tolerance, said):
    found = mismatch({"score": WANT}, {"score": got}, tolerance)
    assert found is None if said is None else re.search(said, found)


def test_whole_numbers_must_be_equal_whatever_the_tolerance():
    assert mismatch({"label": np.array([1])}, {"label": np.array([2])}, Tolerance(5, 1)) is not None


def test_a_missing_output_is_named():
    assert mismatch({"label": np.array([1])}, {}, EXACT) == "output 'label' is absent"


def _strings(*values):
    made = np.empty(len(values), object)
    made[:] = values
    return made


def test_strings_read_back_byte_for_byte():
    words = _strings(b"", b"a\0", "\u00e9".encode(), b"\xff").reshape(2, 2)
    back = load_tensors(dump_tensors({"words": words, "n": np.arange(3)}))
    assert (back["words"].shape, back["words"].tolist(), back["n"].tolist()) == ((2, 2), words.tolist(), [0, 1, 2])


@pytest.mark.parametrize(
    ("shape", "packed"),
    [([2], b"\0\0\0\0"), ([1], b"\5\0\0\0abc"), ([1], b"\1\0\0\0ab"), ([2**40], b""), ([0], b"x"), ([1], b"\0")],
    ids=["too few", "a length beyond the end", "bytes left over", "more than there are", "none and some", "cut length"],
)
def test_strings_that_lie_are_refused(shape, packed):
    header = json.dumps({"w": {"dtype": "BYTES", "shape": shape, "data_offsets": [0, len(packed)]}}).encode()
    with pytest.raises(TensorFileError):
        load_tensors(len(header).to_bytes(8, "little") + header + packed)


def test_strings_must_be_equal_and_the_first_that_is_not_is_named():
    exact = Tolerance(0.0, 0.0)
    assert mismatch({"w": _strings(b"a", b"b")}, {"w": _strings(b"a", b"b")}, exact) is None
    assert "at [1] is b'c', golden is b'b'" in mismatch({"w": _strings(b"a", b"b")}, {"w": _strings(b"a", b"c")}, exact)
