"""The fleet: every agent's record, its stream when it is connected, and what it shall run.

Rules: the database is the truth, memory its copy for reading; desired state is stored before it is sent; a second
stream of an agent ends the first; statuses are written together, at most every second, because an agent repeats its
own at each hello; what an agent judged is stored before anyone is told. One agent's trouble ends one stream.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from vedette.controller.domain.agents import AgentRecord, held_beside
from vedette.controller.domain.clock import Clock
from vedette.controller.domain.desired import (
    FleetObserver,
    Heard,
    Issued,
    Kept,
    Releases,
    StoredAgent,
    has_moved_on,
    issue,
    keep_running,
    must_reissue_after,
    must_reissue_at_hello,
    must_reissue_for_a_file,
)
from vedette.controller.domain.errors import (
    ControllerError,
    InvalidInput,
    NotFound,
    Refused,
    Unauthenticated,
    Unavailable,
)
from vedette.controller.domain.selector import Selector, check_labels
from vedette.controller.services.ports import Runner
from vedette.controller.services.statuses import StatusWriter
from vedette.controller.services.streams import Session
from vedette.models.assignment import MAX_SLOTS, SlotAssignment
from vedette.models.signing import SigningKey
from vedette.wire.convert import AgentWord
from vedette.wire.systemd import fields
from vedette.wire.values import DesiredState, GenerationResult, Hello, Outcome, Status, Welcome

logger = logging.getLogger(__name__)

MAX_SEQUENCE = 2**53
"""The highest an agent may report: JSON numbers are exact up to here, and the next one must still be."""

_MOST_REISSUES = 3  # on one stream: an agent that refuses every number must not make us sign for ever
_MOST_ENVELOPES = 256


class Agents(Protocol):
    """The store of agents. Methods run in the database's thread; each is one transaction."""

    def load(self) -> list[StoredAgent]:
        """Return every agent, by name."""
        ...

    def save_heard(self, words: Sequence[Heard]) -> None:
        """Keep what agents said last; words of agents that are gone are dropped."""

    def save_result(self, agent_id: str, result: GenerationResult) -> None:
        """Keep how an agent judged an assignment."""

    def save_desired(self, agent_id: str, issued: Issued, at: datetime) -> None:
        """Keep a new assignment, and its slots as what is desired."""

    def save_kept(self, agent_id: str, kept: Kept, status: Status, moved_on: datetime | None) -> None:
        """Keep what is wanted of an agent that was heard after a restore, and the numbers it shows to be used."""

    def set_labels(self, agent_id: str, labels: Mapping[str, str]) -> None:
        """Replace an agent's labels."""

    def revoke(self, agent_id: str, at: datetime) -> None:
        """Mark an agent as revoked; the first time stays."""

    def remove(self, agent_id: str) -> None:
        """Forget an agent and all that is kept of it."""


