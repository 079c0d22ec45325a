"""What one build did since it became active: counted as Triton's ModelStatistics and our telemetry tell it.

Source: Triton Inference Server, protocol/extension_statistics.md: an inference is a row, an execution a batch; queue,
input, infer and output times are sums in nanoseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.profile import LATENCY_EDGES_MS, latency_bin


@dataclass(slots=True)
class BatchStats:
    """Executions of one size. Times are sums in nanoseconds."""

    count: int = 0
    input_ns: int = 0  # of writing the inputs where the worker sees them
    compute_ns: int = 0
    output_ns: int = 0  # of copying the outputs out

    def add(self, input_ns: int, compute_ns: int, output_ns: int) -> None:
        """Count one execution."""
        self.count += 1
        self.input_ns += input_ns
        self.compute_ns += compute_ns
        self.output_ns += output_ns


MOST_SIZES = 64
"""Sizes of batches told apart; further ones count under the next power of two."""


def _no_latencies() -> npt.NDArray[Any]:
    return np.zeros(len(LATENCY_EDGES_MS) + 1, np.int64)


@dataclass(slots=True)
class ModelStats:
    """Sums over the answers of one build; nothing here is ever taken back."""

    rows: int = 0
    requests: int = 0
    errors: int = 0
    success_ns: int = 0  # from request to answer
    fail_ns: int = 0
    queue_ns: int = 0  # of batches, from the oldest request in it until it was sent
    compute_ns: int = 0
    last_ms: int = 0  # milliseconds since 1970 of the last answer, 0 before it
    waited_s: float = 0.0  # all rows together: the sum of what latency_counts counts
    latency_counts: npt.NDArray[Any] = field(default_factory=_no_latencies)
    batches: dict[int, BatchStats] = field(default_factory=dict)

    def add(self, rows: int, latency_ms: float) -> None:
        """Count an answer; each of its rows waited for all of it."""
        self.rows += rows
        self.requests += 1
        self.success_ns += int(latency_ms * 1e6)
        self.last_ms = time.time_ns() // 1_000_000
        self.waited_s += rows * latency_ms / 1000
        self.latency_counts[latency_bin(latency_ms)] += rows

    def fail(self, latency_ms: float) -> None:
        """Count a request that ended in an error of the model or its worker."""
        self.errors += 1
        self.fail_ns += int(latency_ms * 1e6)

    def add_batch(self, rows: int, queue_ns: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        """Count one execution in the worker, of whatever requests."""
        self.queue_ns += queue_ns
        self.compute_ns += compute_ns
        size = rows if rows in self.batches or len(self.batches) < MOST_SIZES else 1 << (rows - 1).bit_length()
        self.batches.setdefault(size, BatchStats()).add(input_ns, compute_ns, output_ns)
