"""Verdicts made up for tests of sinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.support.flows import record
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.models.flows.records import joined
from vedette.models.verdict import ScoredBy


def verdicts(
    *lines: str | bytes,
    flagged: Sequence[bool] | None = None,
    sources: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    exporters: Sequence[str] | None = None,
) -> Verdicts:
    """Return a verdict for each line, which gets a newline; all flagged, and of one client, unless said otherwise."""
    count = len(lines)
    return Verdicts(
        lines=[(line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines],
        flows=joined([record(src=source) for source in sources or ["10.0.0.7"] * count]),
        labels=labels or ["scan"] * count,
        scores=np.array(scores or [0.9] * count),
        flagged=np.array([True] * count if flagged is None else flagged, dtype=bool),
        exporters=exporters or ["10.0.0.254"] * count,
        by=ScoredBy("edge-7", "flow-threat", 3, "sha256:ab12"),
        at_ms=1_795_433_861_120,
    )
