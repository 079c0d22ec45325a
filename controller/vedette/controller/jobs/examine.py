"""Examine an ONNX file from end to end: the gate, then runs under the limits of the child this is called in.

What a file declares is compared with what it answers, at three sets of lengths (:mod:`.trial`). An axis that an output
declares as fixed and that grows with an input's is repaired (onnxmltools writes LightGBM's labels as [1]), and so is a
shape that is not declared at all, or a locale that appliances may lack; any other lie is a refusal. Whether each row is
answered for itself is not believed but tried: only then may an agent cut requests and let them share a batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
from vedette.controller.domain.model_text import PLAIN_LOCALE, needs_plain_locale
from vedette.controller.jobs.trial import Arrays, Sizes, Trial, each, trials
from vedette.models.golden import Golden, Sample

logger = logging.getLogger(__name__)

GOLDEN_ROWS = 64
_GOLDEN_BYTES = 16 << 20
_PARTS = (0, 1, 3, 17)  # of the 17 rows that are compared with themselves, asked in parts
_LOOSE = {"absolute": 1e-4, "relative": 1e-3}  # batches of other sizes are added up in another order
_LOOSE_HALF = {"absolute": 1e-2, "relative": 1e-2}
_SIZED_BY_DATA = frozenset({
    *("Compress", "NonMaxSuppression", "NonZero", "Range", "StringNormalizer", "StringSplit", "Tokenizer", "Unique"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that may be registered."""

    data: bytes  # as it was, or repaired
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: Mapping[str, str]
    repaired: tuple[str, ...]  # outputs whose declared shape was wrong
    moved: tuple[str, ...]  # nodes that name another locale than they did
    row_wise: bool
    mixed: str  # an output whose rows depend on those beside them, "" without one
    is_half: bool  # it computes in float16
    golden: Golden

    def check_rows(self) -> None:
        """Make sure that each row is answered for itself, as whoever puts rows of many sources into a batch needs.

        Raises:
            ModelRefused: Rows are not answered one by one, or change with those beside them.
        """
        if not self.row_wise:
            why = f"output {self.mixed!r} of a row changes with the rows beside it" if self.mixed else "it has no rows"
            advice = "judge each row by itself (batch statistics and dynamic quantisation do not)"
            raise ModelRefused("rows", f"{why}; {advice}")


def examine(data: bytes, limits: GateLimits | None = None) -> Examined:
    """Judge a model's bytes and try it.

    Raises:
        ModelRefused: The gate refuses it, it does not load, fails at a run, or answers other than it declares.
    """
    check_size(len(data), limits)
    model = parse(data)
    passed = check_model(model, limits)
    check_tree_nodes(_with_shapes(model), limits)
    moved = _with_plain_locales(model)
    if moved:
        data = model.SerializeToString(deterministic=True)
    session = open_session(data)
    tried = _try(session, model, passed.inputs)
    outputs, repaired = _learnt(model, tried, passed.outputs)
    if repaired:
        data = model.SerializeToString(deterministic=True)
    mixed = _mixed(session, tried)
    row_wise = mixed is not None and not mixed and _has_rows(passed.inputs, outputs, tried)
    return Examined(
        data=data,
        inputs=passed.inputs,
        outputs=outputs,
        notes=passed.notes,
        repaired=repaired,
        moved=moved,
        row_wise=row_wise,
        mixed=mixed or "",
        is_half=_is_half(model, (*passed.inputs, *outputs)),
        golden=_golden(data, tried, row_wise=row_wise),
    )


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


def _with_plain_locales(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the locale that every host has where English, or none, is named; return the nodes' names."""
    changed = []
    for node in model.graph.node:
        attributes = {item.name: item for item in node.attribute}
        if node.op_type == "StringNormalizer" and needs_plain_locale(attributes):
            kept = [item for item in node.attribute if item.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("locale", PLAIN_LOCALE)])
            changed.append(node.name or node.output[0])
    return tuple(changed)


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
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise ModelRefused("run", f"it fails at {shapes[:300]}: {str(exc)[:300]}") from exc


