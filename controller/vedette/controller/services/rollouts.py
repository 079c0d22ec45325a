"""Rollouts at work: hears of the fleet, asks the state machine, stores its decision, then acts on it.

Rules: every decision is stored before anything of it is done, and what is done is stored after; so a controller killed
at any instant finds what it was about to do and does it again, which changes nothing the second time. What agents say
is gathered for a moment and judged together, so that a thousand statuses cost one decision. One lock holds decisions
apart; actions are done in small batches between which a person's pause or abort gets in.

The service wakes on news and when time alone can change something; otherwise it sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from vedette.controller.domain import rollout as machine
from vedette.controller.domain.agents import AgentRecord, held_beside
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.desired import Desired, FleetView
from vedette.controller.domain.errors import DiskFull, InvalidInput, NotFound, Refused, StoreFailed
from vedette.controller.domain.rollout import Action, Candidate, Rollout, Sighting, Standing
from vedette.controller.domain.rollout_plan import by_file, choose_build, plan
from vedette.controller.domain.selector import Selector
from vedette.controller.domain.waves import parse_waves
from vedette.controller.services.ports import Runner
from vedette.controller.services.rollout_log import log_changes
from vedette.models.assignment import SlotAssignment
from vedette.wire import views
from vedette.wire.systemd import fields
from vedette.wire.values import GenerationResult, Severity, Status

logger = logging.getLogger(__name__)

MAX_LISTED = 50
MAX_LISTED_MEMBERS = 20_000
"""In one answer to ``list``; a member takes about 60 bytes and a message may have 4 MiB."""

_ACTIONS_AT_ONCE = 256
"""Done between two looks at what people want. Each batch passes over all members: assigning 10,000 agents took 38 s in
batches of 32 and 5.9 s in batches of 256 (2 cores, a store in SQLite, agents in memory)."""

_STEP_S = 2.0
"""A wall clock that moved this much more or less than the monotonic one was set."""


class Rollouts(Protocol):
    """Keeps rollouts. Methods run in the database's thread; each is one transaction."""

    def next_id(self) -> str:
        """Return the id of the next rollout."""
        ...

    def save(self, rollout: Rollout, before: Rollout | None) -> None:
        """Keep a rollout; ``before`` is its form kept last, None when it is new."""

    def load(self, rollout_id: str) -> Rollout | None:
        """Return a rollout, or None when there is none of that id."""
        ...

    def unfinished(self) -> list[Rollout]:
        """Return, oldest first, those that have not ended or in which something is still to be done."""
        ...

    def newest(self, limit: int) -> list[Rollout]:
        """Return at most ``limit``, newest first."""
        ...

    def standing_for(self, agent_id: str) -> list[Standing]:
        """Return, newest first, the successes younger than what decided last of the agent's slot of the same model.

        That is the newest rollout that had it as a member, or :meth:`save_by_file`.
        """
        ...

    def save_by_file(self, agent_ids: Iterable[str], version: str, at: datetime, by: str) -> None:
        """Keep that a person decided by file what agents run of a model: no rollout of before owes them another."""


class Versions(Protocol):
    """The registry, as far as rollouts need it."""

    async def version(self, name: str) -> views.Version:
        """Return a version by its name MODEL:N.

        Raises:
            NotFound: There is none; the message names the nearest.
            InvalidInput: The name has no such form.
        """
        ...