@dataclass(slots=True)
class _Entry:
    record: AgentRecord
    newest: Issued | None = None
    reported_sequence: int = 0
    restored_sequence: int | None = None  # until the agent is heard after a restore: the highest issued before it
    session: Session | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while an assignment is made and stored


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How the fleet is kept."""

    status_interval_s: int = 30  # at least this often an agent says how it stands
    write_interval_s: float = 1.0  # statuses of this long are written together
    restored_backup: datetime | None = None  # when the backup was made that was restored last


class Fleet:
    """Serves agents' streams and is the :class:`Desired` and :class:`FleetView` of the rollout engine."""

    def __init__(
        self,
        *,
        runner: Runner,
        store: Agents,
        releases: Releases,
        key: SigningKey,
        clock: Clock,
        settings: FleetSettings,
    ) -> None:
        self._runner = runner
        self._store = store
        self._releases = releases
        self._key = key
        self._clock = clock
        self._settings = settings
        self._entries: dict[str, _Entry] = {}
        self._ids: dict[str, str] = {}  # by name
        self._observers: list[FleetObserver] = []
        self._envelopes: dict[str, bytes] = {}
        self._statuses = StatusWriter(runner, store.save_heard, settings.write_interval_s)
        self.started = clock.now()

    async def start(self) -> None:
        """Read every agent from the store; all are offline until they come."""
        for stored in await self._runner.run(self._store.load):
            sequence = stored.newest.sequence if stored.newest else 0
            record = replace(stored.record, slots=stored.slots, desired_sequence=sequence)
            self._entries[record.id] = _Entry(record, stored.newest, stored.reported_sequence, stored.restored_sequence)
            self._ids[record.name] = record.id

    async def stop(self) -> None:
        """Write what agents said last and end their streams; they come back by themselves."""
        for entry in self._entries.values():
            if entry.session:
                entry.session.end(_stopping())
        await self._statuses.stop()

    def subscribe(self, observer: FleetObserver) -> None:
        """Tell an observer what agents say from now on."""
        self._observers.append(observer)

    @property
    def online(self) -> int:
        """How many agents are connected."""
        return sum(entry.session is not None for entry in self._entries.values())

    @property
    def size(self) -> int:
        """How many agents there are that were not revoked."""
        return sum(entry.record.revoked is None for entry in self._entries.values())

    # -- FleetView -------------------------------------------------------------------------------------------------

    async def agents(self, selector: str = "") -> tuple[AgentRecord, ...]:
        """Return the agents a selector matches, revoked ones included, by name."""
        parsed = Selector.parse(selector)
        found = (entry.record for entry in self._entries.values() if parsed.matches(entry.record.attributes))
        return tuple(sorted(found, key=lambda record: record.name))

    async def agent(self, name: str) -> AgentRecord:
        """Return one agent by name or id."""
        return self._named(name).record

    def name_of(self, agent_id: str) -> str:
        """Return an agent's name by its id; the id of one that is not known any more."""
        entry = self._entries.get(agent_id)
        return entry.record.name if entry else agent_id

    def _named(self, name: str) -> _Entry:
        entry = self._entries.get(self._ids.get(name, name))
        if entry is None:
            nearest = difflib.get_close_matches(name, self._ids, n=1)
            why = f"the nearest name is {nearest[0]}" if nearest else f"{len(self._ids)} agents are known"
            raise NotFound("agent-missing", f"there is no agent {name[:80]}", why, "vedette agent ls shows all")
        return entry

    def check_agent(self, agent_id: str, key_digest: str) -> None:
        """Check that a certificate's holder is an agent in good standing.

        Raises:
            Unauthenticated: It is unknown, was removed or revoked, or holds another key.
        """
        entry = self._entries.get(agent_id)
        if entry is None or entry.record.key_digest != key_digest:
            why = f"agent {agent_id[:80]} was removed, or enrolled with another controller"
            if backup := self._settings.restored_backup:
                why += f", or after {backup:%Y-%m-%d %H:%M} UTC: this one was restored from a backup of then"
            raise Unauthenticated("agent-unknown", "the controller does not know this agent", why, "enrol it again")
        if entry.record.revoked:
            raise _revoked(entry.record)

    # -- streams ---------------------------------------------------------------------------------------------------

    async def connect(self, agent_id: str, address: str, hello: Hello) -> Session:
        """Begin an agent's stream; an earlier one of the same agent ends.

        The session says welcome and, when its digest differs from what the agent applied, the desired state.

        Raises:
            Unauthenticated: The agent is unknown or revoked.
            InvalidInput: It reports an impossible sequence.
        """
        entry = self._entry(agent_id)
        _check_sequence(max(hello.highest_sequence, hello.status.desired_sequence))
        if entry.session:
            why = f"a newer one came from {address}"
            entry.session.end(Refused("stream-replaced", "another stream of this agent took over", why))
        session = Session(agent_id, address, self._clock.monotonic())
        entry.session = session
        entry.reported_sequence = max(entry.reported_sequence, hello.highest_sequence)
        entry.record = replace(entry.record, facts=hello.facts, address=address, is_online=True)
        session.welcome(Welcome(time=self._clock.now(), status_interval_s=self._settings.status_interval_s))
        logger.info("agent %s connected from %s", entry.record.name, address, extra=fields(agent=entry.record.name))
        try:
            await self._catch_up(entry, session, hello)
            await self._tell(lambda observer: observer.on_presence(agent_id, is_online=True))
            await self._on_status(entry, hello.status)
        except BaseException:  # the call was cancelled, say: nobody else would note that this stream is no more
            await self.disconnected(session)
            raise
        return session

    async def _catch_up(self, entry: _Entry, session: Session, hello: Hello) -> None:
        try:
            async with entry.lock:
                if await self._is_held(entry, hello):
                    return
                newest = entry.newest
                if newest is None or newest.digest == hello.applied_digest:
                    return
                if must_reissue_at_hello(
                    newest,
                    applied_digest=hello.applied_digest,
                    highest_sequence=entry.reported_sequence,
                    now=self._clock.now(),
                ):
                    newest = await self._issue(entry, entry.record.slots)
                session.offer(await self._desired_state(newest))
        except ControllerError as exc:  # a full disk, say: the agent serves on, and its status is still wanted
            extra = fields(agent=entry.record.name, code=exc.code)
            logger.warning("agent %s gets no desired state: %s; %s", entry.record.name, exc.what, exc.why, extra=extra)

    async def _is_held(self, entry: _Entry, hello: Hello) -> bool:
        """Take in what an agent runs that moved on after a restored backup; return whether nothing may be sent to it.

        The entry's lock is held.
        """
        moved_on = entry.record.held or has_moved_on(
            entry.newest,
            restored_sequence=entry.restored_sequence,
            applied_digest=hello.applied_digest,
            highest_sequence=entry.reported_sequence,
        )
        if not moved_on:
            if entry.restored_sequence is not None:
                await self._save_kept(entry, Kept(entry.record.slots), hello.status, entry.record.moved_on)
            return False
        running = (slot.active for slot in hello.status.slots)
        known = {ref: await self._runner.run(self._releases.release_of, ref) for ref in running if ref}
        kept = keep_running(entry.record.slots, hello.status, known.get)
        has_changed = kept.unknown or kept.slots != entry.record.slots
        newest = entry.newest.sequence if entry.newest else 0
        logger.warning(
            "agent %s knows assignment %d, the newest here is %d: an older backup was restored. Numbers go on above;"
            " it keeps what it runs%s",
            entry.record.name, entry.reported_sequence, newest,
            f"; held, for it runs what is unknown here: {', '.join(kept.unknown)}" if kept.unknown else "",
            extra=fields(agent=entry.record.name, code="agent-held" if kept.unknown else ""),
        )  # fmt: skip
        await self._save_kept(entry, kept, hello.status, self._clock.now() if has_changed else entry.record.moved_on)
        return bool(kept.unknown)

    async def _save_kept(self, entry: _Entry, kept: Kept, status: Status, moved_on: datetime | None) -> None:
        await self._runner.run(self._store.save_kept, entry.record.id, kept, status, moved_on)
        entry.restored_sequence = None
        entry.record = replace(entry.record, slots=kept.slots, held=kept.unknown, moved_on=moved_on)

    async def heard(self, session: Session, word: AgentWord) -> None:
        """Take in what an agent says on its stream; nothing that a replaced stream still says.

        Raises:
            InvalidInput: A second hello, or an impossible sequence.
            ControllerError: A result cannot be stored; the agent repeats it.
        """
        entry = self._entries.get(session.agent_id)
        if entry is None or entry.session is not session:
            return
        session.heard_s = self._clock.monotonic()
        match word:
            case Status():
                _check_sequence(word.desired_sequence)
                await self._on_status(entry, word)
            case GenerationResult():
                await self._on_result(entry, session, word)
            case Hello():
                raise InvalidInput("hello-repeated", "a stream has one hello", "this is its second")

    async def disconnected(self, session: Session) -> None:
        """Note that a stream has ended; harmless for one that was replaced."""
        entry = self._entries.get(session.agent_id)
        if entry is None or entry.session is not session:
            return
        entry.session = None
        entry.record = replace(entry.record, is_online=False)
        logger.info("agent %s disconnected", entry.record.name, extra=fields(agent=entry.record.name))
        await self._tell(lambda observer: observer.on_presence(session.agent_id, is_online=False))

    def end_silent(self) -> None:
        """End streams on which nothing was heard for three status intervals: the agent behind hangs."""
        limit_s = 3 * self._settings.status_interval_s
        now = self._clock.monotonic()
        for entry in self._entries.values():
            session = entry.session
            if session and now - session.heard_s > limit_s:
                why = f"{now - session.heard_s:.0f} s, limit {limit_s} s"
                session.end(Unavailable("stream-silent", "no status came on this stream", why))

    async def _on_status(self, entry: _Entry, status: Status) -> None:
        entry.reported_sequence = max(entry.reported_sequence, status.desired_sequence)
        entry.record = replace(entry.record, status=status, seen=self._clock.now())
        self._keep_status(entry)
        await self._tell(lambda observer: observer.on_status(entry.record.id, status))

    async def _on_result(self, entry: _Entry, session: Session, result: GenerationResult) -> None:
        known = entry.newest.sequence if entry.newest else 0
        if result.sequence > known or result == entry.record.result:
            return  # repeated after a lost link, or about an assignment of a controller restored to before it
        await self._runner.run(self._store.save_result, entry.record.id, result)
        entry.record = replace(entry.record, result=result)
        _log_result(entry.record.name, result)
        if entry.newest and must_reissue_after(entry.newest, result) and session.reissued < _MOST_REISSUES:
            session.reissued += 1
            async with entry.lock:
                await self._issue(entry, entry.record.slots)
            return
        await self._tell(lambda observer: observer.on_result(entry.record.id, result))

    # -- Desired ---------------------------------------------------------------------------------------------------

    async def set_slot(self, agent_id: str, target: SlotAssignment) -> int:
        """Make ``target`` what its slot of the agent shall run; see :class:`Desired`."""
        entry = self._desirable(agent_id)
        async with entry.lock:
            slots = entry.record.slots
            if entry.newest and slots.get(target.slot) == target:
                return entry.newest.sequence
            _check_not_held(entry.record, target.slot)
            if target.slot not in slots and len(slots) >= MAX_SLOTS:
                why = f"it has {len(slots)}, limit {MAX_SLOTS}"
                raise Refused("slots-full", f"agent {entry.record.name} has no free slot", why)
            await self._envelope(target.release)
            return (await self._issue(entry, {**slots, target.slot: target})).sequence

    async def clear_slot(self, agent_id: str, slot: str) -> int:
        """Empty a slot; see :class:`Desired`."""
        entry = self._desirable(agent_id)
        async with entry.lock:
            slots = entry.record.slots
            _check_not_held(entry.record, slot)
            if slot not in slots and not entry.record.held:
                return entry.newest.sequence if entry.newest else 0
            return (await self._issue(entry, {name: slots[name] for name in slots if name != slot})).sequence

    async def document(self, agent_id: str) -> Issued:
        """Return the newest assignment of an agent, to travel by file; signed anew when half of its life is over.

        Raises:
            NotFound: No such agent, or nothing was ever desired of it.
            Refused: The agent is revoked.
        """
        entry = self._desirable(agent_id)
        async with entry.lock:
            if entry.newest is None:
                raise NotFound("release-missing", f"nothing is to run on agent {entry.record.name}")
            if must_reissue_for_a_file(entry.newest, highest_sequence=entry.reported_sequence, now=self._clock.now()):
                return await self._issue(entry, entry.record.slots)
            return entry.newest

    def _desirable(self, agent_id: str) -> _Entry:
        entry = self._entries.get(agent_id)
        if entry is None:
            raise NotFound("agent-missing", f"there is no agent {agent_id[:80]}")
        if entry.record.revoked:
            raise Refused("agent-revoked", f"agent {entry.record.name} was revoked")
        return entry

    async def _issue(self, entry: _Entry, slots: Mapping[str, SlotAssignment]) -> Issued:
        """Sign and store an assignment of ``slots``, then send it. The entry's lock is held."""
        now = self._clock.now()
        above = (entry.reported_sequence, entry.newest.sequence if entry.newest else 0)
        issued = issue(entry.record.id, slots, above=above, now=now, key=self._key)
        await self._runner.run(self._store.save_desired, entry.record.id, issued, now)
        entry.newest = issued
        entry.record = replace(entry.record, slots=dict(slots), desired_sequence=issued.sequence, held=())
        if entry.session:
            entry.session.offer(await self._desired_state(issued))
        return issued

    async def _desired_state(self, issued: Issued) -> DesiredState:
        releases = dict.fromkeys(slot.release for slot in issued.slots)
        envelopes = tuple([await self._envelope(digest) for digest in releases])
        return DesiredState(assignment=issued.envelope, releases=envelopes)

    async def _envelope(self, digest: str) -> bytes:
        found = self._envelopes.get(digest)
        if found is None:
            found = await self._runner.run(self._releases.envelope, digest)
            if found is None:
                raise Refused("release-missing", "there is no such signed release", digest)
            if len(self._envelopes) >= _MOST_ENVELOPES:
                self._envelopes.clear()  # refilled from the store as needed; rollouts use a handful at a time
            self._envelopes[digest] = found
        return found

    def desired_slots(self, agent_id: str) -> Iterable[SlotAssignment]:
        """Return what an agent shall run; nothing for one that is unknown."""
        entry = self._entries.get(agent_id)
        return tuple(entry.record.slots.values()) if entry else ()

    # -- what admins do --------------------------------------------------------------------------------------------

    async def admit(self, agent: AgentRecord) -> None:
        """Take in an agent that has just enrolled; calling it again for the same one is harmless."""
        if agent.id in self._entries:
            return
        self._entries[agent.id] = _Entry(agent)
        self._ids[agent.name] = agent.id
        await self._tell(lambda observer: observer.on_enrolled(agent.id))

    async def label(self, name: str, wanted: Mapping[str, str], unwanted: Iterable[str]) -> AgentRecord:
        """Set and remove labels of an agent.

        Raises:
            NotFound: There is no such agent.
            InvalidInput: A label cannot be set.
        """
        entry = self._named(name)
        gone = set(unwanted)
        labels = {key: value for key, value in {**entry.record.labels, **wanted}.items() if key not in gone}
        check_labels(labels)
        await self._runner.run(self._store.set_labels, entry.record.id, labels)
        entry.record = replace(entry.record, labels=labels)
        return entry.record

    async def revoke(self, name: str) -> AgentRecord:
        """Refuse an agent from now on and end its stream. It goes on serving what it has. Idempotent.

        Raises:
            NotFound: There is no such agent.
        """
        entry = self._named(name)
        at = entry.record.revoked or self._clock.now()
        await self._runner.run(self._store.revoke, entry.record.id, at)
        entry.record = replace(entry.record, revoked=at)
        self._end(entry, _revoked(entry.record))
        return entry.record

    async def remove(self, name: str) -> AgentRecord:
        """Forget an agent, and end its stream.

        Raises:
            NotFound: There is no such agent.
        """
        entry = self._named(name)
        await self._runner.run(self._store.remove, entry.record.id)
        self._entries.pop(entry.record.id, None)
        self._ids.pop(entry.record.name, None)
        self._statuses.forget(entry.record.id)
        self._end(entry, Unauthenticated("agent-unknown", "this agent was removed from the controller"))
        return replace(entry.record, is_online=False)

    def _end(self, entry: _Entry, error: ControllerError) -> None:
        if entry.session:
            entry.session.end(error)

    def _entry(self, agent_id: str) -> _Entry:
        entry = self._entries.get(agent_id)
        if entry is None:
            raise Unauthenticated("agent-unknown", "the controller does not know this agent", agent_id[:80])
        if entry.record.revoked:
            raise _revoked(entry.record)
        return entry

    # -- telling and keeping ---------------------------------------------------------------------------------------

    async def _tell(self, tell: Callable[[FleetObserver], Awaitable[None]]) -> None:
        for observer in self._observers:
            try:
                await tell(observer)
            except Exception:  # one that fails must not take an agent's stream with it
                logger.exception("%s failed", type(observer).__name__)

    def _keep_status(self, entry: _Entry) -> None:
        record = entry.record
        if record.status is None or record.seen is None:
            return
        self._statuses.write_soon(
            Heard(
                agent_id=record.id,
                seen=record.seen,
                address=record.address,
                facts=record.facts,
                status=record.status,
                reported_sequence=entry.reported_sequence,
            )
        )


