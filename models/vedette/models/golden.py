"""Golden samples: inputs with the outputs the original model gave, which every build must repeat everywhere.

They travel with the version, signed by digest; an appliance runs them before a build may serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.release import Tolerance
from vedette.models.tensors import Arrays, TensorFileError, dump_tensors, load_tensors

_INPUT = "input."
_OUTPUT = "output."


@dataclass(frozen=True, slots=True)
class Golden:
    """Named inputs and the outputs they must give; the first axis of each is the row."""

    inputs: Arrays
    outputs: Arrays

    def __post_init__(self) -> None:
        rows = {len(array) if array.ndim else 0 for array in (*self.inputs.values(), *self.outputs.values())}
        if not self.inputs or not self.outputs or len(rows) != 1 or 0 in rows:
            raise TensorFileError(
                f"{len(self.inputs)} golden inputs and {len(self.outputs)} outputs of {sorted(rows)} rows; "
                "each needs the same number of rows, at least 1"
            )

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))

    def to_bytes(self) -> bytes:
        """Return the samples as a tensor file."""
        named = {_INPUT + name: array for name, array in self.inputs.items()}
        return dump_tensors(named | {_OUTPUT + name: array for name, array in self.outputs.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Golden:
        """Return the samples of a tensor file.

        Raises:
            TensorFileError: No tensor file, or not golden samples.
        """
        arrays = load_tensors(data)
        strange = [name for name in arrays if not name.startswith((_INPUT, _OUTPUT))]
        if strange:
            raise TensorFileError(f"golden samples hold {strange[0][:80]!r}, which is neither input nor output")
        return cls(
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
