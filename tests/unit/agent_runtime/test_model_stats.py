from __future__ import annotations

from vedette.agent.domain.model_stats import MOST_SIZES, ModelStats


def test_batches_are_counted_by_their_size_and_summed() -> None:
    stats = ModelStats()
    stats.add_batch(4, queue_ns=5, input_ns=1, compute_ns=10, output_ns=2)
    stats.add_batch(4, queue_ns=6, input_ns=1, compute_ns=20, output_ns=2)
    stats.add_batch(1, queue_ns=0, input_ns=1, compute_ns=3, output_ns=1)
    assert (stats.queue_ns, stats.compute_ns) == (11, 33)
    assert (stats.batches[4].count, stats.batches[4].compute_ns, stats.batches[1].count) == (2, 30, 1)


def test_sizes_beyond_the_most_are_counted_under_powers_of_two() -> None:
    stats = ModelStats()
    for rows in range(1, 5000):
        stats.add_batch(rows, 0, 0, 1, 0)
    assert len(stats.batches) <= MOST_SIZES + 13
    assert sum(size.count for size in stats.batches.values()) == 4999
    assert stats.batches[4096].count == 2048


def test_a_failure_is_no_answer() -> None:
    stats = ModelStats()
    stats.add(3, 2.0)
    stats.fail(5.0)
    assert (stats.rows, stats.requests, stats.errors) == (3, 1, 1)
    assert (stats.success_ns, stats.fail_ns, int(stats.latency_counts.sum())) == (2_000_000, 5_000_000, 3)
    assert stats.last_ms > 0
