"""Waiting, without a time, for what other tasks of the same loop will do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object]) -> None:
    """Let the loop run until something holds; a test's own time-out ends it if it never does."""
    while not holds():  # noqa: ASYNC110 - turns of the loop, not a time
        await asyncio.sleep(0)
