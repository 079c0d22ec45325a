"""The job behind ``vedette model register``: an uploaded ``.onnx`` through the gate, with golden rows made for it.

Arguments: ``file``, and ``notes`` that count for more than the file's own metadata. Leaves ``model.onnx`` and
``golden.bin`` in its folder; the result says what the model is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vedette.controller.domain.errors import Refused
from vedette.controller.domain.model_gate import ModelRefused, check_size
from vedette.controller.domain.registry import ROW_SCHEMAS, check_row_fit, row_claim
from vedette.controller.jobs import examine, harness
from vedette.models.tensors import TensorFileError

MODEL_FILE, GOLDEN_FILE = "model.onnx", "golden.bin"


def main(job: harness.Job) -> dict[str, Any]:
    """Do the job."""
    path = Path(job.arguments["file"])
    try:
        check_size(path.stat().st_size)
        job.progress(0.1, "examining")
        examined = examine.examine(path.read_bytes())
        claim = row_claim({**examined.notes, **job.arguments["notes"]})
        if claim is not None:
            check_row_fit(examined.inputs, examined.outputs, claim.labels, ROW_SCHEMAS[claim.kind])
            examined.check_rows()
        golden = _golden_bytes(examined)
    except ModelRefused as exc:
        raise refused(exc) from exc
    harness.replace(job.folder / MODEL_FILE, examined.data)
    harness.replace(job.folder / GOLDEN_FILE, golden)
    return {
        "inputs": [[port.name, port.dtype, port.shape] for port in examined.inputs],
        "outputs": [[port.name, port.dtype, port.shape] for port in examined.outputs],
        "repaired": list(examined.repaired),
        "moved": list(examined.moved),
        "row_wise": examined.row_wise,
        "half": examined.is_half,
        "rows": {"kind": claim.kind, "labels": claim.labels, "threshold": claim.threshold} if claim else None,
    }


def _golden_bytes(examined: examine.Examined) -> bytes:
    try:
        return examined.golden.to_bytes()
    except TensorFileError as exc:
        raise ModelRefused("size", f"one request with its answer is too large to be kept as golden: {exc}") from exc


def refused(exc: ModelRefused) -> Refused:
    """Return the public error of a gate's verdict."""
    return Refused(f"model-{exc.code}", "the model is refused", str(exc), "docs/models.md lists what a model may be")


if __name__ == "__main__":
    sys.exit(harness.run(main))
