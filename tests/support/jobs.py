"""Jobs that misbehave, run as children in tests: ``python -m tests.support.jobs FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from vedette.controller.domain.errors import Refused
from vedette.controller.jobs import harness


def main(job: harness.Job) -> dict[str, Any]:
    match job.arguments["do"]:
        case "answer":
            job.progress(0.5, "half way")
            os.write(1, b"printed by a library\n")
            return {"pid": os.getpid(), "got": job.arguments["value"], "nice": os.nice(0), "oom": _oom_score()}
        case "refuse":
            raise Refused("too-odd", "the number is odd", "it is 7", "send 8")
        case "crash":
            sys.stderr.write("last words\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGSEGV)
        case "grab":
            return {"size": len(bytearray(1 << 33))}
        case "leave":
            os._exit(0)
        case "chatter":
            for place in range(200):
                sys.stderr.write(f"{place} " + "x" * 100_000 + "\n")
            return {}
        case "fill":
            with (job.folder / "large").open("wb") as file:
                file.write(b"0" * (2 << 20))
        case "wait":
            job.progress(0.1, str(os.getpid()))
            time.sleep(600)
    return {}


def _oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


if __name__ == "__main__":
    sys.exit(harness.run(main))
