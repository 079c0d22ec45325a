"""Shared memory between the agent and one worker, and the small words that ring about it.

A ring is a memfd of :data:`AREAS` equal areas; each holds the shapes, the inputs and the outputs of one batch. Its size
is sealed, because a worker that truncated it would kill the agent with SIGBUS. Both sides compute the same layout from
the same tensor specs (:class:`Plan`). The agent trusts nothing that it finds there: shapes are copied out once, checked
against spec and capacity, and only then is the data read. Words are fixed records over a SOCK_SEQPACKET pair.

Strings lie as Open Inference Protocol and Triton send them, four bytes little-endian of length before each, behind
eight bytes with the length of all; in the agent they are object arrays of ``bytes``, in the worker of ``str``.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from vedette.agent.domain.errors import InvalidRequest, ModelRefused
from vedette.models.release import TensorSpec

AREAS = 4
"""The most batches in flight. One whose caller went away keeps its area until the worker has answered it."""

TEXT_BYTES = 1024
"""Of the worker's words about a failed batch."""

MAX_RING_BYTES = 1024**3

_ROWS_BYTES = 16 * 1024 * 1024
"""Of an area for rows: 4,096 of a kilobyte four times over, 27 images of 3 x 224 x 224. The whole ring counts against
the worker's RLIMIT_AS, of which python and the runtime take more than half."""

SETUP_BYTES = 256 * 1024
"""Of the first message either way, JSON; a release has at most 128 tensors of 8 sizes."""

RECORD = struct.Struct("<BBHIQ")
"""kind, area, code, request number, value.

RUN: the code is 1 where the area says which outputs are asked for, else 0; the value is the deadline in microseconds.
DONE: the value is the duration in nanoseconds. FAILED: the code is a :class:`Failure`.
"""

_ALIGN = 64  # a cache line, and what onnxruntime's vector kernels like best
_MAX_DIMS = 8  # of TensorSpec
_TEXT = np.dtype(object)
_LENGTH = struct.Struct("<I")
_TOTAL = struct.Struct("<Q")

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Part = tuple[Mapping[str, Array], int, int]
"""A request's arrays and which of its rows, from and up to."""


class Kind(IntEnum):
    """What a record says."""

    RUN = 1
    DONE = 2
    FAILED = 3


class Failure(IntEnum):
    """Why a batch, or the loading of a model, failed in the worker."""

    MODEL = 1  # the runtime gave an error for these inputs
    TIMEOUT = 2  # stopped at its deadline
    MEMORY = 3  # an allocation was refused
    OUTPUT = 4  # an output is larger than its place, or not what the release says
    REFUSED = 5  # the model cannot be loaded
    HOST = 6  # the host or the settings do not allow a worker; no model is to blame


class RingError(Exception):
    """The other side wrote what the layout does not allow."""


