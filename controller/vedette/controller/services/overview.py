"""The desk where admins look at the fleet and change what is known of an agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

from vedette.controller.domain.agents import AgentRecord, held_condition, slots_view, state_of
from vedette.controller.domain.errors import InvalidInput
from vedette.controller.domain.telemetry import Pulse, Tally, fleet_rows
from vedette.controller.services.fleet import Fleet
from vedette.controller.services.telemetry import Telemetry
from vedette.models.profile import latency_percentile
from vedette.models.version import __version__
from vedette.wire.views import Agent, AgentState, AgentTelemetry, ModelOverview, Overview

DEFAULT_WINDOW = timedelta(hours=1)
MAX_WINDOW = timedelta(days=366)
_NEEDS_ATTENTION = frozenset({AgentState.DEGRADED, AgentState.SILENT})

NewestVersions = Callable[[], Awaitable[Mapping[str, int]]]


class FleetDesk:
    """Answers about agents, and does what admins may do to them.

    Args:
        controller_id: Of this controller.
        fleet: The agents.
        telemetry: What they measured.
        newest_versions: The newest registered version of each model.
    """

    def __init__(
        self, *, controller_id: str, fleet: Fleet, telemetry: Telemetry, newest_versions: NewestVersions
    ) -> None:
        self._controller_id = controller_id
        self._fleet = fleet
        self._telemetry = telemetry
        self._newest_versions = newest_versions

    async def overview(self) -> Overview:
        """Return the state of the whole fleet and what to do next."""
        agents = await self._fleet.agents()
        newest = await self._newest_versions()
        states = [state_of(agent) for agent in agents]
        return Overview(
            controller_id=self._controller_id,
            version=__version__,
            agents=len(agents),
            online=sum(agent.is_online for agent in agents),
            need_attention=sum(state in _NEEDS_ATTENTION for state in states),
            models=await self._models(agents, newest),
            next_steps=next_steps(agents, newest),
            started=self._fleet.started,
        )

    async def _models(self, agents: Sequence[AgentRecord], newest: Mapping[str, int]) -> tuple[ModelOverview, ...]:
        tallies = await self._telemetry.tallies(DEFAULT_WINDOW)
        active = active_versions(agents)
        names = sorted({*newest, *active})
        return tuple(
            model_overview(name, newest.get(name, 0), active.get(name, {}), [t for t in tallies if t.model == name])
            for name in names
        )

    async def agents(self, selector: str) -> list[Agent]:
        """Return the agents that a selector matches, by name.

        Raises:
            InvalidInput: The selector cannot be read.
        """
        return [self._view(agent) for agent in await self._fleet.agents(selector)]

    async def agent(self, name: str) -> Agent:
        """Return one agent by name or id.

        Raises:
            NotFound: There is none.
        """
        return self._view(await self._fleet.agent(name))

    async def label(self, name: str, wanted: Mapping[str, str], unwanted: Sequence[str]) -> Agent:
        """Set and remove labels.

        Raises:
            NotFound: There is no such agent.
            InvalidInput: A label cannot be set.
        """
        return self._view(await self._fleet.label(name, wanted, unwanted))

    async def revoke(self, name: str) -> Agent:
        """Refuse an agent from now on. Idempotent.

        Raises:
            NotFound: There is no such agent.
        """
        return self._view(await self._fleet.revoke(name))

    async def remove(self, name: str) -> Agent:
        """Forget an agent and its telemetry.

        Raises:
            NotFound: There is no such agent.
        """
        agent = self._view(await self._fleet.remove(name))
        self._telemetry.forget(agent.id)
        return agent

    async def telemetry(self, model: str, window: timedelta) -> list[AgentTelemetry]:
        """Return what agents reported over the newest ``window``; the default when it is zero.

        Raises:
            InvalidInput: The window is too long.
        """
        if window > MAX_WINDOW:
            why = f"{window.total_seconds():.0f} s, limit {MAX_WINDOW.total_seconds():.0f} s"
            raise InvalidInput("window-invalid", "the window is too long", why)
        names = {agent.id: agent.name for agent in await self._fleet.agents()}
        return fleet_rows(await self._telemetry.tallies(window or DEFAULT_WINDOW), names, model)

    def _view(self, agent: AgentRecord) -> Agent:
        pulse = self._telemetry.pulse(agent.id) if agent.is_online else Pulse()  # nobody knows of a silent one
        totals = self._telemetry.totals(agent.id)
        held = held_condition(agent)
        return Agent(
            id=agent.id,
            name=agent.name,
            state=state_of(agent),
            labels=agent.labels,
            facts=agent.facts,
            slots=slots_view(agent),
            enrolled=agent.enrolled,
            seen=agent.seen,
            desired_sequence=agent.desired_sequence,
            running_sequence=agent.status.running_sequence if agent.status else 0,
            conditions=(*((held,) if held else ()), *(agent.status.conditions if agent.status else ())),
            flows_per_s=pulse.rows_per_s,
            latency_p50_ms=pulse.latency_p50_ms,
            latency_p99_ms=pulse.latency_p99_ms,
            rows=totals.rows,
            flagged=totals.flagged,
            address=agent.address,
        )


def active_versions(agents: Sequence[AgentRecord]) -> dict[str, Counter[str]]:
    """Return, for each model, how many agents run which version; revoked agents no longer count."""
    active: dict[str, Counter[str]] = {}
    for agent in agents:
        for slot in agent.status.slots if agent.status and not agent.revoked else ():
            if slot.active:
                name = f"{slot.active.model}:{slot.active.version}"
                active.setdefault(slot.active.model, Counter())[name] += 1
    return active


def model_overview(model: str, newest: int, active: Mapping[str, int], tallies: Sequence[Tally]) -> ModelOverview:
    """Return one model over the fleet, from what its versions' windows of an hour add up to."""
    rows = sum(tally.rows for tally in tallies)
    latency = sum((tally.latency for tally in tallies[1:]), start=tallies[0].latency) if tallies else ()
    return ModelOverview(
        model=model,
        newest_version=newest,
        active=dict(active),
        rows_per_hour=rows / (DEFAULT_WINDOW / timedelta(hours=1)),
        flagged_share=sum(tally.flagged for tally in tallies) / rows if rows else 0.0,
        latency_p99_ms=latency_percentile(latency, 0.99),
    )


def next_steps(agents: Sequence[AgentRecord], newest: Mapping[str, int]) -> tuple[str, ...]:
    """Return the commands that lead on from how things stand."""
    if not agents:
        return ("vedette token create", "vedette-agent enroll --token TOKEN    on each appliance")
    if not newest:
        return (
            "vedette data import FILE --dataset lab --format flows",
            "vedette train flow-threat --data lab@1",
        )
    troubled = [agent.name for agent in agents if state_of(agent) in _NEEDS_ATTENTION]
    if troubled:
        return (f"vedette agent show {troubled[0]}",)
    idle = [name for name in newest if not any(name in agent.slots for agent in agents)]
    if idle:
        return (f"vedette rollout start {idle[0]}:{newest[idle[0]]} --to '' --waves 1,100%",)
    return ()
