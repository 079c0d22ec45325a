"""What was fitted, as what a converted model must repeat: which converter writes it, and what it answers itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.controller.conversion import models as conversion
from vedette.controller.conversion.errors import ConversionError
from vedette.controller.conversion.parity import UNDECIDED, check_parity, parity_rows
from vedette.controller.jobs import examine
from vedette.models.recipes import Cascade, Matrix
from vedette.models.release import Tolerance

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Original:
    """A fitted model that answers as its converted form must."""

    predict: conversion.Predict
    takes_nulls: bool
    thresholds: Mapping[int, npt.NDArray[np.float32]]  # by column, what its trees ask for

    def check(self, data: bytes, given: Matrix, tolerance: Tolerance) -> dict[str, float]:
        """Prove that a converted model gives the original's numbers; return what was compared, as metrics.

        Raises:
            ParityError: It does not.
        """
        rows = parity_rows(given, self.thresholds, nulls=self.takes_nulls)
        report = check_parity(data, self.predict, rows, tolerance)
        worst = {f"parity_worst_{name}": float(value) for name, value in report.worst.items()}
        return {"parity_rows": float(report.rows), "parity_undecided": float(report.undecided)} | worst

    def golden(self, session: Any, given: Matrix) -> tuple[Arrays, Arrays]:
        """Return the rows the original is sure of, and its own outputs for them in the types of the converted model.

        Args:
            session: Of the converted model; asked for names and types only.
            given: Shape (rows, features).
        """
        said = dict(self.predict(given))
        sure = ~np.asarray(said.pop(UNDECIDED, np.zeros(len(given), np.bool_)))
        answered = examine.run(session, {"features": given})
        outputs = {name: np.asarray(said[name])[sure].astype(array.dtype) for name, array in answered.items()}
        return {"features": given[sure]}, outputs


def _kind(fitted: Any) -> str:
    if isinstance(fitted, Cascade):
        return "cascade"
    return {"Booster": "lightgbm", "IsolationForest": "isolation_forest"}.get(type(fitted).__name__, "")


def converted(fitted: Any) -> bytes:
    """Return a fitted model as ONNX.

    Raises:
        ConversionError: It is of a kind no converter here knows, or holds what cannot be written.
    """
    writers: dict[str, Callable[[Any], bytes]] = {
        "cascade": conversion.cascade_to_onnx,
        "lightgbm": conversion.lightgbm_to_onnx,
        "isolation_forest": conversion.isolation_forest_to_onnx,
    }
    writer = writers.get(_kind(fitted))
    if writer is None:
        raise ConversionError(f"a {type(fitted).__name__} was fitted, known are {', '.join(writers)}")
    return writer(fitted)


def original(fitted: Any) -> Original:
    """Return a fitted model that :func:`converted` takes, as what its converted form must repeat."""
    thresholds = conversion.thresholds_of(fitted)
    match _kind(fitted):
        case "cascade":
            return Original(conversion.cascade_reference(fitted), takes_nulls=True, thresholds=thresholds)
        case "lightgbm":
            return Original(conversion.lightgbm_reference(fitted), takes_nulls=True, thresholds=thresholds)
    return Original(conversion.isolation_forest_reference(fitted), takes_nulls=False, thresholds=thresholds)
