"""Golden samples: inputs with the outputs the original model gave, which every build must repeat everywhere.

They travel with the version, signed by digest; an appliance runs them before a build may serve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.release import Tolerance
from vedette.models.tensors import Arrays, TensorFileError, dump_tensors, load_tensors

MAX_SAMPLES = 16
_INPUT = "input."
_OUTPUT = "output."
_LATER = re.compile(r"([1-9][0-9]?)/(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its answer."""

    inputs: Arrays
    outputs: Arrays

    def __post_init__(self) -> None:
        sizes = [array.size for array in (*self.inputs.values(), *self.outputs.values())]
        if not self.inputs or not self.outputs or not any(sizes):
            raise TensorFileError(
                f"{len(self.inputs)} golden inputs and {len(self.outputs)} outputs with {sum(sizes)} elements; "
                "a sample needs at least 1 of each"
            )


@dataclass(frozen=True, slots=True)
class Golden:
    """Named inputs and the outputs they must give.

    Of a model that answers row by row one request holds many samples; of another each request is one, and ``more``
    are there.
    """

    inputs: Arrays
    outputs: Arrays
    more: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        Sample(self.inputs, self.outputs)
        if len(self.more) >= MAX_SAMPLES:
            raise TensorFileError(f"{len(self.more) + 1} golden requests, limit {MAX_SAMPLES}")

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The requests in their order."""
        return (Sample(self.inputs, self.outputs), *self.more)

    def to_bytes(self) -> bytes:
        """Return the samples as a tensor file."""
        named: dict[str, npt.NDArray[Any]] = {}
        for number, sample in enumerate(self.samples):
            before = f"{number}/" if number else ""
            named |= {before + _INPUT + name: array for name, array in sample.inputs.items()}
            named |= {before + _OUTPUT + name: array for name, array in sample.outputs.items()}
        return dump_tensors(named)

    @classmethod
    def from_bytes(cls, data: bytes) -> Golden:
        """Return the samples of a tensor file.

        Raises:
            TensorFileError: No tensor file, or not golden samples.
        """
        found: dict[int, dict[str, npt.NDArray[Any]]] = {0: {}}
        for name, array in load_tensors(data).items():
            later = _LATER.fullmatch(name)
            found.setdefault(int(later[1]) if later else 0, {})[later[2] if later else name] = array
        if sorted(found) != list(range(len(found))):
            raise TensorFileError(f"golden requests are numbered {sorted(found)[:20]}, not one by one")
        first, *more = (_sample(found[number]) for number in range(len(found)))
        return cls(first.inputs, first.outputs, tuple(more))


def _sample(arrays: Mapping[str, npt.NDArray[Any]]) -> Sample:
    strange = [name for name in arrays if not name.startswith((_INPUT, _OUTPUT))]
    if strange:
        raise TensorFileError(f"golden samples hold {strange[0][:80]!r}, which is neither input nor output")
    return Sample(
        {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)},
        {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)},
    )


def mismatch(expected: Arrays, got: Arrays, tolerance: Tolerance) -> str | None:
    """Return where outputs first differ by more than the tolerance, or None where they agree.

    Integers and booleans must be equal; floats may differ by absolute + relative * |expected|; NaN equals NaN, an
    infinity only itself.

    Args:
        expected: Golden outputs by name.
        got: Outputs of the build under test by name.
        tolerance: Of the build.
    """
    for name, want in expected.items():
        have = got.get(name)
        if have is None:
            return f"output {name!r} is absent"
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"output {name!r} is {have.dtype}{list(have.shape)}, golden is {want.dtype}{list(want.shape)}"
        place = _first_difference(want, have, tolerance)
        if place is not None:
            return f"output {name!r} at {list(place)} is {have[place]}, golden is {want[place]}"
    return None


def _first_difference(want: npt.NDArray[Any], have: npt.NDArray[Any], tolerance: Tolerance) -> tuple[int, ...] | None:
    if want.dtype.kind == "f":
        close = np.isclose(have, want, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True)
    else:
        close = np.asarray(have == want)
    if bool(close.all()):
        return None
    return tuple(int(index) for index in np.argwhere(~close)[0])
