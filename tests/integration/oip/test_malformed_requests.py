"""Claims about requests that are wrong: each in one way, with the exact status and text; and the server goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.support.oip import NUMBERS, Client, as_contents, request_of, sample
from tests.support.tiny_models import flow_rows
from vedette.wire.oip import inference_pb2 as pb

INVALID, MISSING = "INVALID_ARGUMENT", "NOT_FOUND"
Spoil = Callable[[pb.ModelInferRequest], Any]


def _flow() -> pb.ModelInferRequest:
    """Return a good raw request of two rows."""
    return request_of("flow-threat", {"features": flow_rows(2)})


def _typed(field: str, values: list[Any], *, datatype: str = "FP32", shape: list[int] | None = None) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        tensor = request.inputs[0]
        tensor.datatype = datatype
        if shape is not None:
            _shape(request, shape)
        getattr(tensor.contents, field).extend(values)

    return spoil


def _shape(request: pb.ModelInferRequest, shape: list[int]) -> None:
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)


def _raw(request: pb.ModelInferRequest, data: bytes) -> None:
    request.raw_input_contents[0] = data


def _both_inputs_and_contents(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend([0.0] * 8)


def _twice(request: pb.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _another(request: pb.ModelInferRequest) -> None:
    request.inputs.add(name="more", datatype="FP32", shape=[2, 4])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _no_inputs(request: pb.ModelInferRequest) -> None:
    del request.inputs[:]
    del request.raw_input_contents[:]


def _many_inputs(request: pb.ModelInferRequest) -> None:
    for number in range(5000):
        request.inputs.add(name=f"i{number}", datatype="FP32", shape=[2, 4])
        request.raw_input_contents.append(b"")


def _many_parameters(request: pb.ModelInferRequest) -> None:
    for number in range(65):
        request.parameters[f"p{number}"].int64_param = number


def _shared(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"


def _shared_output(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="score").parameters["shared_memory_region"].string_param = "r"


def _classified(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="score").parameters["classification"].int64_param = 2


def _outputs(*names: str) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        for name in names:
            request.outputs.add(name=name)

    return spoil


def _set(**fields: Any) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        for name, value in fields.items():
            setattr(request, name, value)

    return spoil


def _input(**fields: Any) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        for name, value in fields.items():
            setattr(request.inputs[0], name, value)

    return spoil


def _timeout(**choice: Any) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        request.parameters["timeout"].CopyFrom(pb.InferParameter(**choice))

    return spoil


_TAKES = "flow-threat:1 takes ['features']"
_ANY = "the model's is [-1, 4] (-1 is any length)"
_HAS = "it has ['score', 'label', 'probabilities']"
_MODELS = "there are ['echo', 'flow-threat']"
_I, _F, _C = "input 'features'", "of FP32", "fp32_contents"
_NO_TYPE = "(no datatype of the protocol), the model's is 'FP32'"
_VERSION = "of 'flow-threat' is not served here; version 1 is"
_ONE = ": one for each input, or none"
_BOTH = "raw_input_contents is there too: one or the other"
_NOT = ", an extension this server does not have"
_US = "expected int64_param: microseconds"
_LIMIT = "limit 67108864 (inference.max_message)"

FLOW_ROWS: list[tuple[str, Spoil, str, str]] = [
    # The model and its version
    ("no model", _set(model_name=""), MISSING, f"no model '' is here; {_MODELS}"),
    ("unknown model", _set(model_name="nobody"), MISSING, f"no model 'nobody' is here; {_MODELS}"),
    ("model in other case", _set(model_name="Flow-Threat"), MISSING, f"no model 'Flow-Threat' is here; {_MODELS}"),
    ("model with a space", _set(model_name="flow-threat "), MISSING, f"no model 'flow-threat ' is here; {_MODELS}"),
    ("model as a path", _set(model_name="../echo"), MISSING, f"no model '../echo' is here; {_MODELS}"),
    ("endless model name", _set(model_name="x" * 9000), MISSING, f"no model '{'x' * 80}' is here; {_MODELS}"),
    ("newline in the name", _set(model_name="a\nb"), MISSING, f"no model 'a\\nb' is here; {_MODELS}"),
    ("nul in the name", _set(model_name="a\0b"), MISSING, f"no model 'a\\x00b' is here; {_MODELS}"),
    ("version to come", _set(model_version="2"), MISSING, f"version '2' {_VERSION}"),
    ("version nought", _set(model_version="0"), MISSING, f"version '0' {_VERSION}"),
    ("version below", _set(model_version="-1"), MISSING, f"version '-1' {_VERSION}"),
    ("version padded", _set(model_version="01"), MISSING, f"version '01' {_VERSION}"),
    ("version a word", _set(model_version="latest"), MISSING, f"version 'latest' {_VERSION}"),
    # Names and numbers of inputs
    ("no inputs", _no_inputs, INVALID, f"inputs ['features'] are missing; {_TAKES}"),
    ("input without name", _input(name=""), INVALID, f"input '' is not the model's; {_TAKES}"),
    ("unknown input", _input(name="x"), INVALID, f"input 'x' is not the model's; {_TAKES}"),
    ("input in other case", _input(name="Features"), INVALID, f"input 'Features' is not the model's; {_TAKES}"),
    ("endless input name", _input(name="y" * 9000), INVALID, f"input '{'y' * 80}' is not the model's; {_TAKES}"),
    ("an output as input", _input(name="score"), INVALID, f"input 'score' is not the model's; {_TAKES}"),
    ("input twice", _twice, INVALID, f"{_I} is there twice"),
    ("one input more", _another, INVALID, f"input 'more' is not the model's; {_TAKES}"),
    ("5000 inputs more", _many_inputs, INVALID, f"input 'i0' is not the model's; {_TAKES}"),
    # Datatypes
    ("no datatype", _input(datatype=""), INVALID, f"{_I} is '' {_NO_TYPE}"),
    ("other datatype", _input(datatype="FP64"), INVALID, f"{_I} is 'FP64', the model's is 'FP32'"),
    ("same size, other datatype", _input(datatype="INT32"), INVALID, f"{_I} is 'INT32', the model's is 'FP32'"),
    ("strings for numbers", _input(datatype="BYTES"), INVALID, f"{_I} is 'BYTES', the model's is 'FP32'"),
    ("numpy's name", _input(datatype="float32"), INVALID, f"{_I} is 'float32' {_NO_TYPE}"),
    ("Triton's configuration name", _input(datatype="TYPE_FP32"), INVALID, f"{_I} is 'TYPE_FP32' {_NO_TYPE}"),
    ("datatype in other case", _input(datatype="fp32"), INVALID, f"{_I} is 'fp32' {_NO_TYPE}"),
    ("endless datatype", _input(datatype="F" * 999), INVALID, f"{_I} is '{'F' * 20}' {_NO_TYPE}"),
    ("BF16", _input(datatype="BF16"), INVALID, f"{_I} is BF16, which no model here takes; this one takes FP32"),
    # Shapes
    ("no shape", lambda r: _shape(r, []), INVALID, f"{_I} has shape [], {_ANY}"),
    ("one axis", lambda r: _shape(r, [8]), INVALID, f"{_I} has shape [8], {_ANY}"),
    ("three axes", lambda r: _shape(r, [1, 2, 4]), INVALID, f"{_I} has shape [1, 2, 4], {_ANY}"),
    ("a hundred axes", lambda r: _shape(r, [1] * 100), INVALID, f"{_I} has shape {[1] * 9}…, {_ANY}"),
    ("axes exchanged", lambda r: _shape(r, [4, 2]), INVALID, f"{_I} has shape [4, 2], {_ANY}"),
    ("features too many", lambda r: _shape(r, [2, 5]), INVALID, f"{_I} has shape [2, 5], {_ANY}"),
    ("features none", lambda r: _shape(r, [2, 0]), INVALID, f"{_I} has shape [2, 0], {_ANY}"),
    ("rows below nought", lambda r: _shape(r, [-1, 4]), INVALID, f"{_I} has shape [-1, 4] with a negative length"),
    ("both axes below nought", lambda r: _shape(r, [-2, -4]), INVALID, f"{_I} has shape [-2, -4], {_ANY}"),
    (
        "least number of rows",
        lambda r: _shape(r, [-(2**63), 4]),
        INVALID,
        f"{_I} has shape [{-(2**63)}, 4] with a negative length",
    ),
    (
        "most rows",
        lambda r: _shape(r, [2**63 - 1, 4]),
        INVALID,
        f"{_I} has shape [{2**63 - 1}, 4], {16 * (2**63 - 1)} bytes of FP32, {_LIMIT}",
    ),
    (
        "rows whose bytes overflow to few",
        lambda r: _shape(r, [2**60, 4]),
        INVALID,
        f"{_I} has shape [{2**60}, 4], {2**64} bytes of FP32, {_LIMIT}",
    ),
    (
        "rows just over the limit",
        lambda r: _shape(r, [4194305, 4]),
        INVALID,
        f"{_I} has shape [4194305, 4], 67108880 bytes of FP32, {_LIMIT}",
    ),
    ("more rows than bytes", lambda r: _shape(r, [3, 4]), INVALID, f"{_I} has 32 bytes, shape [3, 4] {_F} takes 48"),
    ("fewer rows than bytes", lambda r: _shape(r, [1, 4]), INVALID, f"{_I} has 32 bytes, shape [1, 4] {_F} takes 16"),
    ("no rows, but bytes", lambda r: _shape(r, [0, 4]), INVALID, f"{_I} has 32 bytes, shape [0, 4] {_F} takes 0"),
    # Raw contents
    ("one byte missing", lambda r: _raw(r, bytes(31)), INVALID, f"{_I} has 31 bytes, shape [2, 4] {_F} takes 32"),
    ("one byte over", lambda r: _raw(r, bytes(33)), INVALID, f"{_I} has 33 bytes, shape [2, 4] {_F} takes 32"),
    ("no bytes", lambda r: _raw(r, b""), INVALID, f"{_I} has 0 bytes, shape [2, 4] {_F} takes 32"),
    ("doubles for floats", lambda r: _raw(r, bytes(64)), INVALID, f"{_I} has 64 bytes, shape [2, 4] {_F} takes 32"),
    (
        "two raw for one input",
        lambda r: r.raw_input_contents.append(b""),
        INVALID,
        f"raw_input_contents has 2 entries for 1 inputs{_ONE}",
    ),
    (
        "raw without inputs",
        lambda r: r.ClearField("inputs"),
        INVALID,
        f"raw_input_contents has 1 entries for 0 inputs{_ONE}",
    ),
    ("raw and contents", _both_inputs_and_contents, INVALID, f"{_I} has contents, and {_BOTH}"),
    (
        "raw and empty contents",
        lambda r: r.inputs[0].contents.SetInParent(),
        INVALID,
        f"{_I} has contents, and {_BOTH}",
    ),
    # Typed contents
    (
        "no data at all",
        lambda r: r.ClearField("raw_input_contents"),
        INVALID,
        f"{_I} has 0 elements in {_C}, shape [2, 4] takes 8",
    ),
    (
        "an element missing",
        _typed("fp32_contents", [0.0] * 7),
        INVALID,
        f"{_I} has 7 elements in {_C}, shape [2, 4] takes 8",
    ),
    (
        "an element over",
        _typed("fp32_contents", [0.0] * 9),
        INVALID,
        f"{_I} has 9 elements in {_C}, shape [2, 4] takes 8",
    ),
    (
        "doubles as contents",
        _typed("fp64_contents", [0.0] * 8),
        INVALID,
        f"{_I} is FP32: it travels in fp32_contents, not in fp64_contents",
    ),
    (
        "numbers as strings",
        _typed("bytes_contents", [b"0"] * 8),
        INVALID,
        f"{_I} is FP32: it travels in fp32_contents, not in bytes_contents",
    ),
    (
        "most elements that are not there",
        _typed("fp32_contents", [0.0], shape=[4194304, 4]),
        INVALID,
        f"{_I} has 1 elements in {_C}, shape [4194304, 4] takes 16777216",
    ),
    # Outputs
    ("unknown output", _outputs("nothing"), INVALID, f"output 'nothing' is not the model's: {_HAS}"),
    ("an input as output", _outputs("features"), INVALID, f"output 'features' is not the model's: {_HAS}"),
    ("output without name", _outputs(""), INVALID, f"output '' is not the model's: {_HAS}"),
    ("output twice", _outputs("score", "score"), INVALID, "outputs ['score', 'score'] name one twice"),
    ("5000 outputs", _outputs(*["score"] * 5000), INVALID, f"outputs {['score'] * 8} and 4992 more name one twice"),
    # Parameters
    ("input in shared memory", _shared, "UNIMPLEMENTED", f"{_I} lies in shared memory{_NOT}: send its bytes"),
    (
        "output in shared memory",
        _shared_output,
        "UNIMPLEMENTED",
        f"output 'score' lies in shared memory{_NOT}: send its bytes",
    ),
    (
        "classification",
        _classified,
        "UNIMPLEMENTED",
        f"output 'score' asks for classification{_NOT}: ask for the scores",
    ),
    ("timeout a text", _timeout(string_param="1s"), INVALID, f"parameter 'timeout' is string_param, {_US}"),
    ("timeout a share", _timeout(double_param=0.5), INVALID, f"parameter 'timeout' is double_param, {_US}"),
    ("timeout without a value", _timeout(), INVALID, f"parameter 'timeout' is empty, {_US}"),
    ("timeout below nought", _timeout(int64_param=-1), INVALID, "parameter 'timeout' is -1 us, expected 0 or more"),
    ("too many parameters", _many_parameters, INVALID, "the request has 65 parameters, limit 64"),
]


def _echo(dtype: str, field: str, values: list[Any]) -> pb.ModelInferRequest:
    """Return a good typed request for every tensor but one, whose contents these are."""
    request = pb.ModelInferRequest(model_name="echo")
    for other in NUMBERS:
        as_contents(request, f"in_{other}", sample(other, (1, 4)))
    tensor = next(tensor for tensor in request.inputs if tensor.name == f"in_{dtype}")
    tensor.ClearField("contents")
    getattr(tensor.contents, field).extend(values)
    return request


TYPED_ROWS: list[tuple[str, str, list[Any], str]] = [
    ("int8", "int_contents", [0, 1, 128, 3], "input 'in_int8' has 128 at element 2, which is no INT8"),
    ("int8", "int_contents", [-129, 0, 0, 0], "input 'in_int8' has -129 at element 0, which is no INT8"),
    ("int16", "int_contents", [0, 0, 0, 2**31 - 1], "input 'in_int16' has 2147483647 at element 3, which is no INT16"),
    ("uint8", "uint_contents", [256, 0, 0, 0], "input 'in_uint8' has 256 at element 0, which is no UINT8"),
    ("uint16", "uint_contents", [0, 65536, 0, 0], "input 'in_uint16' has 65536 at element 1, which is no UINT16"),
    ("int64", "int_contents", [0] * 4, "input 'in_int64' is INT64: it travels in int64_contents, not in int_contents"),
    (
        "uint32",
        "int_contents",
        [0] * 4,
        "input 'in_uint32' is UINT32: it travels in uint_contents, not in int_contents",
    ),
    ("bool", "int_contents", [0] * 4, "input 'in_bool' is BOOL: it travels in bool_contents, not in int_contents"),
    (
        "uint64",
        "uint_contents",
        [0] * 4,
        "input 'in_uint64' is UINT64: it travels in uint64_contents, not in uint_contents",
    ),
]


async def _refused(client: Client, name: str, body: bytes) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.ask(name, body)
    return caught.value.code().name, caught.value.details() or ""


async def test_every_way_to_be_wrong_has_its_status_and_text(client: Client) -> None:
    """One test of many rows: a server for each would take minutes."""
    found, wanted = {}, {}
    for name, spoil, code, text in FLOW_ROWS:
        request = _flow()
        spoil(request)
        wanted[name] = (code, text)
        found[name] = await _refused(client, "ModelInfer", request.SerializeToString())
    assert len(wanted) == len(FLOW_ROWS) >= 60
    assert found == wanted
    assert (await client.infer(_flow())).outputs[0].name == "score"


async def test_typed_contents_out_of_range_or_in_the_wrong_field_are_named(client: Client) -> None:
    for dtype, field, values, text in TYPED_ROWS:
        found = await _refused(client, "ModelInfer", _echo(dtype, field, values).SerializeToString())
        assert found == (INVALID, text)


async def test_fp16_as_contents_and_bools_beyond_one_are_refused(client: Client) -> None:
    typed = _echo("float16", "fp32_contents", [0.0] * 4)
    text = "input 'in_float16' is FP16: that travels in raw_input_contents only"
    assert await _refused(client, "ModelInfer", typed.SerializeToString()) == (INVALID, text)
    raw = request_of("echo", {f"in_{dtype}": sample(dtype, (1, 4)) for dtype in NUMBERS})
    raw.raw_input_contents[0] = b"\1\0\2\1"
    text = "input 'in_bool' has 2 at element 2, a BOOL is 0 or 1"
    assert await _refused(client, "ModelInfer", raw.SerializeToString()) == (INVALID, text)


_MESSAGES = {
    "ModelInfer": "ModelInferRequest",
    "ModelReady": "ModelReadyRequest",
    "ModelMetadata": "ModelMetadataRequest",
    "ModelConfig": "ModelConfigRequest",
    "ModelStatistics": "ModelStatisticsRequest",
    "RepositoryIndex": "RepositoryIndexRequest",
    "RepositoryModelLoad": "RepositoryModelLoadRequest",
    "/grpc.health.v1.Health/Check": "HealthCheckRequest",
}


async def test_bytes_that_are_no_message_are_refused_by_their_length(client: Client) -> None:
    for call, message in _MESSAGES.items():
        for body in (b"\xff" * 9, b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0b" * 400):
            text = f"the request's {len(body)} bytes are no {message}"
            assert await _refused(client, call, body) == (INVALID, text)


async def test_questions_with_wrong_names_are_refused(client: Client) -> None:
    rows = [
        ("ModelReady", pb.ModelReadyRequest(), INVALID, "the request names no model"),
        ("ModelMetadata", pb.ModelMetadataRequest(name="x"), MISSING, f"no model 'x' is here; {_MODELS}"),
        ("ModelConfig", pb.ModelConfigRequest(), MISSING, f"no model '' is here; {_MODELS}"),
        ("ModelStatistics", pb.ModelStatisticsRequest(version="1"), INVALID, "version '1' of no model: name one"),
        (
            "RepositoryIndex",
            pb.RepositoryIndexRequest(repository_name="r"),
            MISSING,
            "no repository 'r' is here; this server has one, without name",
        ),
    ]
    for call, message, code, text in rows:
        assert await _refused(client, call, message.SerializeToString()) == (code, text)


async def test_an_unknown_call_is_unimplemented(client: Client) -> None:
    assert (await _refused(client, "Guess", b""))[0] == "UNIMPLEMENTED"
