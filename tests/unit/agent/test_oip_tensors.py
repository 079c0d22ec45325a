"""Claims about tensors of the Open Inference Protocol: what goes in is what comes out, and nothing but it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as some

from tests.support.documents import release
from tests.support.oip import NUMBERS, as_contents, request_of, sample
from vedette.agent.adapters.oip.errors import NotOffered
from vedette.agent.adapters.oip.tensors import DATATYPES, Interface, to_raw
from vedette.agent.domain.errors import InvalidRequest
from vedette.models.release import TensorSpec
from vedette.wire.oip import inference_pb2 as pb

_LIMIT = 2**20
_NAMES = (*NUMBERS, "bytes")


def _interface(*dtypes: str, shape: tuple[int, ...] = (-1, 4)) -> Interface:
    inputs, outputs = (tuple(TensorSpec(f"{side}_{t}", t, shape) for t in dtypes) for side in ("in", "out"))
    return Interface(release(inputs=inputs, outputs=outputs))


def _same(left: Any, right: Any) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and to_raw(left) == to_raw(right)


@pytest.mark.parametrize("dtype", _NAMES)
def test_raw_contents_are_read_as_they_were_written(dtype: str) -> None:
    array = sample(dtype, (5, 4))
    request = pb.ModelInferRequest(raw_input_contents=[to_raw(array)])
    request.inputs.add(name=f"in_{dtype}", datatype=DATATYPES[dtype], shape=array.shape)
    assert _same(_interface(dtype).read(request, _LIMIT)[f"in_{dtype}"], array)


@pytest.mark.parametrize("dtype", [name for name in _NAMES if name != "float16"])
def test_typed_contents_are_read_as_they_were_written(dtype: str) -> None:
    array = sample(dtype, (5, 4))
    request = pb.ModelInferRequest()
    as_contents(request, f"in_{dtype}", array)
    assert _same(_interface(dtype).read(request, _LIMIT)[f"in_{dtype}"], array)


def test_numbers_are_not_copied_on_the_way_in() -> None:
    request = request_of("m", {"in_float32": sample("float32", (3, 4))})
    read = _interface("float32").read(request, _LIMIT)["in_float32"]
    base = read
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert isinstance(base, bytes)


@given(
    some.text(max_size=300).filter(lambda text: "\ud800" not in text),
    some.integers(0, 70),
    some.lists(some.sampled_from(_NAMES), min_size=1, max_size=4, unique=True),
)
def test_an_answer_is_the_message_that_the_classes_would_write(request_id: str, rows: int, dtypes: list[str]) -> None:
    outputs = {f"out_{dtype}": sample(dtype, (rows, 4)) for dtype in dtypes}
    interface = _interface(*dtypes)
    for _ in range(2):  # the second time from what was kept
        found = pb.ModelInferResponse.FromString(interface.answer("slot", request_id, outputs, list(outputs)))
        wanted = pb.ModelInferResponse(model_name="slot", model_version="3", id=request_id)
        for name, array in outputs.items():
            datatype = DATATYPES[name.removeprefix("out_")]
            wanted.outputs.add(name=name, datatype=datatype, shape=array.shape)
            wanted.raw_output_contents.append(to_raw(array))
        assert found == wanted


def parse(data: bytes) -> None:
    """Read whatever bytes as a request; for the fuzzing of all parsers. Raises only what a caller is told."""
    kinds = _interface(*_NAMES), _interface("bytes", shape=(-1,)), _interface("float32", shape=(-1, -1))
    try:
        request = pb.ModelInferRequest.FromString(data)
    except DecodeError:  # protobuf's own, and not this parser's business
        return
    for interface in kinds:
        try:
            interface.read(request, _LIMIT)
            interface.wanted(request)
        except (InvalidRequest, NotOffered):
            continue


_TENSORS = some.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=some.sampled_from([f"in_{name}" for name in _NAMES]),
    datatype=some.sampled_from([*DATATYPES.values(), "BF16", ""]),
    shape=some.lists(some.integers(-1, 9) | some.integers(-(2**63), 2**63 - 1), max_size=3),
)


@given(some.lists(_TENSORS, max_size=4), some.lists(some.binary(max_size=64), max_size=4))
def test_whatever_is_sent_is_read_or_refused(inputs: list[Any], raw: list[bytes]) -> None:
    parse(pb.ModelInferRequest(inputs=inputs, raw_input_contents=raw).SerializeToString())


@given(some.lists(some.binary(max_size=20), max_size=8), some.integers(0, 9), some.binary(max_size=3))
def test_strings_are_split_only_when_they_fill_their_bytes(items: list[bytes], count: int, over: bytes) -> None:
    data = b"".join(len(item).to_bytes(4, "little") + item for item in items) + over
    request = pb.ModelInferRequest(raw_input_contents=[data])
    request.inputs.add(name="in_bytes", datatype="BYTES", shape=[count])
    interface = _interface("bytes", shape=(-1,))
    if count == len(items) and not over:
        assert interface.read(request, _LIMIT)["in_bytes"].tolist() == items
    else:
        with pytest.raises(InvalidRequest, match=r"BYTES|element"):
            interface.read(request, _LIMIT)
