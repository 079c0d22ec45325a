"""A recipe for tests: an isolation forest on a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest

from vedette.models.recipes import Progress, TrainingData, TrainingResult


def train(data: TrainingData, parameters: Mapping[str, Any], progress: Progress) -> TrainingResult:
    forest = IsolationForest(n_estimators=5, random_state=1).fit(data.features)
    return TrainingResult(
        fitted=forest,
        classes=data.classes,
        threshold=0.6,
        metrics={},
        golden_rows=data.features[::10],
        reference_rows=data.features,
        usual=np.median(data.features, axis=0),
    )
