"""A recipe for tests: two small boosters, or a way to fail."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import lightgbm
import numpy as np

from vedette.models.recipes import Cascade, Progress, TrainingData, TrainingDataError, TrainingResult

_SETTINGS = {"num_threads": 1, "verbosity": 1, "deterministic": True, "num_leaves": 7, "seed": 1}


def train(data: TrainingData, parameters: Mapping[str, Any], progress: Progress) -> TrainingResult:
    if parameters["mood"] == "raises":
        raise TrainingDataError("the toy recipe is in a bad mood")
    if parameters["mood"] == "dies":
        os.abort()
    progress(0.1, "fitting")
    if parameters["mood"] == "waits":
        time.sleep(600)
    bad = data.labels > 0
    gate = lightgbm.train(
        _SETTINGS | {"objective": "binary"}, lightgbm.Dataset(data.features, bad), parameters["rounds"]
    )
    kinds = lightgbm.train(
        _SETTINGS | {"objective": "multiclass", "num_class": len(data.classes) - 1},
        lightgbm.Dataset(data.features[bad], data.labels[bad] - 1),
        parameters["rounds"],
    )
    progress(0.9, "judging")
    margin = float(np.quantile(gate.predict(data.features[~bad], raw_score=True), 0.999))
    golden = np.concatenate([data.features[bad][::50], data.features[~bad][::500]])
    return TrainingResult(
        fitted=Cascade(gate, kinds, margin, data.classes),
        classes=data.classes,
        threshold=0.5,
        metrics={"rows": float(len(data))},
        golden_rows=golden,
        reference_rows=data.features[~bad],
        usual=np.median(data.features[~bad], axis=0),
        evaluation={"sites": list(data.sites)},
    )
