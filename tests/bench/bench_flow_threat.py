"""What the recipe finds on captures it was not trained on: the figures of models/recipes/flow-threat/README.md.

Uses the captures that travel with the product, fewer than the README's table was made from.
"""

from __future__ import annotations

import numpy as np

from tests.support.flow_training import capture_training, flow_threat
from vedette.controller.conversion.models import cascade_to_onnx
from vedette.controller.conversion.parity import open_session
from vedette.models.recipes import TrainingData, TrainingResult

_BASE = ("base/softflowd-v9", "base/softflowd-v5", "base/pmacct-v9")
_BASE2 = ("base2/softflowd-v9", "base2/pmacct-ipfix")
_SHIFTED = ("shifted/softflowd-v9", "shifted/pmacct-v9")


def run() -> dict[str, float]:
    """Return windows found, flow recall and false alarms, held out and on other networks."""
    both = _train(*_BASE, *_BASE2)
    figures = {f"held out, both: {name}": value for name, value in both.metrics.items()}
    for what, trained, unseen in (
        ("base to base2", _train(*_BASE), _BASE2),
        ("base2 to base", _train(*_BASE2), _BASE),
        ("one file to base2", _train(_BASE[0]), _BASE2),
        ("both to shifted", both, _SHIFTED),
    ):
        for name in unseen:
            figures |= {f"{what}, {name}: {key}": value for key, value in _judge(trained, name).items()}
    return figures


def _train(*names: str) -> TrainingResult:
    recipe = flow_threat()
    return recipe.train(capture_training(*names), recipe.spec.resolve({}), lambda *_: None)


def _judge(trained: TrainingResult, name: str) -> dict[str, float]:
    data = capture_training(name)
    session = open_session(cascade_to_onnx(trained.fitted))
    flagged = session.run(["label"], {"features": data.features})[0] > 0
    episodes = _episodes(data)
    attack, benign = data.labels > 0, data.labels == 0
    return {
        "episodes": float(len(np.unique(episodes[attack]))),
        "episodes found": float(len(np.unique(episodes[attack & flagged]))),
        "flow recall": float(flagged[attack].mean()),
        "false alarms": float((flagged & benign).sum()),
        "false per 10,000 benign": 1e4 * float(flagged[benign].mean()),
    }


def _episodes(data: TrainingData) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    module = flow_threat().train.__globals__
    episodes: np.ndarray[tuple[int], np.dtype[np.int64]] = module["episodes_of"](data, module["networks_of"](data))
    return episodes