def _log_result(name: str, result: GenerationResult) -> None:
    level = logging.INFO if result.outcome is Outcome.APPLIED else logging.WARNING
    why = f": {result.code}: {result.reason}" if result.code else ""
    extra = fields(agent=name, code=result.code)
    logger.log(level, "agent %s %s assignment %d%s", name, result.outcome, result.sequence, why, extra=extra)


def _check_sequence(sequence: int) -> None:
    if sequence >= MAX_SEQUENCE:
        raise InvalidInput("sequence-invalid", "no assignment has this sequence", f"{sequence}, limit {MAX_SEQUENCE}")


def _check_not_held(record: AgentRecord, slot: str) -> None:
    """Check that an assignment with a decision for one slot would take nothing from an agent that is held."""
    others = held_beside(record, slot)
    if others:
        why = f"it runs {', '.join(others)}, unknown here since an older backup was restored"
        raise Refused("agent-held", f"agent {record.name} is held", why, "restore a newer backup")


def _revoked(record: AgentRecord) -> Unauthenticated:
    why = f"at {record.revoked:%Y-%m-%d %H:%M:%S} UTC"
    return Unauthenticated(
        "agent-revoked", f"agent {record.name} was revoked", why, "enrol it again if it shall return"
    )


def _stopping() -> Unavailable:
    return Unavailable("controller-stopping", "the controller is stopping", remedy="come back in a moment")
