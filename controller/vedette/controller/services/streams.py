"""One agent's stream, seen from the controller: what is still to be said on it, and why it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vedette.wire.convert import ControllerWord
from vedette.wire.values import DesiredState, Welcome


class Session:
    """What is to be said to one agent. Of desired states only the newest is kept: an older one is never sent after it.

    Args:
        agent_id: Whose stream it is.
        address: Where it comes from.
        heard_s: Monotonic seconds when it began.
    """

    def __init__(self, agent_id: str, address: str, heard_s: float) -> None:
        self.agent_id = agent_id
        self.address = address
        self.heard_s = heard_s
        self.reissued = 0
        self._welcome: Welcome | None = None
        self._desired: DesiredState | None = None
        self._error: Exception | None = None
        self._has_ended = False
        self._wake = asyncio.Event()

    def welcome(self, word: Welcome) -> None:
        """Answer the hello."""
        self._welcome = word
        self._wake.set()

    def offer(self, desired: DesiredState) -> None:
        """Say what is desired, in place of anything desired that was not said yet."""
        self._desired = desired
        self._wake.set()

    def end(self, error: Exception | None = None) -> None:
        """End the stream, with an error if there is one, without saying what is left. The first end holds."""
        if self._has_ended:
            return
        self._has_ended, self._error = True, error
        self._wake.set()

    async def words(self) -> AsyncIterator[ControllerWord]:
        """Yield what is to be said, when there is something, until the stream ends.

        Raises:
            Exception: What :meth:`end` was given.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._error:
                raise self._error
            if self._has_ended:
                return
            welcome, self._welcome = self._welcome, None
            if welcome:
                yield welcome
            desired, self._desired = self._desired, None
            if desired:
                yield desired
