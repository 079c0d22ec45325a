from __future__ import annotations

import fcntl
import os
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.tiny_models import FILTER_INPUTS, FILTER_OUTPUTS, FLOW_INPUTS, FLOW_OUTPUTS, flow_outputs, flow_rows
from vedette.agent.adapters.inference.ring import AREAS, Area, Plan, RingError, create_ring
from vedette.agent.domain.errors import InvalidRequest, ModelRefused
from vedette.models.release import TensorSpec


def plan(max_rows: int = 8) -> Plan:
    return Plan.of(FLOW_INPUTS, FLOW_OUTPUTS, max_rows=max_rows, variable_bytes=1024)


def areas(of: Plan) -> tuple[Area, ...]:
    descriptor, made = create_ring(of)
    os.close(descriptor)
    return made


def test_what_one_side_writes_the_other_reads_and_areas_are_apart() -> None:
    layout = plan()
    descriptor, mine = create_ring(layout)
    from vedette.agent.adapters.inference.ring import attach_ring

    theirs = attach_ring(layout, descriptor)
    os.close(descriptor)
    for index in range(AREAS):
        rows = flow_rows(5, seed=index)
        mine[index].write_inputs([({"features": rows}, 1, 4)])
        assert theirs[index].read_shape(0, layout.inputs[0]) == (3, 4)
        for place, (tensor, array) in enumerate(zip(layout.outputs, flow_outputs(rows).values(), strict=True)):
            theirs[index].write_output(place, tensor, array)
    for index in range(AREAS):
        rows = flow_rows(5, seed=index)
        np.testing.assert_array_equal(theirs[index].place(layout.inputs[0], (3, 4)), rows[1:4])
        got, want = mine[index].read_outputs(), flow_outputs(rows)
        assert all(np.array_equal(got[name], want[name]) for name in want)


def test_the_ring_cannot_be_resized_by_anyone() -> None:
    descriptor, _ = create_ring(plan())
    try:
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "claimed", [(9,), (-1,), (2**62,), (-(2**63),)], ids=["over the capacity", "negative", "huge", "least"]
)
def test_a_shape_the_worker_made_up_is_refused_before_the_data_is_read(claimed: tuple[int, ...]) -> None:
    layout = plan(max_rows=8)
    area = areas(layout)[0]
    area.shapes[1, :1] = claimed
    with pytest.raises(RingError, match="score"):
        area.read_outputs()


def test_a_fixed_axis_the_worker_changed_is_refused() -> None:
    area = areas(plan())[0]
    area.shapes[1:, 0] = 1
    area.shapes[3, 1] = 3
    with pytest.raises(RingError, match=r"'probabilities' has shape \[1, 3\], the model's is \[-1, 2\]"):
        area.read_outputs()


