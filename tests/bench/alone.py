"""A benchmark in a process of its own, which has loaded nothing that another one needed."""

from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def run_alone(module: str) -> dict[str, float]:
    """Return the figures of a benchmark module such as ``bench_netflow``, measured in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_figures, module).result()


def _figures(module: str) -> dict[str, float]:
    figures: dict[str, float] = importlib.import_module(f"tests.bench.{module}").run()
    return figures
