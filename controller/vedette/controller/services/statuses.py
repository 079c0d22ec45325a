"""What agents said last, on its way to the store: written together, kept while the disk is full."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from vedette.controller.domain.desired import Heard
from vedette.controller.domain.errors import ControllerError
from vedette.controller.services.ports import Runner
from vedette.wire.systemd import fields

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 60.0


class StatusWriter:
    """Holds the newest words of each agent until they are stored. Losing them costs nothing: each hello repeats them.

    Args:
        runner: Runs store work.
        save: Stores words in one transaction.
        interval_s: Words of this long are written together.
    """

    def __init__(self, runner: Runner, save: Callable[[Sequence[Heard]], None], interval_s: float) -> None:
        self._runner = runner
        self._save = save
        self._interval_s = interval_s
        self._unwritten: dict[str, Heard] = {}
        self._writing: asyncio.Task[None] | None = None

    def write_soon(self, heard: Heard) -> None:
        """Store an agent's words with those of others, in place of its own that are not stored yet."""
        self._unwritten[heard.agent_id] = heard
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_later())

    def forget(self, agent_id: str) -> None:
        """Do not store what an agent said that is no more."""
        self._unwritten.pop(agent_id, None)

    async def stop(self) -> None:
        """Write what is not written, once."""
        if self._writing:
            self._writing.cancel()
        await self.write_now()

    async def _write_later(self) -> None:
        wait_s = self._interval_s
        while self._unwritten:
            await asyncio.sleep(wait_s)
            is_written = await self.write_now()
            wait_s = self._interval_s if is_written else min(_LONGEST_WAIT_S, 2 * wait_s)

    async def write_now(self) -> bool:
        """Write what is not written and return whether it is; what could not be stored is kept."""
        batch, self._unwritten = self._unwritten, {}
        if not batch:
            return True
        try:
            await self._runner.run(self._save, list(batch.values()))
        except ControllerError as exc:
            self._unwritten = {**batch, **self._unwritten}
            text, extra = "the status of %d agents is not stored: %s; %s", fields(code=exc.code)
            logger.warning(text, len(batch), exc.what, exc.why, extra=extra)
            return False
        return True