def test_the_workers_words_are_bounded_and_printable() -> None:
    area = areas(plan())[0]
    area.write_text("a\x1b[31m\n" + "ä" * 5000)
    text = area.read_text()
    assert text.startswith("a [31m ")
    assert len(text.encode()) <= 1030
    assert text.replace("�", "").isprintable()


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, r"inputs are \[\], the model's are \['features'\]"),
        ({"other": flow_rows(1)}, r"inputs are \['other'\]"),
        ({"features": flow_rows(1), "more": flow_rows(1)}, "more"),
        ({"features": flow_rows(1).astype(np.float64)}, "is float64, the model's is float32"),
        ({"features": flow_rows(3)[:, :3]}, r"has shape \[1, 3\], the model's is \[-1, 4\]"),
        ({"features": flow_rows(3)[0]}, r"has shape \[1\], the model's is \[-1, 4\]"),
        ({"features": np.float32(1.0)}, r"has shape \[\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_value_and_limit(inputs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        plan().rows(inputs)


def test_a_scalar_for_a_vector_of_rows_is_refused() -> None:
    layout = Plan.of([TensorSpec("x", "float32", (-1,))], FLOW_OUTPUTS, max_rows=4, variable_bytes=64)
    with pytest.raises(InvalidRequest, match=r"has shape \[\]"):
        layout.rows({"x": np.array(1.0, np.float32)})


def test_inputs_of_different_row_counts_are_refused() -> None:
    layout = Plan.of(FILTER_INPUTS, FILTER_OUTPUTS, max_rows=8, variable_bytes=1024)
    with pytest.raises(InvalidRequest, match="has 3 rows, another input has 2"):
        layout.rows({"x": np.zeros((2, 2), np.float32), "keep": np.zeros(3, np.bool_)})


def test_a_tensor_larger_than_its_place_is_refused() -> None:
    layout = Plan.of(FILTER_INPUTS, FILTER_OUTPUTS, max_rows=8, variable_bytes=1024)
    with pytest.raises(InvalidRequest, match="is 2048 bytes, limit 1024"):
        layout.rows({"x": np.zeros((2, 256), np.float32), "keep": np.zeros(2, np.bool_)})


def test_a_ring_without_end_is_refused() -> None:
    with pytest.raises(ModelRefused, match="limit 1073741824"):
        Plan.of([TensorSpec("x", "float32", (1000, 100_000))], FLOW_OUTPUTS, max_rows=4096, variable_bytes=64)


def test_a_batch_of_wide_rows_is_as_many_as_an_area_of_a_few_megabytes_holds() -> None:
    picture = TensorSpec("picture", "float32", (-1, 3, 224, 224))
    layout = Plan.of([picture], [TensorSpec("score", "float32", (-1,))], max_rows=4096, variable_bytes=64)
    assert layout.max_rows == 27
    assert layout.size < 70 * 1024 * 1024
    assert Plan.of([picture], [], max_rows=layout.max_rows, variable_bytes=64).max_rows == 27


def test_nothing_is_cut_or_joined_of_a_model_that_answers_a_request_as_a_whole() -> None:
    specs = [TensorSpec("x", "float32", (-1, 2))], [TensorSpec("y", "float32", (-1, 2))]
    by_rows = Plan.of(*specs, max_rows=8, variable_bytes=1024)
    assert by_rows.joinable
    whole = Plan.of(*specs, max_rows=8, variable_bytes=1024, row_wise=False)
    assert not whole.joinable
    assert not whole.divisible
    assert whole.rows({"x": np.zeros((100, 2), np.float32)}) == 1
    with pytest.raises(InvalidRequest, match="is 1032 bytes, limit 1024"):
        whole.rows({"x": np.zeros((129, 2), np.float32)})


TEXT = TensorSpec("text", "bytes", (-1, 2))


def text_area() -> tuple[Plan, Area]:
    layout = Plan.of([TEXT], [TensorSpec("said", "bytes", (-1, 2))], max_rows=8, variable_bytes=64)
    return layout, areas(layout)[0]


def strings(*rows: tuple[object, object]) -> npt.NDArray[Any]:
    made = np.empty((len(rows), 2), object)
    for index, row in enumerate(rows):
        made[index, :] = row
    return made


def test_strings_come_back_as_they_were() -> None:
    layout, area = text_area()
    rows = strings((b"", "\u00e9\0x".encode()), (b"abc", b"\n"))
    area.write_inputs([({"text": rows}, 0, 2)])
    got = area.read_strings(layout.inputs[0], area.read_shape(0, layout.inputs[0]))
    assert (got.shape, got.tolist()) == ((2, 2), rows.tolist())


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (("word", b""), "element 0 of 'text' is str, strings come as bytes"),
        ((b"", b"\xff"), "element 1 of 'text' is no UTF-8"),
        ((b"", b"x" * 49), "take 57 bytes, limit 56"),
    ],
)
def test_strings_that_do_not_fit_are_refused(row: tuple[object, object], match: str) -> None:
    _, area = text_area()
    with pytest.raises(InvalidRequest, match=match):
        area.write_inputs([({"text": strings(row)}, 0, 1)])


@pytest.mark.parametrize(
    ("packed", "match"),
    [
        (struct.pack("<Q", 57), "claims 57 bytes, limit 56"),
        (struct.pack("<Q", 2**63), "claims"),
        (struct.pack("<QI", 4, 0), "fewer than 2 strings"),
        (struct.pack("<QII", 8, 0, 9), "2 strings in 17 bytes of 8"),
        (struct.pack("<QIII", 12, 0, 0, 0), "2 strings in 8 bytes of 12"),
    ],
    ids=["more than its place", "huge", "too few", "a length beyond the end", "too many"],
)
def test_strings_the_worker_made_up_are_refused(packed: bytes, match: str) -> None:
    layout, area = text_area()
    area.shapes[1, :2] = (1, 2)
    output = layout.outputs[0]
    start = output.offset
    area._memory[start : start + len(packed)] = packed
    with pytest.raises(RingError, match=match):
        area.read_outputs()


def test_parts_of_several_requests_lie_one_behind_the_other() -> None:
    layout = plan()
    area = areas(layout)[0]
    first, second = flow_rows(3, seed=1), flow_rows(9, seed=2)
    area.write_inputs([({"features": first}, 0, 3), ({"features": second}, 4, 6)])
    assert area.read_shape(0, layout.inputs[0]) == (5, 4)
    np.testing.assert_array_equal(area.place(layout.inputs[0], (5, 4)), np.concatenate([first, second[4:6]]))


def test_only_outputs_that_there_are_can_be_asked_for() -> None:
    assert plan().chosen(["label"]) == b"\0\1\0"
    assert plan().chosen(["label", "score", "probabilities"]) == b""
    with pytest.raises(InvalidRequest, match=r"no outputs \['labels'\], the model's are \['score'"):
        plan().chosen(["labels"])
