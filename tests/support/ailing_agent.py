"""An agent with one fault that no part of it handles: FAULT ARGUMENTS…"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any, NoReturn

from vedette.agent import app
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sinks.json_lines import JsonSink
from vedette.agent.adapters.sources.collector import Collector
from vedette.agent.cli import run_command


def fail(*_: object) -> NoReturn:
    raise ZeroDivisionError("a fault that no test has found")


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


def block_on_hangup(agent: Any) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, time.sleep, 3600)


def fall_ill(fault: str) -> None:
    """Put a fault in."""
    match fault:
        case "collector":
            Collector._queue = fail  # type: ignore[method-assign, assignment]
        case "sink":
            JsonSink._deliver = fail  # type: ignore[method-assign, assignment]
        case "scoring":
            FlowPipeline._score = hang  # type: ignore[method-assign, assignment]
            app._STUCK_S = 0.3
        case "loop":
            app.Agent._take_signals = block_on_hangup  # type: ignore[method-assign]
        case "start":
            app.run_agent = fail  # type: ignore[assignment]
        case "stopped":  # after the wait, before the event loop takes signals
            app.run_agent = lambda _: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[assignment, return-value]
        case _:
            raise ValueError(fault)


if __name__ == "__main__":
    fall_ill(sys.argv[1])
    sys.exit(run_command(sys.argv[2:]))
