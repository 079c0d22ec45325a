"""Waiting for the first of several things, and telling whose cancellation it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def either(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when the first of these is done; the others are cancelled. An error of the first is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_cancelling() -> bool:
    """Return whether the running task was told to stop.

    grpc.aio raises CancelledError in whoever reads a call that ended on our side, told to stop or not.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
