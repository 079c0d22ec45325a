"""``make bench``: run every benchmark and print its figures with the machine they were measured on.

A benchmark is a module ``bench_*.py`` with ``run() -> dict[str, float]``: figures by name, the unit last in the name.
Each runs in a process of its own: what one has loaded would change the memory and the imports of the next.
Names given as arguments choose modules: ``make bench ARGS="netflow features"``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.alone import run_alone

_LIBRARIES = ("numpy", "onnxruntime", "grpcio", "protobuf", "lightgbm")


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def modules(wanted: list[str]) -> list[str]:
    """Return the benchmark modules to run."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    chosen = [name for name in names if not wanted or name.removeprefix("bench_") in wanted]
    if len(chosen) < len(set(wanted)):
        known = ", ".join(name.removeprefix("bench_") for name in names)
        raise SystemExit(f"no such benchmark among {' '.join(wanted)}; there are: {known}")
    return chosen


def main(arguments: list[str]) -> None:
    """Run benchmarks; ``--json FILE`` also writes the figures."""
    target = Path(arguments.pop(arguments.index("--json") + 1)) if "--json" in arguments else None
    wanted = [name for name in arguments if name != "--json"]
    found: dict[str, dict[str, Any]] = {"machine": machine(), "figures": {}}
    for name, text in found["machine"].items():
        print(f"{name:10} {text}")
    for module in modules(wanted):
        begun = time.perf_counter()
        figures = run_alone(module)
        print(f"\n{module.removeprefix('bench_')}   ({time.perf_counter() - begun:.0f} s)")
        for name, figure in figures.items():
            print(f"  {name:60} {figure:>14,.4g}" if abs(figure) < 1000 else f"  {name:60} {figure:>14,.0f}")
        found["figures"][module.removeprefix("bench_")] = figures
    if target:
        target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
