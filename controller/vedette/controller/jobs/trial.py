"""Requests made up for a model, to learn from its answers what it is: which lengths vary, and with what.

An axis that an input leaves open is called by its name in the file (``dim_param``), or by its place where it has none:
axes of one name have one length in a request. The first axis of an input is taken for rows, and tried with 1, 2 and 17;
others with the lengths of :data:`LADDERS`, since a convolution wants a few pixels, a detector a multiple of 32 and a
model of sound thousands of samples. Strings come from the model's own vocabulary, with some it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from vedette.controller.domain.model_gate import Port

TRIED_ROWS = (1, 2, 17)
LADDERS = ((5, 8, 13), (32, 64, 96), (224, 256, 288), (1_000, 4_000, 16_000), (1, 2, 3))
_MOST_ELEMENTS = 1 << 23  # of one input of a request
_SPANS = (100, 2)
"""Whole numbers below: enough to tell answers apart, and where a table is too small for them, its first two places."""

_MOST_WORDS = 256
_WORDS_OF_A_TEXT = 6
_SPLITTERS = frozenset({"RegexFullMatch", "StringSplit", "Tokenizer"})

Arrays = dict[str, npt.NDArray[Any]]
Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Trial:
    """How requests for a model are made up."""

    inputs: tuple[Port, ...]
    axes: Mapping[str, tuple[str, ...]]  # of each input, "" where the length is fixed
    words: tuple[bytes, ...]
    is_text: bool  # strings are sentences, not categories
    span: int = _SPANS[0]

    @classmethod
    def of(cls, model: onnx.ModelProto, inputs: Sequence[Port], span: int = _SPANS[0]) -> Trial:
        """Return the trial of a model that passed the gate."""
        named = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
        axes = {
            port.name: tuple(
                "" if length != -1 else (dim.dim_param or f"axis {place}")
                for place, (length, dim) in enumerate(zip(port.shape, named[port.name], strict=True))
            )
            for port in inputs
        }
        is_text = any(node.op_type in _SPLITTERS for node in model.graph.node)
        return cls(tuple(inputs), axes, _vocabulary(model), is_text, span)

    @property
    def leading(self) -> frozenset[str]:
        """The axes that come first somewhere: rows, if the model has any."""
        return frozenset(axes[0] for axes in self.axes.values() if axes and axes[0])

    def sizes(self) -> Iterator[tuple[Sizes, ...]]:
        """Yield sets of lengths to try, those of a model of rows first; each set is of three requests."""
        others = {axis for axes in self.axes.values() for axis in axes if axis} - self.leading
        rows = [dict.fromkeys(self.leading, count) for count in TRIED_ROWS]
        for ladder in LADDERS if others else LADDERS[:1]:
            yield tuple({**dict.fromkeys(others, size), **row} for row, size in zip(rows, ladder, strict=True))
        for ladder in LADDERS if self.leading else ():
            yield tuple(dict.fromkeys(others | self.leading, size) for size in ladder)

    def fits(self, sizes: Sizes) -> bool:
        """Return whether no input of such a request is too large to be tried."""
        return all(math.prod(self.shape(port, sizes)) <= _MOST_ELEMENTS for port in self.inputs)

    def shape(self, port: Port, sizes: Sizes) -> tuple[int, ...]:
        """Return an input's shape in a request of these lengths."""
        named = zip(port.shape, self.axes[port.name], strict=True)
        return tuple(sizes[axis] if axis else length for length, axis in named)

    def request(self, sizes: Sizes, *, seed: int) -> Arrays:
        """Return made-up inputs, the same for the same seed."""
        source = np.random.default_rng(seed)
        return {port.name: self._array(port, self.shape(port, sizes), source) for port in self.inputs}

    def _array(self, port: Port, shape: tuple[int, ...], source: np.random.Generator) -> npt.NDArray[Any]:
        if port.dtype == "bytes":
            return self._strings(shape, source)
        kind = np.dtype(port.dtype)
        if kind.kind == "f":
            return np.asarray(source.standard_normal(shape)).astype(kind)
        return np.asarray(source.integers(0, 2 if kind.kind == "b" else self.span, shape)).astype(kind)

    def _strings(self, shape: tuple[int, ...], source: np.random.Generator) -> npt.NDArray[Any]:
        lengths = source.integers(1, _WORDS_OF_A_TEXT + 1 if self.is_text else 2, shape)
        chosen = [source.integers(0, len(self.words), length) for length in np.ravel(lengths)]
        made = np.empty(len(chosen), object)
        made[:] = [b" ".join(self.words[place] for place in places) for places in chosen]
        return made.reshape(shape)


def trials(model: onnx.ModelProto, inputs: Sequence[Port]) -> Iterator[Trial]:
    """Yield the ways to make up requests, the one that tells most first."""
    for span in _SPANS:
        yield Trial.of(model, inputs, span)


def each(array: npt.NDArray[Any], change: Callable[[Any], Any]) -> npt.NDArray[Any]:
    """Return an object array with every element changed."""
    made = np.empty(array.size, object)
    made[:] = [change(value) for value in array.flat]
    return made.reshape(array.shape)


def _vocabulary(model: onnx.ModelProto) -> tuple[bytes, ...]:
    """Return words the model knows, as far as it tells, and some it does not."""
    found: dict[bytes, None] = {}
    for node in model.graph.node:
        for attribute in node.attribute:
            for word in (*attribute.strings, *attribute.t.string_data):
                if len(found) < _MOST_WORDS and word.isascii() and word.decode().isprintable():
                    found[word] = None
    for tensor in model.graph.initializer:
        for word in list(tensor.string_data)[:_MOST_WORDS]:
            if word.isascii() and word.decode().isprintable():
                found[word] = None
    return (*sorted(found), b"0", b"1", b"unheard of")
