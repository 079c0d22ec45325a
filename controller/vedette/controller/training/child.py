"""The training job, in two phases that each leave their result on disk: ``train`` and ``convert``.

Arguments: ``phase``, ``recipe`` (folder), ``parameters``, ``kind``, ``columns``, ``parts``, ``windows``, ``work`` (the
run's folder, where the phases meet). ``train`` leaves what was fitted, ``convert`` the artefacts of a version. Neither
sees a key: signing is the server's.

What was fitted is pickled between the phases: both run as the same user in a folder only that user can write, and a
recipe's code runs here anyway.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vedette.controller.domain.model_gate import ModelRefused
from vedette.controller.domain.registry import EXACT, check_row_fit
from vedette.controller.jobs import examine, harness
from vedette.controller.jobs.inspect_model import GOLDEN_FILE, MODEL_FILE, refused
from vedette.controller.training import rows
from vedette.controller.training.originals import converted, original
from vedette.models.golden import Golden
from vedette.models.profile import ReferenceProfile
from vedette.models.recipes import Matrix, TrainingData, TrainingResult, open_recipe
from vedette.models.schema import FeatureSchema

FITTED_FILE = "fitted.pickle"
REFERENCE_FILE, EVALUATION_FILE = "reference.bin", "evaluation.json"
_PARITY_ROWS, _PARITY_ROWS_EACH = 4_000, 200
_ROW_SHARE = 0.3
"""Of the time of the first phase, about, that making features takes."""


def main(job: harness.Job) -> dict[str, Any]:
    """Do the job."""
    return _train(job) if job.arguments["phase"] == "train" else _convert(job)


def _train(job: harness.Job) -> dict[str, Any]:
    said = job.arguments
    recipe = open_recipe(Path(said["recipe"]))
    parameters = recipe.spec.resolve(said["parameters"])
    data = rows.load(said, _part(job, 0.0, _ROW_SHARE))
    result = recipe.train(data, parameters, _part(job, _ROW_SHARE, 1.0))
    kept = {"result": result, "schema": data.schema.to_bytes(), "parity": _spread(data)}
    harness.replace(Path(said["work"]) / FITTED_FILE, pickle.dumps(kept))
    return {"rows": len(data), "classes": list(data.classes), "sites": list(data.sites)}


def _part(job: harness.Job, begin: float, end: float) -> Callable[[float, str], None]:
    return lambda fraction, step: job.progress(begin + (end - begin) * fraction, step)


def _spread(data: TrainingData) -> Matrix:
    """Return rows from all over the data, every class among them, for the proof of parity."""
    count = len(data)
    even = np.linspace(0, count - 1, min(count, _PARITY_ROWS)).astype(np.int64)
    each = [np.flatnonzero(data.labels == place)[:_PARITY_ROWS_EACH] for place in range(len(data.classes))]
    spread: Matrix = data.features[np.unique(np.concatenate([even, *each]))]
    return spread


def _convert(job: harness.Job) -> dict[str, Any]:
    said = job.arguments
    work = Path(said["work"])
    open_recipe(Path(said["recipe"]))  # what is pickled may be of classes that the recipe defines
    kept = pickle.loads((work / FITTED_FILE).read_bytes())  # noqa: S301  our own file, see the module
    result: TrainingResult = kept["result"]
    schema = FeatureSchema.from_bytes(kept["schema"])
    job.progress(0.1, "converting to ONNX")
    data = converted(result.fitted)
    job.progress(0.3, "comparing with the original")
    report = original(result.fitted).check(data, np.concatenate([result.golden_rows, kept["parity"]]), EXACT)
    job.progress(0.7, "examining the model as any other")
    examined = _examine(data, result, schema)
    job.progress(0.9, "golden rows and reference profile")
    _write_artefacts(work, examined.data, result, schema)
    return {
        "kind": schema.kind,
        "schema": schema.to_bytes().decode(),
        "inputs": [[port.name, port.dtype, port.shape] for port in examined.inputs],
        "outputs": [[port.name, port.dtype, port.shape] for port in examined.outputs],
        "row_wise": examined.row_wise,
        "labels": list(result.classes),
        "threshold": float(result.threshold),
        "metrics": {name: float(value) for name, value in result.metrics.items()} | report,
    }


def _examine(data: bytes, result: TrainingResult, schema: FeatureSchema) -> examine.Examined:
    try:
        examined = examine.examine(data)
        if schema.kind != "tensor":
            examined.check_rows()
    except ModelRefused as exc:
        raise refused(exc) from exc
    if schema.kind != "tensor":
        check_row_fit(examined.inputs, examined.outputs, result.classes, schema)
    return examined


def _write_artefacts(work: Path, data: bytes, result: TrainingResult, schema: FeatureSchema) -> None:
    session = examine.open_session(data)
    golden = original(result.fitted).golden(session, np.ascontiguousarray(result.golden_rows, np.float32))
    usual = np.ascontiguousarray(result.reference_rows, np.float32)
    scores = examine.run(session, {"features": usual})["score"]
    profile = ReferenceProfile.fit(schema.names, usual, scores, scores >= result.threshold)
    harness.replace(work / MODEL_FILE, data)
    harness.replace(work / GOLDEN_FILE, Golden(*golden).to_bytes())
    harness.replace(work / REFERENCE_FILE, profile.to_bytes())
    harness.replace(work / EVALUATION_FILE, json.dumps(dict(result.evaluation), sort_keys=True).encode())


if __name__ == "__main__":
    sys.exit(harness.run(main))
