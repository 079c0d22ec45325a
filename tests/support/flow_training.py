"""Training data from the captures that travel with the product, made as the controller makes it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from tests.support.captures import CAPTURES, capture_datagrams
from tests.support.flows import feed, joined
from vedette.controller.domain.labels import claim, parse_label_file
from vedette.models.flows.extract import FLOW_SCHEMA, FlowBatch, FlowExtractor
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.flows.records import FlowRecords
from vedette.models.recipes import BENIGN, Recipe, TrainingData, open_recipe

RECIPES = Path(__file__).parents[2] / "models/recipes"


@cache
def capture_records(name: str) -> FlowRecords:
    """Return the records of a capture such as ``base/softflowd-v9``."""
    return FlowDecoder().decode_many(capture_datagrams(name))


@cache
def capture_flows(name: str) -> FlowBatch:
    """Return the biflows of a capture with their features."""
    return joined(feed(FlowExtractor(), [capture_records(name)]))


def capture_labels(name: str, flows: FlowRecords) -> list[str]:
    """Return the label of each flow by the label file beside the capture."""
    windows = parse_label_file((CAPTURES / name).with_name("labels.json").read_bytes())
    return [windows[place].label if place >= 0 else BENIGN for place in claim(flows, windows)]


def capture_training(*names: str, seconds: int = 10_000) -> TrainingData:
    """Return the first ``seconds`` of some captures as training data, each capture a site."""
    batches, labels = [], []
    for name in names:
        batch = capture_flows(name)
        times = batch.flows["export_ms"]
        early = times < times[0] + seconds * 1000
        kept = FlowBatch(batch.flows[early], batch.features[early], batch.origins[early])
        batches.append(kept)
        labels.append(capture_labels(name, kept.flows))
    whole = joined(batches)
    classes = (BENIGN, *sorted({label for site in labels for label in site} - {BENIGN}))
    return TrainingData(
        schema=FLOW_SCHEMA,
        features=whole.features,
        labels=np.array([classes.index(label) for site in labels for label in site], np.int64),
        classes=classes,
        groups=np.repeat(np.arange(len(names)), [len(batch) for batch in batches]),
        sites=names,
        times_ms=whole.flows["export_ms"].copy(),
        flows=whole.flows,
    )


def flow_threat() -> Recipe:
    """Return the recipe."""
    return open_recipe(RECIPES / "flow-threat")
