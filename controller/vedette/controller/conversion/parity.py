"""Does the converted model give the numbers of the original? Asked of ordinary rows and of those that break converters.

Compared are golden rows, rows shuffled column by column, extremes, zeros of both signs, denormals, the neighbours of
2**24 (where float32 stops counting), nulls, and rows that stand exactly on, just below and just above the thresholds of
the trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.controller.conversion.errors import ParityError
from vedette.controller.conversion.models import Outputs, Predict
from vedette.models.recipes import Matrix
from vedette.models.release import Tolerance

UNDECIDED = "undecided"
SHAPE_ROWS = (1, 2, 17)
"""Row counts at which declared shapes must be true: converters declare some for one row only."""

_MAX_NEIGHBOURS = 6_000
_LARGE = np.array([2**24 - 1, 2**24, 2**24 + 2, -(2**24), 1e9, 1e15, -1e15, 3.4e38, -3.4e38], np.float32)
_SMALL = np.array([0.0, -0.0, 1e-40, -1e-40, 1.2e-38, 1e-35, -1e-35, 1.0, -1.0], np.float32)


@dataclass(frozen=True, slots=True)
class ParityRows:
    """Rows to compare, and the column each is about: -1 for all of them."""

    rows: Matrix
    about: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What was compared and how far the two were apart at most."""

    rows: int
    undecided: int
    worst: Mapping[str, float]  # by output: the greatest difference


def parity_rows(
    golden: Matrix,
    thresholds: Mapping[int, npt.NDArray[np.float32]] | None = None,
    *,
    nulls: bool = True,
    shuffled: int = 1_000,
    seed: int = 1,
) -> ParityRows:
    """Return rows that show a converter's faults.

    Args:
        golden: Ordinary rows, shape (rows, width), one at least.
        thresholds: By column what the trees ask for, see ``Trees.thresholds``.
        nulls: Include rows with NaN; leave out for models that refuse them.
        shuffled: How many rows to draw column by column from the golden ones.
    """
    rng = np.random.default_rng(seed)
    width = golden.shape[1]
    mixed = golden[rng.integers(0, len(golden), (shuffled, width)), np.arange(width)]
    whole = [golden, mixed, *(np.full((1, width), value, np.float32) for value in (*_LARGE, *_SMALL))]
    about = [np.full(sum(map(len, whole)), -1, np.int64)]
    odd = np.concatenate([_LARGE, _SMALL, np.array([np.nan] * nulls, np.float32)])
    for column in range(width):
        values = np.concatenate([odd, _neighbours((thresholds or {}).get(column), width)])
        rows = golden[rng.integers(0, len(golden), len(values))].copy()
        rows[:, column] = values
        whole.append(rows)
        about.append(np.full(len(values), column, np.int64))
    if nulls:
        whole.append(np.full((1, width), np.nan, np.float32))
        about.append(np.array([-1]))
    return ParityRows(np.concatenate(whole).astype(np.float32), np.concatenate(about))


def check_parity(
    onnx_bytes: bytes, reference: Predict, rows: ParityRows | Matrix, tolerance: Tolerance
) -> ParityReport:
    """Compare a converted model with its original, and its declared shapes with the true ones.

    Outputs of whole numbers must be equal, others within the tolerance. Rows that the reference calls undecided are
    compared in ``score`` only.

    Raises:
        ParityError: They differ; names the output, the rows and their columns. Or an output is missing, has another
            shape than declared, or is not finite where the reference is.
    """
    given = rows if isinstance(rows, ParityRows) else ParityRows(rows, np.full(len(rows), -1, np.int64))
    session = open_session(onnx_bytes)
    _check_shapes(session, given.rows)
    expected = dict(reference(given.rows))
    skip = np.asarray(expected.pop(UNDECIDED, np.zeros(len(given.rows), np.bool_)))
    got = _run(session, given.rows)
    worst = {}
    for name, wanted in expected.items():
        if name not in got:
            raise ParityError(f"it has no output {name!r}, only {', '.join(got)}")
        skipped = np.zeros(len(skip), np.bool_) if name == "score" else skip
        rows_apart, why, worst[name] = _compare(name, got[name], np.asarray(wanted), skipped, tolerance)
        if len(rows_apart):
            columns = given.about[rows_apart]
            raise ParityError(
                f"{why}: rows {rows_apart.tolist()} about columns {columns.tolist()}",
                tuple(rows_apart.tolist()),
                tuple(columns.tolist()),
            )
    return ParityReport(len(given.rows), int(skip.sum()), worst)


def _compare(
    name: str, got: npt.NDArray[Any], wanted: npt.NDArray[Any], skip: npt.NDArray[np.bool_], tolerance: Tolerance
) -> tuple[npt.NDArray[np.int64], str, float]:
    """Return the rows that differ, worst first and at most ten, a sentence about them, and the greatest difference."""
    if got.shape != wanted.shape:
        raise ParityError(f"output {name!r} has shape {got.shape}, the original's {wanted.shape}")
    exact = np.issubdtype(got.dtype, np.integer)
    apart = np.abs(got.astype(np.float64) - wanted).reshape(len(got), -1)
    allowed = 0.0 if exact else tolerance.absolute + tolerance.relative * np.abs(wanted).reshape(len(got), -1)
    over = np.where(np.isnan(apart), np.inf, apart - allowed).max(axis=1)
    over[skip] = -np.inf
    count = int((over > 0).sum())
    wrong = np.argsort(-over, kind="stable")[: min(10, count)]
    limit = "equal" if exact else f"within {tolerance.absolute:g} and {tolerance.relative:g} of the value"
    why = f"output {name!r} differs on {count} of {len(got)} rows, at worst by {float(over.max()):g} more than {limit}"
    kept = apart[~skip]
    return wrong, why, float(kept.max()) if kept.size else 0.0


def open_session(onnx_bytes: bytes) -> Any:
    """Return an onnxruntime session of one thread on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])


def _run(session: Any, rows: Matrix) -> Outputs:
    names = [output.name for output in session.get_outputs()]
    (source,) = session.get_inputs()
    return dict(zip(names, session.run(names, {source.name: rows}), strict=True))


def _check_shapes(session: Any, rows: Matrix) -> None:
    for count in SHAPE_ROWS:
        got = _run(session, np.resize(rows, (count, rows.shape[1])).astype(np.float32))
        for output in session.get_outputs():
            true = got[output.name].shape
            declared = [size if isinstance(size, int) else None for size in output.shape]
            fits = len(declared) == len(true) and all(d in (None, t) for d, t in zip(declared, true, strict=True))
            if not fits or true[0] != count:
                raise ParityError(f"output {output.name!r} declares {output.shape} and has {true} at {count} rows")


def _neighbours(values: npt.NDArray[np.float32] | None, width: int) -> npt.NDArray[np.float32]:
    """Return some thresholds, evenly chosen, with the float32 below and above each."""
    if values is None or len(values) == 0:
        return np.zeros(0, np.float32)
    most = max(_MAX_NEIGHBOURS // (3 * width), 4)
    chosen = values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))]
    chosen = chosen[np.abs(chosen) < np.finfo(np.float32).max]
    low, high = np.float32(-np.inf), np.float32(np.inf)
    return np.concatenate([chosen, np.nextafter(chosen, low), np.nextafter(chosen, high)])
