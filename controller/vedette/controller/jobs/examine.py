"""Examine an ONNX file from end to end: the gate, then a run under the limits of the child this is called in.

Declared shapes are tried at 1, 2 and 17 rows. An output that declares a fixed number of rows and answers as many as it
is asked is repaired (onnxmltools writes LightGBM's labels as [1]); any other lie is a refusal.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from vedette.controller.domain.model_gate import (
    GateLimits,
    ModelRefused,
    Port,
    check_model,
    check_size,
    check_tree_nodes,
)

logger = logging.getLogger(__name__)

TRIED_ROWS = (1, 2, 17)
GOLDEN_ROWS = 64

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that may be registered."""

    data: bytes  # as it was, or with declared shapes repaired
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: Mapping[str, str]
    repaired: tuple[str, ...]  # outputs whose declared shape was wrong


def examine(data: bytes, limits: GateLimits | None = None) -> Examined:
    """Judge a model's bytes and try it.

    Raises:
        ModelRefused: The gate refuses it, it does not load, fails at a run, or answers other than it declares.
    """
    check_size(len(data), limits)
    model = parse(data)
    passed = check_model(model, limits)
    check_tree_nodes(_with_shapes(model), limits)
    session = open_session(data)
    outputs, repaired = _try(session, passed.inputs, passed.outputs)
    if repaired:
        for value in model.graph.output:
            if value.name in repaired:
                value.type.tensor_type.shape.dim[0].dim_param = "N"
        data = model.SerializeToString(deterministic=True)
    return Examined(data, passed.inputs, outputs, passed.notes, repaired)


def parse(data: bytes) -> onnx.ModelProto:
    """Return the parsed file.

    Raises:
        ModelRefused: The bytes are no ONNX model.
    """
    try:
        return onnx.ModelProto.FromString(data)
    except (DecodeError, RecursionError) as exc:
        raise ModelRefused("not-onnx", f"the file is no ONNX model: {exc}") from exc


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as exc:
        raise ModelRefused("shapes", f"its shapes contradict each other: {str(exc)[:300]}") from exc


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    """Load a model as the agent's worker does.

    Raises:
        ModelRefused: onnxruntime does not load it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its exceptions share no base class
        raise ModelRefused("load", f"onnxruntime does not load it: {str(exc)[:300]}") from exc


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Return the outputs by name.

    Raises:
        ModelRefused: The run fails.
    """
    names = [value.name for value in session.get_outputs()]
    try:
        found = session.run(names, {name: _as_words(array) for name, array in inputs.items()})
        return {name: _as_bytes(array) for name, array in zip(names, found, strict=True)}
    except Exception as exc:  # its exceptions share no base class
        rows = len(next(iter(inputs.values())))
        raise ModelRefused("run", f"it fails at {rows} rows: {str(exc)[:300]}") from exc


def _as_words(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as onnxruntime takes it: it wants strings as ``str``, everything here has them as ``bytes``."""
    return _each(array, bytes.decode) if array.dtype == object else array


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return _each(array, str.encode) if array.dtype == object else array


def _each(array: npt.NDArray[Any], change: Callable[[Any], Any]) -> npt.NDArray[Any]:
    made = np.empty(array.size, object)
    made[:] = [change(value) for value in array.flat]
    return made.reshape(array.shape)


def _try(
    session: onnxruntime.InferenceSession, inputs: Sequence[Port], outputs: Sequence[Port]
) -> tuple[tuple[Port, ...], tuple[str, ...]]:
    """Return the outputs with their true shapes, and which of them declared others."""
    answers = {rows: run(session, sample_rows(inputs, rows, seed=rows)) for rows in TRIED_ROWS}
    made, repaired = [], []
    for port in outputs:
        shapes = {rows: answer[port.name].shape for rows, answer in answers.items()}
        wrong = next((rows for rows, shape in shapes.items() if not shape or shape[0] != rows), None)
        if wrong is not None:
            raise ModelRefused("rows", f"output {port.name!r} answers shape {list(shapes[wrong])} to {wrong} rows")
        rest = {shape[1:] for shape in shapes.values()}
        if len(rest) != 1:
            raise ModelRefused("rows", f"output {port.name!r} changes its shape with the data: {sorted(rest)[:3]}")
        true = (-1, *rest.pop())
        if len(port.shape) != len(true) or any(d not in (-1, t) for d, t in zip(port.shape[1:], true[1:], strict=True)):
            raise ModelRefused("shapes", f"output {port.name!r} declares {list(port.shape)} and answers {list(true)}")
        if port.shape[0] != -1:
            repaired.append(port.name)
        kind = answers[1][port.name].dtype
        dtype = "bytes" if kind.kind == "O" else kind.name
        if dtype != port.dtype:
            raise ModelRefused("shapes", f"output {port.name!r} declares {port.dtype} and answers {dtype}")
        made.append(replace(port, shape=true))
    return tuple(made), tuple(repaired)


def sample_rows(inputs: Sequence[Port], rows: int, *, seed: int) -> Arrays:
    """Return made-up rows for every input, the same for the same seed.

    Whole numbers are 0 or 1: any table a model looks things up in has these places. Strings are "0" or "1".
    """
    source = np.random.default_rng(seed)
    made: Arrays = {}
    for port in inputs:
        shape = (rows, *port.shape[1:])
        whole = source.integers(0, 2, shape)
        if port.dtype == "bytes":
            made[port.name] = _each(whole, lambda value: b"%d" % value)
            continue
        kind = np.dtype(port.dtype)
        made[port.name] = (source.standard_normal(shape) if kind.kind == "f" else whole).astype(kind)
    return made


def golden_rows(data: bytes, inputs: Sequence[Port]) -> tuple[Arrays, Arrays]:
    """Return made-up inputs and the model's outputs for them; seeded by the file, so they are always the same.

    Raises:
        ModelRefused: Two runs on the same rows differ: no golden sample could hold.
    """
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    given = sample_rows(inputs, GOLDEN_ROWS, seed=seed)
    session = open_session(data)
    first, second = run(session, given), run(session, given)
    different = next(
        (n for n in first if not np.array_equal(first[n], second[n], equal_nan=first[n].dtype.kind == "f")), None
    )
    if different is not None:
        raise ModelRefused("random", f"output {different!r} differs between two runs on the same rows")
    return given, first
