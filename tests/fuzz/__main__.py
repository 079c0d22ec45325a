"""``make fuzz``: coverage-guided fuzzing of every target with atheris, one process each; README.md says more.

``make fuzz`` gives each target ten seconds; ``make fuzz ARGS="--seconds 600 netflow eve"`` two of them ten minutes.
What a target does not allow itself to raise is written to ``build/fuzz/TARGET/found``, once for each place it comes
from, and ends with exit code 1. ``--totals`` adds up what was run so far on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

BUILD = Path("build/fuzz")
_LOG = BUILD / "runs.jsonl"
_OURS = ["vedette.agent", "vedette.controller", "vedette.models", "vedette.wire.convert", "vedette.wire.token"]
_DONE = re.compile(r"stat::number_of_executed_units: +(\d+)")
_INPUT_S = 10  # an input that takes longer is a finding
_MEMORY_MB = 2048  # a process that takes more, too
_GRACE_S = 120  # to start and to end, beside the time to run


def _place(error: BaseException) -> str:
    """Return where an error came from: what tells one finding from the next."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/vedette/" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _run(name: str, options: list[str]) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    import atheris

    from tests.fuzz import targets

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=_OURS):
        target = targets.load(name)
    folder = BUILD / name
    for kind in ("corpus", "seeds", "found"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds, *target.corpus()):
        (folder / "seeds" / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    known: set[str] = set()

    def one(data: bytes) -> None:
        try:
            target.feed(data)
        except Exception as exc:
            place = _place(exc)
            if place not in known:
                known.add(place)
                print(f"FOUND {name}: {place}: {str(exc)[:300]!r}", flush=True)
                found = folder / "found" / hashlib.sha256(data).hexdigest()[:16]
                found.write_bytes(data)
                found.with_suffix(".txt").write_text("".join(traceback.format_exception(exc)))

    arguments = [
        *(f"-max_len={targets.MOST_BYTES}", f"-timeout={_INPUT_S}", f"-rss_limit_mb={_MEMORY_MB}"),
        *("-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={folder / 'found'}/", *options),
    ]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus"), str(folder / "seeds")], one)
    atheris.Fuzz()


def _fuzzed(name: str, seconds: int) -> int:
    """Fuzz a target in a process of its own; return how many findings there are."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", name, f"--seconds={seconds}"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _GRACE_S)
    said = done.stdout + done.stderr
    found = sorted(set(re.findall(r"FOUND .*", said)))
    if done.returncode:
        found.append(f"FOUND {name}: the process ended with {done.returncode}: {said[-2000:]}")
    runs = sum(map(int, _DONE.findall(said)))
    for line in found:
        print(line)
    print(f"{name:20} {runs:>10,} inputs in {time.monotonic() - begun:.0f} s, {len(found)} found", flush=True)
    entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "target": name, "runs": runs, "found": found}
    with _LOG.open("a") as log:
        log.write(json.dumps(entry) + "\n")
    return len(found)


def _totals() -> None:
    runs: Counter[str] = Counter()
    for line in _LOG.read_text().splitlines():
        entry = json.loads(line)
        runs[entry["target"]] += entry["runs"]
    for name, count in sorted(runs.items()):
        print(f"| {name} | {count:,} |")
    print(f"| **all** | **{sum(runs.values()):,}** |")


def main() -> int:
    """Run."""
    from tests.fuzz import targets

    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all when none is named: " + ", ".join(targets.names()))
    parser.add_argument("--seconds", type=int, default=10, help="for each target")
    parser.add_argument("--totals", action="store_true", help="add up what was run on this machine")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(targets.names())
    if unknown:
        parser.error(f"no targets {', '.join(sorted(unknown))}; there are {', '.join(targets.names())}")
    if arguments.totals:
        _totals()
        return 0
    if arguments.child:
        _run(arguments.child, [f"-max_total_time={arguments.seconds}"])
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("skipped: atheris is not here (it has wheels for x86_64 Linux and CPython up to 3.13)")
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    os.nice(10)
    return 1 if sum([_fuzzed(name, arguments.seconds) for name in arguments.targets or targets.names()]) else 0


if __name__ == "__main__":
    sys.exit(main())