class RolloutService:
    """Starts, moves on and tells of rollouts; a ``FleetObserver`` of the fleet.

    All methods are for the event loop's thread.

    Args:
        runner: Runs ``store``.
        store: Where rollouts are kept.
        fleet: Tells how agents stand.
        desired: Changes what agents shall run.
        versions: The registry.
        clock: The time; its wall clock may be set at any moment.
        gather_s: How long news is gathered before it is judged, seconds.
        retry_s: How long to wait after the store failed, seconds.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        store: Rollouts,
        fleet: FleetView,
        desired: Desired,
        versions: Versions,
        clock: Clock,
        gather_s: float = 0.2,
        retry_s: float = 5.0,
    ) -> None:
        self._runner = runner
        self._store = store
        self._fleet = fleet
        self._desired = desired
        self._versions = versions
        self._clock = clock
        self._gather_s = gather_s
        self._retry_s = retry_s
        self._rollouts: dict[str, Rollout] = {}  # unfinished ones, as they are stored
        self._news: set[str] = set()  # agents heard of since the last decision
        self._newcomers: dict[str, Mapping[str, str]] = {}  # attributes with which an agent was last looked at
        self._place_all = True  # a rollout has succeeded: any agent may be owed its version
        self._look_at_all = True  # not at those with news alone
        self._judged_at = clock.now()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._clock_offset = self._offset()

    async def start(self) -> None:
        """Take up what an earlier run left unfinished and go on with it in the background."""
        await self.recover()
        self._task = asyncio.create_task(self._run(), name="rollouts")

    async def recover(self) -> None:
        """Take up what an earlier run left unfinished; it goes on with the next :meth:`tick`."""
        for stored in await self._runner.run(self._store.unfinished):
            self._rollouts[stored.id] = stored
            await self._keep(machine.recovered(stored, self._clock.now()))
            extra = fields(rollout=stored.id, model=stored.version)
            logger.info("rollout %s of %s is taken up again: %s", stored.id, stored.version, stored.state, extra=extra)

    async def stop(self) -> None:
        """Stop in the background; everything is stored."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- what people ask -------------------------------------------------------------------------------------------

    async def begin(
        self, version: str, selector: str, waves: Sequence[str], *, soak_s: int, timeout_s: int, by: str
    ) -> views.Rollout:
        """Start a rollout and return it with its first wave decided; the agents hear of it at once after.

        Raises:
            StoreFailed, DiskFull: Nothing was started.
            NotFound: There is no such version.
            InvalidInput: Selector, waves or times cannot be read or are out of range.
            Refused: See :func:`~vedette.controller.domain.rollout_plan.plan`.
        """
        sizes = parse_waves(waves)
        wanted = await self._versions.version(version)
        async with self._lock:
            await self._take_back()
            agents = [agent for agent in await self._fleet.agents(selector) if not agent.revoked]
            _check_none_held(agents, wanted.model)
            rollout = plan(
                await self._runner.run(self._store.next_id),
                wanted,
                [_candidate(agent, wanted.model) for agent in agents],
                selector=selector.strip(),
                waves=sizes,
                soak_s=soak_s,
                timeout_s=timeout_s,
                started_by=by,
                now=self._clock.now(),
                others=self._rollouts.values(),
            )
            await self._keep(rollout)
            self._look_at_all = True
        self._wake.set()
        return machine.view(rollout)

    async def decide_by_file(self, version: str, selector: str, by: str) -> tuple[str, ...]:
        """Make a version what agents shall run that get it by file; return their ids. The same again changes nothing.

        What is in the file must be what is desired of them: else the next connection would take it back.

        Raises:
            StoreFailed, DiskFull: Some may be decided; the same again goes on with the others.
            NotFound: There is no such version.
            InvalidInput: The selector cannot be read.
            Refused: See :func:`~vedette.controller.domain.rollout_plan.by_file`.
        """
        wanted = await self._versions.version(version)
        async with self._lock:
            await self._take_back()
            agents = [agent for agent in await self._fleet.agents(selector) if not agent.revoked]
            _check_none_held(agents, wanted.model)
            candidates = [_candidate(agent, wanted.model) for agent in agents]
            choices = by_file(wanted, candidates, selector=selector.strip(), others=self._rollouts.values())
            now = self._clock.now()
            # Before it is so: a controller killed in between must not give them an older version when it starts.
            await self._runner.run(self._store.save_by_file, tuple(choices), wanted.version, now, by)
            for agent_id, choice in choices.items():
                await self._desired.set_slot(agent_id, choice)
        return tuple(choices)

    async def _take_back(self) -> None:
        """Finish what ended rollouts still have to take back: a new one must see, and keep, what is then desired."""
        for rollout_id in list(self._rollouts):
            while (rollout := self._rollouts.get(rollout_id)) and rollout.has_ended:
                await self._act(rollout)

    async def pause(self, rollout_id: str, by: str) -> views.Rollout:
        """Pause a rollout. Raises NotFound, or Refused when it has ended."""
        return await self._command(rollout_id, by, machine.pause)

    async def resume(self, rollout_id: str, by: str) -> views.Rollout:
        """Let a paused rollout go on. Raises NotFound, or Refused when it has ended."""
        return await self._command(rollout_id, by, machine.resume)

    async def abort(self, rollout_id: str, by: str) -> views.Rollout:
        """End a rollout. Raises NotFound, or Refused when it has ended otherwise."""
        return await self._command(rollout_id, by, machine.abort)

    async def _command(
        self, rollout_id: str, by: str, change: Callable[[Rollout, str, datetime], Rollout]
    ) -> views.Rollout:
        async with self._lock:
            rollout = change(await self._find(rollout_id), by, self._clock.now())
            if rollout.id in self._rollouts:
                await self._keep(rollout)
                self._look_at_all = True
        self._wake.set()
        return machine.view(rollout)

    async def rollout(self, rollout_id: str) -> views.Rollout:
        """Return a rollout. Raises NotFound."""
        return machine.view(await self._find(rollout_id))

    async def rollouts(self) -> tuple[views.Rollout, ...]:
        """Return the newest rollouts, newest first, without events; of many agents, without members too."""
        shown, members = [], 0
        for rollout in await self._runner.run(self._store.newest, MAX_LISTED):
            members += len(rollout.members)
            item = replace(machine.view(rollout), events=())
            if members > MAX_LISTED_MEMBERS:
                item = replace(item, waves=tuple(replace(wave, members=()) for wave in item.waves))
            shown.append(item)
        return tuple(shown)

    async def watch(self, rollout_id: str) -> AsyncIterator[views.Rollout]:
        """Yield a rollout now and at every change, until it has ended. Raises NotFound.

        Changes that come faster than they are taken are told as one.
        """
        last: views.Rollout | None = None
        while True:
            changed = self._changed  # before reading, so that no change falls between
            rollout = await self._find(rollout_id)
            shown = machine.view(rollout)
            if shown != last:
                yield shown
            if rollout.has_ended:
                return
            last = shown
            await changed.wait()

    async def _find(self, rollout_id: str) -> Rollout:
        known = self._rollouts.get(rollout_id) or await self._runner.run(self._store.load, rollout_id)
        if known is None:
            raise NotFound(
                "rollout-missing", f"there is no rollout {rollout_id[:40]}", "", "vedette rollout ls shows all"
            )
        return known

    # -- what the fleet says ---------------------------------------------------------------------------------------

    async def on_status(self, agent_id: str, status: Status) -> None:
        """Note that an agent said how it stands."""
        self._heard_of(agent_id)

    async def on_result(self, agent_id: str, result: GenerationResult) -> None:
        """Note that an agent judged an assignment."""
        self._heard_of(agent_id)

    async def on_presence(self, agent_id: str, *, is_online: bool) -> None:
        """Note that an agent came or went."""
        self._heard_of(agent_id)

    async def on_enrolled(self, agent_id: str) -> None:
        """Note that there is a new agent: it may be owed a version."""
        self._heard_of(agent_id)

    def _heard_of(self, agent_id: str) -> None:
        self._news.add(agent_id)
        self._wake.set()

    # -- moving on -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._sleep()
            try:
                await self.tick()
            except (StoreFailed, DiskFull) as exc:
                logger.warning(
                    "rollouts wait, the store failed: %s; %s", exc.what, exc.why, extra=fields(code=exc.code)
                )
                await asyncio.sleep(self._retry_s)
                self._wake.set()
            except Exception:
                logger.exception("rollouts failed at a step and go on")  # a mistake here must not end all rollouts
                await asyncio.sleep(self._retry_s)
                self._wake.set()

    async def _sleep(self) -> None:
        # Seen from the last judgement, not from now: what fell due in between must not be slept over.
        due = [machine.next_due(rollout, self._judged_at) for rollout in self._rollouts.values()]
        next_due = min((at for at in due if at is not None), default=None)
        timeout = max(0.0, (next_due - self._clock.now()).total_seconds()) if next_due else None
        try:
            await asyncio.wait_for(self._wake.wait(), timeout)
            await asyncio.sleep(self._gather_s)
        except TimeoutError:
            self._look_at_all = True
        self._wake.clear()

    async def tick(self) -> None:
        """Judge every unfinished rollout by what is known now, and do what is decided.

        Raises:
            StoreFailed, DiskFull: What was decided is not kept and nothing of it done; a later tick decides again.
        """
        news, self._news = self._news, set()
        try:
            await self._judge_all(news)
            await self._act_all()
            await self._place_newcomers(news)
        except (StoreFailed, DiskFull):
            self._news |= news
            self._look_at_all = True
            raise

    async def _judge_all(self, news: set[str]) -> None:
        async with self._lock:
            stepped = self._clock_step()
            self._judged_at = now = self._clock.now()
            for rollout in list(self._rollouts.values()):
                agents = [member.agent_id for member in rollout.members]
                seen = agents if self._look_at_all else [agent_id for agent_id in agents if agent_id in news]
                timed = machine.shifted(rollout, stepped) if stepped else rollout
                await self._keep(machine.tick(timed, await self._sightings(seen, rollout), now))
            self._look_at_all = False

    def _offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _clock_step(self) -> timedelta | None:
        """Return by how much the wall clock was set since the last call; None when it was not."""
        offset, known = self._offset(), self._clock_offset
        self._clock_offset = offset
        if abs(offset - known) < _STEP_S:
            return None
        logger.warning("the clock was set by %+.0f s; the waits of rollouts move along", offset - known)
        return timedelta(seconds=offset - known)

    async def _sighting(self, agent_id: str, rollout: Rollout) -> Sighting:
        try:
            agent = await self._fleet.agent(agent_id)
            return replace(_sighting(agent, rollout.model), left=_why_left(agent, rollout))
        except NotFound:
            return Sighting(agent_id=agent_id, gone=True)

    async def _keep(self, rollout: Rollout) -> None:
        """Store a rollout if it has changed, then tell those who watch."""
        before = self._rollouts.get(rollout.id)
        if before != rollout:
            await self._runner.run(self._store.save, rollout, before)
            self._changed.set()
            self._changed = asyncio.Event()
            log_changes(before, rollout)
            if before and before.state is not rollout.state:
                self._place_all |= rollout.state is views.RolloutState.SUCCEEDED
        if rollout.has_ended and not machine.pending_actions(rollout):
            self._rollouts.pop(rollout.id, None)
        else:
            self._rollouts[rollout.id] = rollout

    async def _act_all(self) -> None:
        """Do what is pending, a batch of each rollout at a time, so that people get a word in between."""
        while any(machine.pending_actions(rollout) for rollout in self._rollouts.values()):
            for rollout_id in list(self._rollouts):
                async with self._lock:
                    if rollout_id in self._rollouts:
                        await self._act(self._rollouts[rollout_id])

    async def _act(self, rollout: Rollout) -> None:
        sequences: dict[str, int] = {}
        impossible: dict[str, str] = {}
        for action in machine.pending_actions(rollout)[:_ACTIONS_AT_ONCE]:
            try:
                await self._check_not_left(action.agent_id, rollout)
                sequences[action.agent_id] = await self._perform(action)
            except (NotFound, Refused, InvalidInput) as exc:
                impossible[action.agent_id] = f"{exc.what}: {exc.why}" if exc.why else exc.what
        seen = await self._sightings(impossible, rollout)
        gone = [sighting for sighting in seen if sighting.gone or sighting.left]
        now = self._clock.now()
        rollout = machine.tick(machine.performed(rollout, sequences), gone, now)
        await self._keep(machine.barred(rollout, impossible, now))

    async def _sightings(self, agent_ids: Iterable[str], rollout: Rollout) -> list[Sighting]:
        return [await self._sighting(agent_id, rollout) for agent_id in agent_ids]

    async def _check_not_left(self, agent_id: str, rollout: Rollout) -> None:
        why = _why_left(await self._fleet.agent(agent_id), rollout)
        if why:
            raise Refused("agent-held", f"rollout {rollout.id} no longer moves it", why)

    async def _perform(self, action: Action) -> int:
        if action.choice is None:
            return await self._desired.clear_slot(action.agent_id, action.slot)
        return await self._desired.set_slot(action.agent_id, action.choice)

    # -- those who come later --------------------------------------------------------------------------------------

    async def _place_newcomers(self, news: set[str]) -> None:
        """Give agents that came after a rollout what it rolled out to their like."""
        if self._place_all:
            self._place_all = False
            self._newcomers.clear()
            news = {agent.id for agent in await self._fleet.agents()}
        for agent_id in sorted(news):
            with contextlib.suppress(NotFound):
                await self._place(await self._fleet.agent(agent_id))

    async def _place(self, agent: AgentRecord) -> None:
        if agent.revoked or self._newcomers.get(agent.id) == agent.attributes:
            return
        standing = await self._runner.run(self._store.standing_for, agent.id)
        if moved_on := agent.moved_on:  # what it runs since is newer than what succeeded before
            standing = [item for item in standing if item.ended and item.ended > moved_on]
        for item in machine.owed(standing, lambda text: Selector.parse(text).matches(agent.attributes)):
            await self._assign_standing(agent, item)
        self._newcomers[agent.id] = agent.attributes

    async def _assign_standing(self, agent: AgentRecord, item: Standing) -> None:
        extra = fields(agent=agent.name, model=item.version, slot=item.model)
        try:
            version = await self._versions.version(item.version)
            build = choose_build(version, agent.facts)
            if build is None:
                text = "agent %s should run %s and has no runtime for it"
                logger.warning(text, agent.name, item.version, extra=extra)
                return
            target = SlotAssignment(item.model, item.model, version.number, version.digest, build.digest)
            await self._desired.set_slot(agent.id, target)
            logger.info("agent %s came later and gets %s", agent.name, item.version, extra=extra)
        except (NotFound, Refused) as exc:
            text = "agent %s should run %s: %s; %s"
            logger.warning(text, agent.name, item.version, exc.what, exc.why, extra=extra)