class Patience:
    """Whether to look again and again for the other side's word before sleeping, as either side does for ``us``.

    Waking costs more than a small model; but where no word comes so soon, or the host is busy and the other side has no
    core to speak from, looking is only in its way. So each vain look lets twice as many words pass without one.
    """

    def __init__(self, us: int) -> None:
        self.us = us
        self._rest = self._skips = 0  # words to let pass, after a vain look and from now

    def pays(self) -> bool:
        """Return whether to look this time; to be asked once a word."""
        if self._skips:
            self._skips -= 1
            return False
        return self.us > 0

    def tell(self, *, came: bool) -> None:
        """Learn how a look ended."""
        self._rest = 0 if came else min(2 * self._rest + 1, 255)
        self._skips = self._rest


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies in an area and what may lie there."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    offset: int
    capacity: int  # bytes
    batched: bool  # the first axis is the row

    @property
    def is_text(self) -> bool:
        """Whether its elements are strings."""
        return self.dtype == _TEXT

    @property
    def kind(self) -> str:
        """The element's type as a release names it."""
        return "bytes" if self.is_text else str(self.dtype)

    @property
    def row_shaped(self) -> bool:
        """Whether the number of rows is all that decides its size."""
        return self.batched and -1 not in self.shape[1:] and not self.is_text

    def unfit(self, shape: Shape) -> str | None:
        """Return why a tensor of that shape cannot lie here, or None."""
        if len(shape) != len(self.shape) or any(w not in (-1, h) for w, h in zip(self.shape, shape, strict=True)):
            return f"has shape {list(shape)}, the model's is {list(self.shape)} (-1 is any length)"
        if min(shape, default=0) < 0:
            return f"has shape {list(shape)} with a negative length"
        # Axes of no length do not count here: numpy refuses [0, 2**62] too.
        longest = math.prod(max(length, 1) for length in shape)
        size = longest * (_LENGTH.size if self.is_text else self.dtype.itemsize)
        return f"is {size} bytes, limit {self.capacity}" if size > self.capacity else None


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout of every area.

    ``max_rows`` is the most rows of one batch: what was asked for, or fewer where a row is wide, such as an image.
    ``variable_bytes`` is given to each tensor whose size more than the number of rows decides. A model that is not
    ``row_wise`` answers a request as a whole, so none is cut or shares a batch, whatever its shapes look like.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_rows: int
    variable_bytes: int
    row_wise: bool
    area_bytes: int

    @classmethod
    def of(
        cls,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        max_rows: int,
        variable_bytes: int,
        row_wise: bool = True,
    ) -> Plan:
        """Lay out an area for tensors of these specs.

        Raises:
            ModelRefused: The ring would be larger than :data:`MAX_RING_BYTES`.
        """
        offset = _aligned((len(inputs) + len(outputs)) * _MAX_DIMS * 8) + _aligned(len(outputs)) + TEXT_BYTES
        placed: list[Tensor] = []
        if row_wise:
            max_rows = min(max_rows, max(1, _ROWS_BYTES // _row_bytes((*inputs, *outputs))))
        for spec in (*inputs, *outputs):
            batched = row_wise and spec.shape[:1] == (-1,)
            capacity = _capacity(spec, max_rows, variable_bytes, batched=batched)
            placed.append(Tensor(spec.name, _dtype(spec), spec.shape, offset, capacity, batched))
            offset = _aligned(offset + capacity)
        if offset * AREAS > MAX_RING_BYTES:
            raise ModelRefused(
                f"{AREAS} batches of {max_rows} rows take {offset * AREAS} bytes, limit {MAX_RING_BYTES}"
            )
        placed_in, placed_out = tuple(placed[: len(inputs)]), tuple(placed[len(inputs) :])
        return cls(placed_in, placed_out, max_rows, variable_bytes, row_wise, offset)

    @property
    def size(self) -> int:
        """Bytes of the whole ring."""
        return self.area_bytes * AREAS

    @property
    def divisible(self) -> bool:
        """Whether a request may be cut into batches and the answers joined: every tensor has rows."""
        return all(tensor.batched for tensor in (*self.inputs, *self.outputs))

    @property
    def joinable(self) -> bool:
        """Whether requests may share a batch: their rows, laid one after the other, are all there is to it."""
        return all(tensor.row_shaped for tensor in (*self.inputs, *self.outputs))

    def chosen(self, names: Sequence[str]) -> bytes:
        """Return which outputs are asked for, a byte each in the plan's order; b"" for all.

        Raises:
            InvalidRequest: A name is no output's.
        """
        unknown = sorted(set(names) - {tensor.name for tensor in self.outputs})
        if unknown:
            raise InvalidRequest(f"no outputs {unknown[:10]}, the model's are {[t.name for t in self.outputs][:10]}")
        chosen = bytes(tensor.name in names for tensor in self.outputs)
        return chosen if names and 0 in chosen else b""

    def rows(self, arrays: Mapping[str, Array]) -> int:
        """Return how many rows a request has (1 when no input has rows), having checked everything but its length.

        Raises:
            InvalidRequest: Names, dtypes, axes or row counts do not fit; the message names tensor, value and limit.
        """
        if len(arrays) != len(self.inputs):
            _refuse_names(self.inputs, arrays)
        rows = -1
        for tensor in self.inputs:
            array = arrays.get(tensor.name)
            if array is None:
                _refuse_names(self.inputs, arrays)
            if array.dtype != tensor.dtype:
                raise InvalidRequest(f"input {tensor.name!r} is {array.dtype}, the model's is {tensor.kind}")
            if not tensor.row_shaped or array.ndim != len(tensor.shape) or array.shape[1:] != tensor.shape[1:]:
                _refuse_axes(tensor, array.shape)
            if tensor.batched:
                if rows not in (-1, array.shape[0]):
                    raise InvalidRequest(f"input {tensor.name!r} has {array.shape[0]} rows, another input has {rows}")
                rows = array.shape[0]
        return 1 if rows < 0 else rows

    def empty_outputs(self, chosen: bytes = b"") -> dict[str, Array]:
        """Return outputs of no rows, of a :attr:`divisible` plan."""
        return {t.name: np.empty([max(size, 0) for size in t.shape], t.dtype) for t in self.asked(chosen)}

    def asked(self, chosen: bytes) -> tuple[Tensor, ...]:
        """Return the outputs of a choice that :meth:`chosen` made."""
        return tuple(t for t, is_in in zip(self.outputs, chosen, strict=True) if is_in) if chosen else self.outputs


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    return _TEXT if spec.dtype == "bytes" else np.dtype(spec.dtype)


def _capacity(spec: TensorSpec, max_rows: int, variable_bytes: int, *, batched: bool) -> int:
    if -1 in (spec.shape[1:] if batched else spec.shape) or spec.dtype == "bytes":
        return variable_bytes
    return math.prod(max_rows if size == -1 else size for size in spec.shape) * _dtype(spec).itemsize


def _row_bytes(specs: Sequence[TensorSpec]) -> int:
    """Return the bytes of one row of all tensors that rows alone decide the size of; at least 1."""
    rows = [spec for spec in specs if spec.shape[:1] == (-1,) and -1 not in spec.shape[1:] and spec.dtype != "bytes"]
    return max(1, sum(math.prod(spec.shape[1:]) * _dtype(spec).itemsize for spec in rows))


def _refuse_names(inputs: Sequence[Tensor], arrays: Mapping[str, Array]) -> NoReturn:
    raise InvalidRequest(f"inputs are {sorted(arrays)[:10]}, the model's are {sorted(t.name for t in inputs)[:10]}")


def _refuse_axes(tensor: Tensor, shape: Shape) -> None:
    """Refuse a shape that does not fit but for its rows, which may be more than one batch takes."""
    probe = (min(shape[0], 1), *shape[1:]) if tensor.row_shaped and shape else shape
    reason = tensor.unfit(probe)
    if reason is not None:
        raise InvalidRequest(f"input {tensor.name!r} {reason}")


class Area:
    """One batch's place in the ring: shapes, which outputs are asked for, the worker's words, tensors."""

    def __init__(self, plan: Plan, memory: mmap.mmap, index: int) -> None:
        start = plan.area_bytes * index
        count = len(plan.inputs) + len(plan.outputs)
        self._plan = plan
        self._memory = memory
        self._start = start
        self.shapes = np.frombuffer(memory, np.int64, count * _MAX_DIMS, start).reshape(count, _MAX_DIMS)
        self._chosen = start + _aligned(count * _MAX_DIMS * 8)
        self._text = self._chosen + _aligned(len(plan.outputs))
        self._full = {t.name: self._view(t, (plan.max_rows, *t.shape[1:])) for t in _row_shaped(plan)}

    def _view(self, tensor: Tensor, shape: Shape) -> Array:
        return np.ndarray(shape, tensor.dtype, self._memory, self._start + tensor.offset)

    def place(self, tensor: Tensor, shape: Shape) -> Array:
        """Return the memory of a numeric tensor of that (already checked) shape."""
        full = self._full.get(tensor.name)
        return full[: shape[0]] if full is not None else self._view(tensor, shape)

    def write_inputs(self, parts: Sequence[Part]) -> None:
        """Copy the rows of each part, one after the other, and inputs without rows whole, into the area.

        Several parts are for a plan that is :attr:`Plan.joinable`.

        Raises:
            InvalidRequest: Strings are not bytes of UTF-8, or more than fit.
        """
        for index, tensor in enumerate(self._plan.inputs):
            if len(parts) > 1:
                self._write_joined(index, tensor, parts)
                continue
            arrays, start, stop = parts[0]
            array = arrays[tensor.name]
            part = array[start:stop] if tensor.batched else array
            self.shapes[index, : part.ndim] = part.shape
            if tensor.is_text:
                self._write_strings(tensor, _encoded(tensor, part))
            else:
                np.copyto(self.place(tensor, part.shape), part)

    def _write_joined(self, index: int, tensor: Tensor, parts: Sequence[Part]) -> None:
        rows = sum(stop - start for _, start, stop in parts)
        shape = (rows, *tensor.shape[1:])
        self.shapes[index, : len(shape)] = shape
        found = [arrays[tensor.name][start:stop] for arrays, start, stop in parts]
        np.concatenate(found, out=self.place(tensor, shape))

    def choose(self, chosen: bytes) -> None:
        """Say which outputs are asked for."""
        self._memory[self._chosen : self._chosen + len(chosen)] = chosen

    def read_choice(self) -> bytes:
        """Return what :meth:`choose` said."""
        return self._memory[self._chosen : self._chosen + len(self._plan.outputs)]

    def read_outputs(self, chosen: bytes = b"") -> dict[str, Array]:
        """Return copies of the outputs asked for.

        Raises:
            RingError: The worker wrote a shape, or strings, that do not fit the spec or their place.
        """
        claimed = self.shapes[len(self._plan.inputs) :].tolist()  # once: the worker may change it at any moment
        outputs = {}
        for index, tensor in enumerate(self._plan.outputs):
            if chosen and not chosen[index]:
                continue
            shape = tuple(claimed[index][: len(tensor.shape)])
            reason = tensor.unfit(shape)
            if reason is not None:
                raise RingError(f"output {tensor.name!r} {reason}")
            outputs[tensor.name] = self.read_strings(tensor, shape) if tensor.is_text else self._copy(tensor, shape)
        return outputs

    def _copy(self, tensor: Tensor, shape: Shape) -> Array:
        return self.place(tensor, shape).copy()

    def read_strings(self, tensor: Tensor, shape: Shape) -> Array:
        """Return a copy of a tensor of strings as bytes.

        Raises:
            RingError: Lengths and place do not agree.
        """
        at = self._start + tensor.offset
        total = _TOTAL.unpack_from(self._memory, at)[0]
        if total > tensor.capacity - _TOTAL.size:
            raise RingError(f"tensor {tensor.name!r} claims {total} bytes, limit {tensor.capacity - _TOTAL.size}")
        packed = self._memory[at + _TOTAL.size : at + _TOTAL.size + total]  # a copy, and only then looked at
        found = np.empty(math.prod(shape), _TEXT)
        found[:] = _unpacked(tensor, packed, len(found))
        return found.reshape(shape)

    def _write_strings(self, tensor: Tensor, values: Sequence[bytes]) -> None:
        packed = b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
        most = tensor.capacity - _TOTAL.size
        if len(packed) > most:
            raise InvalidRequest(f"the strings of {tensor.name!r} take {len(packed)} bytes, limit {most}")
        at = self._start + tensor.offset
        self._memory[at : at + _TOTAL.size] = _TOTAL.pack(len(packed))
        self._memory[at + _TOTAL.size : at + _TOTAL.size + len(packed)] = packed

    def raw_shapes(self) -> bytes:
        """Return the inputs' shapes as they lie there: to tell whether they are those of another time."""
        return self._memory[self._start : self._start + len(self._plan.inputs) * _MAX_DIMS * 8]

    def read_shape(self, index: int, tensor: Tensor) -> Shape:
        """Return the shape the agent wrote for a tensor of the plan, inputs first."""
        return tuple(self.shapes[index, : len(tensor.shape)].tolist())

    def write_output(self, index: int, tensor: Tensor, array: Array) -> None:
        """Copy an output into the area; strings come as ``str``.

        Raises:
            RingError: It does not fit its spec or place.
        """
        reason = tensor.unfit(array.shape)
        if array.dtype != tensor.dtype:
            reason = f"is {array.dtype}, the release says {tensor.kind}"
        if reason is not None:
            raise RingError(f"output {tensor.name!r} {reason}")
        self.shapes[len(self._plan.inputs) + index, : array.ndim] = array.shape
        if not tensor.is_text:
            np.copyto(self.place(tensor, array.shape), array)
            return
        try:
            self._write_strings(tensor, [str(value).encode() for value in array.flat])
        except InvalidRequest as exc:
            raise RingError(str(exc)) from exc

    def write_text(self, text: str) -> None:
        """Leave words for the agent, cut to :data:`TEXT_BYTES`."""
        cut = text.encode("utf-8", "replace")[:TEXT_BYTES]
        self._memory[self._text : self._text + TEXT_BYTES] = cut.ljust(TEXT_BYTES, b"\0")

    def read_text(self) -> str:
        """Return the worker's words, printable characters only."""
        raw = self._memory[self._text : self._text + TEXT_BYTES].rstrip(b"\0")
        return "".join(c if c.isprintable() else " " for c in raw.decode("utf-8", "replace"))


def _encoded(tensor: Tensor, array: Array) -> list[bytes]:
    values = array.ravel().tolist()
    for index, value in enumerate(values):
        if not isinstance(value, bytes):
            raise InvalidRequest(f"element {index} of {tensor.name!r} is {type(value).__name__}, strings come as bytes")
        try:
            value.decode()
        except UnicodeDecodeError as exc:  # the runtime would take it and fail when it reads it back
            raise InvalidRequest(f"element {index} of {tensor.name!r} is no UTF-8: {exc.reason}") from exc
    return values


def _unpacked(tensor: Tensor, packed: bytes, count: int) -> list[bytes]:
    values, at = [], 0
    try:
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(packed, at)
            at += _LENGTH.size + length
            values.append(packed[at - length : at])
    except struct.error as exc:
        raise RingError(f"tensor {tensor.name!r} has fewer than {count} strings in {len(packed)} bytes") from exc
    if at != len(packed):
        raise RingError(f"tensor {tensor.name!r} has {count} strings in {at} bytes of {len(packed)}")
    return values


def _row_shaped(plan: Plan) -> list[Tensor]:
    return [tensor for tensor in (*plan.inputs, *plan.outputs) if tensor.row_shaped]


def create_ring(plan: Plan) -> tuple[int, tuple[Area, ...]]:
    """Return the descriptor of a new ring, its size sealed, and its areas. The caller closes the descriptor."""
    descriptor = os.memfd_create("vedette-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, plan.size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor, attach_ring(plan, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def attach_ring(plan: Plan, descriptor: int) -> tuple[Area, ...]:
    """Map a ring and return its areas; the mapping lives as long as they do."""
    memory = mmap.mmap(descriptor, plan.size)
    return tuple(Area(plan, memory, index) for index in range(AREAS))
