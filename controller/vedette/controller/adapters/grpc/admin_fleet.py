"""Admin verbs of the fleet: overview, tokens, agents, telemetry."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from grpc import aio

from vedette.controller.services.enrolment import Enrolment
from vedette.controller.services.overview import FleetDesk
from vedette.wire import convert
from vedette.wire.systemd import fields
from vedette.wire.v1 import admin_pb2

logger = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]


class AdminFleet:
    """Serves the verbs about agents; a part of the Admin service. Who changed what is logged.

    Args:
        desk: Knows the agents.
        enrolment: Knows the tokens.
        caller: Tells the name of the admin behind a call.
    """

    def __init__(self, desk: FleetDesk, enrolment: Enrolment, caller: Callable[[Context], str]) -> None:
        self._desk = desk
        self._enrolment = enrolment
        self._caller = caller

    async def GetOverview(self, request: admin_pb2.GetOverviewRequest, context: Context) -> admin_pb2.Overview:  # noqa: N802
        """Return the state of the fleet."""
        return convert.OVERVIEW.to_wire(await self._desk.overview())

    async def CreateToken(self, request: admin_pb2.CreateTokenRequest, context: Context) -> admin_pb2.Token:  # noqa: N802
        """Make an enrolment token."""
        token = await self._enrolment.create_token(dict(request.labels), request.uses, request.expires_s)
        until = f"{token.expires:%Y-%m-%d %H:%M:%S} UTC" if token.expires else "for ever"
        told = self._caller(context), token.id, _words(token.labels), token.uses, until
        logger.info("%s made token %s: labels %s, agents it may enrol %d, good until %s", *told)
        return convert.TOKEN.to_wire(token)

    async def ListTokens(self, request: admin_pb2.ListTokensRequest, context: Context) -> admin_pb2.TokenList:  # noqa: N802
        """Return every token, without their texts."""
        tokens = await self._enrolment.list_tokens()
        return admin_pb2.TokenList(tokens=[convert.TOKEN.to_wire(token) for token in tokens])

    async def RevokeToken(self, request: admin_pb2.RevokeTokenRequest, context: Context) -> admin_pb2.Token:  # noqa: N802
        """Revoke a token."""
        token = await self._enrolment.revoke_token(request.id)
        logger.info("%s revoked token %s", self._caller(context), token.id)
        return convert.TOKEN.to_wire(token)

    async def ListAgents(self, request: admin_pb2.ListAgentsRequest, context: Context) -> admin_pb2.AgentList:  # noqa: N802
        """Return the agents that a selector matches."""
        agents = await self._desk.agents(request.selector)
        return admin_pb2.AgentList(agents=[convert.AGENT.to_wire(agent) for agent in agents])

    async def GetAgent(self, request: admin_pb2.GetAgentRequest, context: Context) -> admin_pb2.Agent:  # noqa: N802
        """Return one agent."""
        return convert.AGENT.to_wire(await self._desk.agent(request.name))

    async def LabelAgent(self, request: admin_pb2.LabelAgentRequest, context: Context) -> admin_pb2.Agent:  # noqa: N802
        """Set and remove labels of an agent."""
        agent = await self._desk.label(request.name, dict(request.set), list(request.remove))
        told = self._caller(context), agent.name, _words(agent.labels)
        logger.info("%s labelled agent %s, which has now: %s", *told, extra=fields(agent=agent.name))
        return convert.AGENT.to_wire(agent)

    async def RevokeAgent(self, request: admin_pb2.RevokeAgentRequest, context: Context) -> admin_pb2.Agent:  # noqa: N802
        """Refuse an agent from now on."""
        agent = await self._desk.revoke(request.name)
        logger.info("%s revoked agent %s", self._caller(context), agent.name, extra=fields(agent=agent.name))
        return convert.AGENT.to_wire(agent)

    async def RemoveAgent(self, request: admin_pb2.RemoveAgentRequest, context: Context) -> admin_pb2.Agent:  # noqa: N802
        """Forget an agent."""
        agent = await self._desk.remove(request.name)
        logger.info("%s removed agent %s", self._caller(context), agent.name, extra=fields(agent=agent.name))
        return convert.AGENT.to_wire(agent)

    async def GetFleetTelemetry(  # noqa: N802
        self, request: admin_pb2.GetFleetTelemetryRequest, context: Context
    ) -> admin_pb2.FleetTelemetry:
        """Return what agents reported over a window."""
        rows = await self._desk.telemetry(request.model, timedelta(seconds=request.window_s))
        return admin_pb2.FleetTelemetry(agents=[convert.AGENT_TELEMETRY.to_wire(row) for row in rows])


def _words(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "none"