def _check_none_held(agents: Iterable[AgentRecord], slot: str) -> None:
    held = [f"{agent.name} ({', '.join(others)})" for agent in agents if (others := held_beside(agent, slot))]
    if held:
        why = f"{', '.join(held[:5])}{' …' if len(held) > 5 else ''}: unknown here since an older backup was restored"
        what = f"{len(held)} of these agents are held by what they run in other slots"
        raise Refused("agent-held", what, why, "restore a newer backup, move those slots on first, or leave them out")


def _why_left(agent: AgentRecord, rollout: Rollout) -> str:
    """Return why a rollout of before a restore leaves an agent alone, empty when it does not."""
    if agent.moved_on is None or agent.moved_on <= rollout.started:
        return ""
    return "it moved on after the backup that was restored, and keeps what it runs"


def _candidate(agent: AgentRecord, slot: str) -> Candidate:
    return Candidate(
        agent_id=agent.id,
        name=agent.name,
        facts=agent.facts,
        desired=agent.slots.get(slot),
        sighting=_sighting(agent, slot),
    )


def _sighting(agent: AgentRecord, slot: str) -> Sighting:
    status = agent.status
    conditions = status.conditions if status else ()
    return Sighting(
        agent_id=agent.id,
        online=agent.is_online,
        gone=agent.revoked is not None,
        slot=next((item for item in status.slots if item.slot == slot), None) if status else None,
        attempted=status.attempted_sequence if status else 0,
        errors={item.code: item.text for item in conditions if item.severity is Severity.ERROR},
        results=(agent.result,) if agent.result else (),
    )
