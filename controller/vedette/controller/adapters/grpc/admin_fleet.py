"""Admin verbs of the fleet: overview, tokens, agents, telemetry."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from grpc import aio

from vedette.controller.services.enrolment import Enrolment
from vedette.controller.services.overview import FleetDesk
from vedette.wire import convert
from vedette.wire.v1 import admin_pb2

Context = aio.ServicerContext[Any, Any]


class AdminFleet:
    """Serves the verbs about agents; a part of the Admin service."""

    def __init__(self, desk: FleetDesk, enrolment: Enrolment) -> None:
        self._desk = desk
        self._enrolment = enrolment

    async def GetOverview(self, request: admin_pb2.GetOverviewRequest, context: Context) -> admin_pb2.Overview:  # noqa: N802
        """Return the state of the fleet."""
        return convert.OVERVIEW.to_wire(await self._desk.overview())

    async def CreateToken(self, request: admin_pb2.CreateTokenRequest, context: Context) -> admin_pb2.Token:  # noqa: N802
        """Make an enrolment token."""
        token = await self._enrolment.create_token(dict(request.labels), request.uses, request.expires_s)
        return convert.TOKEN.to_wire(token)

    async def ListTokens(self, request: admin_pb2.ListTokensRequest, context: Context) -> admin_pb2.TokenList:  # noqa: N802
        """Return every token, without their texts."""
        tokens = await self._enrolment.list_tokens()
        return admin_pb2.TokenList(tokens=[convert.TOKEN.to_wire(token) for token in tokens])

    async def RevokeToken(self, request: admin_pb2.RevokeTokenRequest, context: Context) -> admin_pb2.Token:  # noqa: N802
        """Revoke a token."""
        return convert.TOKEN.to_wire(await self._enrolment.revoke_token(request.id))

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
        return convert.AGENT.to_wire(agent)

    async def RevokeAgent(self, request: admin_pb2.RevokeAgentRequest, context: Context) -> admin_pb2.Agent:  # noqa: N802
        """Refuse an agent from now on."""
        return convert.AGENT.to_wire(await self._desk.revoke(request.name))

    async def RemoveAgent(self, request: admin_pb2.RemoveAgentRequest, context: Context) -> admin_pb2.Agent:  # noqa: N802
        """Forget an agent."""
        return convert.AGENT.to_wire(await self._desk.remove(request.name))

    async def GetFleetTelemetry(  # noqa: N802
        self, request: admin_pb2.GetFleetTelemetryRequest, context: Context
    ) -> admin_pb2.FleetTelemetry:
        """Return what agents reported over a window."""
        rows = await self._desk.telemetry(request.model, timedelta(seconds=request.window_s))
        return admin_pb2.FleetTelemetry(agents=[convert.AGENT_TELEMETRY.to_wire(row) for row in rows])