def _as_words(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array as onnxruntime takes it: it wants strings as ``str``, everything here has them as ``bytes``."""
    return each(array, bytes.decode) if array.dtype == object else array


def _as_bytes(value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value)
    return each(array, lambda item: str(item).encode()) if array.dtype.kind in "OU" else array


@dataclass(frozen=True, slots=True)
class _Tried:
    """Three requests that the model answered."""

    trial: Trial
    sizes: tuple[Sizes, ...]
    answers: tuple[Arrays, ...]

    def rows(self, place: int) -> int | None:
        """Return the rows of a request, None where its inputs have none or several lengths come first."""
        counts = {self.sizes[place][axis] for axis in self.trial.leading}
        return counts.pop() if len(counts) == 1 else None


def _try(session: onnxruntime.InferenceSession, model: onnx.ModelProto, inputs: Sequence[Port]) -> _Tried:
    """Find requests that the model answers.

    Raises:
        ModelRefused: There are none; with what it said to the first.
    """
    first: ModelRefused | None = None
    for trial in trials(model, inputs):
        for sizes in trial.sizes():
            if not all(map(trial.fits, sizes)):
                continue
            try:
                answers = [run(session, trial.request(lengths, seed=seed)) for seed, lengths in enumerate(sizes)]
            except ModelRefused as exc:
                first = first or exc
                continue
            return _Tried(trial, sizes, tuple(answers))
    text = str(first) if first else "its inputs leave too much open: no request of a size to try fits all of them"
    advice = "an axis that it does not really leave open must have its length in the export"
    raise ModelRefused("run", f"{text}; {advice}")


def _learnt(model: onnx.ModelProto, tried: _Tried, outputs: Sequence[Port]) -> tuple[tuple[Port, ...], tuple[str, ...]]:
    """Return the outputs with their true shapes, and which of them declared others; those are mended in the model."""
    is_fluid = any(node.op_type in _SIZED_BY_DATA for node in model.graph.node)
    declared = {value.name: value.type.tensor_type for value in model.graph.output}
    made, repaired = [], []
    for port in outputs:
        answers = [answer[port.name] for answer in tried.answers]
        kinds = {"bytes" if array.dtype.kind == "O" else array.dtype.name for array in answers}
        if kinds != {port.dtype}:
            raise ModelRefused("shapes", f"output {port.name!r} declares {port.dtype} and answers {sorted(kinds)}")
        is_told = declared[port.name].HasField("shape")
        shape = _true_shape(port, is_told, [array.shape for array in answers], tried, is_fluid)
        if not is_told or any(had != -1 and now == -1 for had, now in zip(port.shape, shape, strict=True)):
            repaired.append(port.name)
            _declare(declared[port.name], shape)
        made.append(replace(port, shape=shape))
    return tuple(made), tuple(repaired)


def _declare(kind: Any, shape: tuple[int, ...]) -> None:
    kind.ClearField("shape")
    kind.shape.SetInParent()
    for place, length in enumerate(shape):
        added = kind.shape.dim.add()
        if length == -1:
            added.dim_param = f"answered_{place}"
        else:
            added.dim_value = length


def _true_shape(
    port: Port, is_told: bool, found: Sequence[tuple[int, ...]], tried: _Tried, is_fluid: bool
) -> tuple[int, ...]:
    ranks = {len(shape) for shape in found}
    if len(ranks) != 1 or (is_told and ranks != {len(port.shape)}):
        told = list(port.shape) if is_told else "no shape"
        raise ModelRefused("shapes", f"output {port.name!r} declares {told} and answers {[list(s) for s in found]}")
    rank = ranks.pop()
    if rank > 8:
        raise ModelRefused("ports", f"output {port.name!r} answers {rank} axes, limit 8")
    declared = port.shape if is_told else (-1,) * rank
    return tuple(
        _true_length(replace(port, shape=declared), axis, [shape[axis] for shape in found], tried, is_fluid)
        for axis in range(rank)
    )


def _true_length(port: Port, axis: int, lengths: Sequence[int], tried: _Tried, is_fluid: bool) -> int:
    declared = port.shape[axis]
    if declared == -1:
        return lengths[0] if len(set(lengths)) == 1 and lengths[0] and not is_fluid else -1
    if set(lengths) == {declared}:
        return declared
    inputs = {tuple(sizes[name] for sizes in tried.sizes) for name in tried.sizes[0]}
    if tuple(lengths) in inputs:  # it grows with an input, so it is open, whatever the file says
        return -1
    raise ModelRefused(
        "shapes",
        f"output {port.name!r} declares {list(port.shape)}, and answers {list(lengths)} along axis {axis}; "
        "export that axis as a variable one",
    )


def _has_rows(inputs: Sequence[Port], outputs: Sequence[Port], tried: _Tried) -> bool:
    """Return whether all tensors begin with one and the same number of rows."""
    if not all(port.shape[:1] == (-1,) for port in (*inputs, *outputs)):
        return False
    return all(
        array.shape[0] == tried.rows(place) for place, answer in enumerate(tried.answers) for array in answer.values()
    )


def _mixed(session: onnxruntime.InferenceSession, tried: _Tried) -> str | None:
    """Return the first output whose rows change with the rows beside them, "" without one, None without rows."""
    trial, sizes = tried.trial, tried.sizes[-1]
    if tried.rows(-1) != _PARTS[-1] or any(port.shape[:1] != (-1,) for port in trial.inputs):
        return None
    whole, request = tried.answers[-1], trial.request(sizes, seed=len(tried.sizes) - 1)
    try:
        parts = [run(session, {name: array[at:to] for name, array in request.items()}) for at, to in pairwise(_PARTS)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    except (ModelRefused, ValueError):  # an axis beside the rows is as long as the longest row's
        return next(iter(whole))
    has_floats = any(array.dtype.kind == "f" for array in whole.values())
    return next((name for name in whole if not _alike(whole[name], joined[name], has_floats)), "")


def _alike(one: npt.NDArray[Any], other: npt.NDArray[Any], has_floats: bool) -> bool:
    """Return whether rows asked together and apart agree, but for what the order of a sum does.

    Where scores stand beside a class, one class of the 17 may differ: two scores that are equal but for that order.
    """
    if one.shape != other.shape:
        return False
    if one.dtype.kind == "f":
        loose = _LOOSE_HALF if one.dtype.itemsize == 2 else _LOOSE
        return bool(np.allclose(one, other, rtol=loose["relative"], atol=loose["absolute"], equal_nan=True))
    different = np.asarray(one != other).reshape(len(one), -1).any(axis=1)
    return int(different.sum()) <= (1 if has_floats else 0)


def _is_half(model: onnx.ModelProto, ports: Sequence[Port]) -> bool:
    half = onnx.TensorProto.FLOAT16
    casts = (item.i for node in model.graph.node if node.op_type == "Cast" for item in node.attribute)
    tensors = (tensor.data_type for tensor in model.graph.initializer)
    return half in (*casts, *tensors) or any(port.dtype == "float16" for port in ports)


def _golden(data: bytes, tried: _Tried, *, row_wise: bool) -> Golden:
    """Return made-up requests with the model's answers; seeded by the file, so they are always the same.

    Raises:
        ModelRefused: Two runs on the same request differ: no golden sample could hold.
    """
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    session = open_session(data)
    weights = [_weight(answer) + _weight(tried.trial.request(sizes, seed=0))
               for sizes, answer in zip(tried.sizes, tried.answers, strict=True)]  # fmt: skip
    if row_wise:
        rows = min(max(_GOLDEN_BYTES // max(weights[0], 1), 1), GOLDEN_ROWS)
        wanted: list[Sizes] = [{**tried.sizes[0], **dict.fromkeys(tried.trial.leading, rows)}]
    else:
        kept = [place for place in range(len(weights)) if sum(weights[: place + 1]) <= _GOLDEN_BYTES]
        wanted = [tried.sizes[place] for place in kept or (0,)]
    samples = [_sample(session, tried.trial.request(sizes, seed=seed + n)) for n, sizes in enumerate(wanted)]
    return Golden(samples[0].inputs, samples[0].outputs, tuple(samples[1:]))


def _weight(arrays: Arrays) -> int:
    return sum(sum(map(len, a.flat)) + 4 * a.size if a.dtype == object else a.nbytes for a in arrays.values())


def _sample(session: onnxruntime.InferenceSession, given: Arrays) -> Sample:
    first, second = run(session, given), run(session, given)
    different = next(
        (n for n in first if not np.array_equal(first[n], second[n], equal_nan=first[n].dtype.kind == "f")), None
    )
    if different is not None:
        raise ModelRefused("random", f"output {different!r} differs between two runs on the same request")
    return Sample(given, first)
