"""Brings what runs to what is wanted, and speaks for the agent on the link.

Rules: a desired state is proven, stored, then acted on; the newest wins, and an older one that is still being applied
is left where it stands. A failure that is not the build's (a full disk, a host out of memory) is tried again with
growing waits; one that is, never. What the controller learns comes from what is stored: a killed agent says the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

from vedette.agent.adapters.inference.serving import EventKind, Fetch, Serving, ServingEvent
from vedette.agent.adapters.storage.state import Documents, State
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.clock import TrustedClock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.errors import DiskFull, InstallCode, InstallFailed, StateError
from vedette.agent.domain.reconcile import Accepted, Action, Install, Refused, Trust, plan, verify
from vedette.models.assignment import SlotAssignment
from vedette.wire import values
from vedette.wire.systemd import fields
from vedette.wire.values import GenerationResult, Outcome, Severity

logger = logging.getLogger(__name__)

CLOCK_ALARM = timedelta(seconds=30)
"""A wall clock further from the controller's than this is told of; verdict times are corrected from two seconds on."""


class Reconciler:
    """The one who applies assignments. Run it as one task.

    Args:
        trust: Whom to believe.
        facts: What this appliance is.
        state: Where all of it is stored.
        serving: The slots.
        conditions: What is told of trouble.
        clock: Its floor judges expiry.
        fetch: Brings a blob.
        report: Takes results for the controller.
        changed: Called when the status is news.
        backoff: Of tries after failures that are not the build's.
    """

    def __init__(
        self,
        *,
        trust: Trust,
        facts: values.Facts,
        state: State,
        serving: Serving,
        conditions: Conditions,
        clock: TrustedClock,
        fetch: Fetch,
        report: Callable[[GenerationResult], None],
        changed: Callable[[], None],
        backoff: Backoff,
    ) -> None:
        self._trust = trust
        self._facts = facts
        self._state = state
        self._serving = serving
        self._conditions = conditions
        self._clock = clock
        self._fetch = fetch
        self._report = report
        self._changed = changed
        self._backoff = backoff
        self._wanted: Accepted | None = None
        self._is_new = asyncio.Event()
        self._unstored: values.DesiredState | None = None  # what could not be stored; the controller says it only once
        self._result: GenerationResult | None = None  # of what is wanted, once there is one
        self.outcomes: Counter[tuple[Outcome, str]] = Counter()  # of assignments, tries counted each, with their codes

    # What the link asks for

    def hello(self) -> values.Hello:
        """Return the first word of a session."""
        applied = self._state.applied
        return values.Hello(
            facts=self._facts,
            boot_epoch=self._state.boot_epoch,
            applied_digest=applied.digest if applied else "",
            highest_sequence=self._state.sequences.highest,
            status=self.status(),
        )

    def status(self) -> values.Status:
        """Return how the agent stands now."""
        return current_status(self._state, self._serving.statuses(), self._conditions, self._clock)

    def welcomed(self, word: values.Welcome) -> None:
        """Correct the clock by the controller's."""
        self._clock.controller_said(word.time)
        self._judge_clock()

    def _judge_clock(self) -> None:
        ahead = self._clock.ahead()
        if ahead is None or abs(ahead) <= CLOCK_ALARM:
            self._conditions.clear("clock-wrong")
            return
        side = "ahead of" if ahead > timedelta(0) else "behind"
        by = timedelta(seconds=round(abs(ahead).total_seconds()))
        text = f"the clock is {by} {side} the controller's; verdict times are corrected; set up a time service"
        self._conditions.hold("clock-wrong", Severity.WARNING, text)

    def desired(self, word: values.DesiredState) -> None:
        """Take what the controller wants."""
        self._unstored = None
        try:
            accepted = self._accepted(word)
        except Refused as exc:
            logger.warning("assignment %d refused: %s: %s", exc.sequence, exc.code, exc, extra=fields(code=exc.code))
            self._conditions.hold("assignment-refused", Severity.ERROR, f"{exc.code}: {exc}")
            self._tell(exc.sequence, Outcome.REFUSED, exc.code, str(exc))
        except (DiskFull, StateError) as exc:
            self._unstored = word
            self._state_failed(exc)
        else:
            self._take(accepted, word)

    def imported(self, word: values.DesiredState) -> None:
        """Take what a file brought. What is wanted already is tried at once: what it waits for may have come along."""
        self.desired(word)
        if self._wanted is not None and (self._result is None or self._result.outcome is Outcome.FAILED):
            self._is_new.set()

    def _take(self, accepted: Accepted, word: values.DesiredState) -> None:
        try:
            self._store(accepted)
        except (DiskFull, StateError) as exc:
            self._unstored = word
            self._tell(accepted.assignment.sequence, Outcome.FAILED, self._state_failed(exc), str(exc))
        else:
            self._conditions.clear("assignment-refused", "state-failed")
            self._want(accepted)

    def _state_failed(self, exc: DiskFull | StateError) -> InstallCode:
        self._conditions.hold("state-failed", Severity.ERROR, str(exc))
        return InstallCode.DISK_FULL if isinstance(exc, DiskFull) else InstallCode.STATE_FAILED

    def happened(self, event: ServingEvent) -> None:
        """Take what happened in a slot."""
        self._changed()
        wanted = self._wanted
        if event.kind is EventKind.FELL_BACK and wanted is not None and event.build is not None:
            if event.build.build not in {slot.build for slot in wanted.assignment.slots}:
                return
            failed = InstallFailed(_code_of(event.code), event.text)
            self._failed(wanted, [failed])
            if not failed.blames_build:  # a flipped bit, for one: the same build again, from the controller
                self._is_new.set()

    # Applying

    async def run(self) -> None:
        """Apply what is wanted for ever; begins with what was wanted when the agent stopped."""
        try:
            self._resume()
        except (DiskFull, StateError) as exc:
            self._state_failed(exc)
        applying: asyncio.Task[None] | None = None
        try:
            while True:
                await self._is_new.wait()
                self._is_new.clear()
                await _cancelled(applying)
                if self._wanted is not None:
                    applying = asyncio.create_task(self._apply_until_done(self._wanted))
        finally:
            await _cancelled(applying)

    def look_again(self) -> None:
        """Do what only time brings: store what found no room, keep the deadline of what is wanted, see clocks step."""
        if self._unstored is not None:
            self.desired(self._unstored)
        self._expire()
        self._judge_clock()

    def _expire(self) -> None:
        """Take the slots of an assignment away whose deadline is certainly past, if it says so."""
        wanted = self._wanted
        if wanted is None or not wanted.is_over(self._clock.floor_now()):
            self._conditions.clear("assignment-over")
            return
        text = f"assignment {wanted.assignment.sequence} was good until {wanted.assignment.not_after}: its slots stop"
        self._conditions.hold("assignment-over", Severity.ERROR, text)
        if self._plan(wanted):
            self._is_new.set()

    def _accepted(self, word: values.DesiredState) -> Accepted:
        known = self._state.desired
        return verify(
            word,
            self._trust,
            highest_sequence=self._state.sequences.highest,
            highest_digest=known.digest if known else "",
            now=self._clock.floor_now(),
        )

    def _store(self, accepted: Accepted) -> None:
        known, digest = self._state.desired, accepted.assignment.digest
        if known is None or known.digest != digest:
            self._state.accept(_documents(accepted))
        if (floor := self._clock.raise_floor(accepted.signed_time)) is not None:
            self._state.raise_time_floor(floor)

    def _want(self, accepted: Accepted) -> None:
        wanted = self._wanted
        if wanted is not None and wanted.assignment.digest == accepted.assignment.digest:
            if self._result is not None:
                self._report(self._result)  # it asks again because it has not heard
            return
        self._wanted, self._result = accepted, None
        self._backoff.succeeded()
        self._is_new.set()

    def _resume(self) -> None:
        known = self._state.desired
        if known is None or self._wanted is not None:
            return
        try:
            accepted = self._accepted(values.DesiredState(assignment=known.assignment, releases=known.releases))
        except Refused as exc:
            self._conditions.hold("assignment-refused", Severity.ERROR, f"the stored one: {exc.code}: {exc}")
            return
        self._want(accepted)

    async def _apply_until_done(self, accepted: Accepted) -> None:
        while not await self._apply(accepted):
            wait_s = self._backoff.failed()
            logger.debug("assignment %d is tried again in %.0f s", accepted.assignment.sequence, wait_s)
            await self._clock.sleep(wait_s)

    async def _apply(self, accepted: Accepted) -> bool:
        """Try all actions once; return whether nothing is left that a later try could mend."""
        failures: list[InstallFailed] = []
        try:
            if self._state.sequences.attempted != accepted.assignment.sequence:  # a start stores nothing it knows
                self._state.attempt(accepted.assignment.sequence)
            for action in self._plan(accepted):
                try:
                    await self._act(action)
                except InstallFailed as exc:
                    failures.append(exc)
            if failures:
                self._failed(accepted, failures)
            else:
                self._applied(accepted)
        except (DiskFull, StateError) as exc:
            code = self._state_failed(exc)
            failures.append(InstallFailed(code, str(exc)))
            self._tell(accepted.assignment.sequence, Outcome.FAILED, code, str(exc))
        return all(exc.code.blames_build or exc.code is InstallCode.QUARANTINED for exc in failures)

    def _plan(self, accepted: Accepted) -> Sequence[Action]:
        running: dict[str, SlotAssignment | None] = {name: model.build for name, model in self._serving.actives.items()}
        over = accepted.is_over(self._clock.floor_now())
        return plan(accepted.without_slots() if over else accepted, running, self._serving.unsettled)

    async def _act(self, action: Action) -> None:
        if isinstance(action, Install):
            await self._serving.install(action.slot, action.release, self._fetch)
        else:
            await self._serving.remove(action.slot)

    def _applied(self, accepted: Accepted) -> None:
        known = self._state.applied
        if known is None or known.digest != accepted.assignment.digest:
            self._state.apply(_documents(accepted))
            self._serving.collect_garbage()  # of a lost state: from now on it is known what is needed
        self._conditions.clear("assignment-failed", "state-failed")
        self._tell(accepted.assignment.sequence, Outcome.APPLIED)

    def _failed(self, accepted: Accepted, failures: Sequence[InstallFailed]) -> None:
        sequence, first = accepted.assignment.sequence, failures[0]
        reason = "; ".join(exc.reason for exc in failures)[:1000]
        with suppress(DiskFull, StateError):  # the word itself still goes up
            self._state.fail(sequence)
        self._conditions.hold("assignment-failed", Severity.ERROR, f"{first.code}: {reason}")
        self._tell(sequence, Outcome.FAILED, first.code, reason)

    def _tell(self, sequence: int, outcome: Outcome, code: str = "", reason: str = "") -> None:
        self.outcomes[outcome, code] += 1
        result = GenerationResult(sequence=sequence, outcome=outcome, code=code, reason=reason[:1000])
        if self._wanted is not None and sequence == self._wanted.assignment.sequence:
            self._result = result
        self._report(result)


def current_status(
    state: State, slots: tuple[values.SlotStatus, ...], conditions: Conditions, clock: TrustedClock
) -> values.Status:
    """Return how an agent stands, from what is stored and what runs."""
    sequences = state.sequences
    return values.Status(
        desired_sequence=sequences.desired,
        attempted_sequence=sequences.attempted,
        failed_sequence=sequences.failed,
        running_sequence=sequences.running,
        slots=slots,
        conditions=conditions.current()[:64],
        agent_time=clock.now(),
    )


def _documents(accepted: Accepted) -> Documents:
    return Documents(
        sequence=accepted.assignment.sequence,
        digest=accepted.assignment.digest,
        assignment=accepted.envelopes.assignment,
        releases=accepted.envelopes.releases,
    )


def _code_of(text: str) -> InstallCode:
    return InstallCode(text) if text in tuple(InstallCode) else InstallCode.WORKER_CRASHED


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
