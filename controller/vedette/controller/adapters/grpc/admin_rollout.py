"""The verbs of rollouts in the Admin service: convert, call, convert, return. Errors are translated around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import grpc

from vedette.controller.services.rollouts import RolloutService
from vedette.wire.convert import ROLLOUT
from vedette.wire.v1 import admin_pb2

Context = grpc.aio.ServicerContext[object, object]


class AdminRollout:
    """Part of the Admin service.

    Args:
        rollouts: Does the work.
        caller: Tells the name of the admin behind a call.
    """

    def __init__(self, rollouts: RolloutService, caller: Callable[[Context], str]) -> None:
        self._rollouts = rollouts
        self._caller = caller

    async def StartRollout(self, request: admin_pb2.StartRolloutRequest, context: Context) -> admin_pb2.Rollout:  # noqa: N802
        """Start a rollout and return it at once."""
        started = await self._rollouts.begin(
            request.version,
            request.selector,
            tuple(request.waves),
            soak_s=request.soak_s,
            timeout_s=request.timeout_s,
            by=self._caller(context),
        )
        return ROLLOUT.to_wire(started)

    async def ListRollouts(self, _: admin_pb2.ListRolloutsRequest, context: Context) -> admin_pb2.RolloutList:  # noqa: N802
        """Return the newest rollouts, newest first."""
        found = await self._rollouts.rollouts()
        return admin_pb2.RolloutList(rollouts=[ROLLOUT.to_wire(item) for item in found])

    async def GetRollout(self, request: admin_pb2.GetRolloutRequest, context: Context) -> admin_pb2.Rollout:  # noqa: N802
        """Return one rollout."""
        return ROLLOUT.to_wire(await self._rollouts.rollout(request.rollout))

    async def WatchRollout(  # noqa: N802
        self, request: admin_pb2.GetRolloutRequest, context: Context
    ) -> AsyncIterator[admin_pb2.Rollout]:
        """Send a rollout now and at every change, until it has ended."""
        async for item in self._rollouts.watch(request.rollout):
            yield ROLLOUT.to_wire(item)

    async def PauseRollout(self, request: admin_pb2.GetRolloutRequest, context: Context) -> admin_pb2.Rollout:  # noqa: N802
        """Pause a rollout."""
        return ROLLOUT.to_wire(await self._rollouts.pause(request.rollout, self._caller(context)))

    async def ResumeRollout(self, request: admin_pb2.GetRolloutRequest, context: Context) -> admin_pb2.Rollout:  # noqa: N802
        """Let a paused rollout go on."""
        return ROLLOUT.to_wire(await self._rollouts.resume(request.rollout, self._caller(context)))

    async def AbortRollout(self, request: admin_pb2.GetRolloutRequest, context: Context) -> admin_pb2.Rollout:  # noqa: N802
        """End a rollout."""
        return ROLLOUT.to_wire(await self._rollouts.abort(request.rollout, self._caller(context)))
