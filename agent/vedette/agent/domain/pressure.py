"""How hard the agent presses on its budgets and its host, and what it gives up for that, in a fixed order.

Rules: each level gives up all below it too. First what nobody asked for (shadow), then detail (profiles are sampled),
then promptness (datagrams are gathered longer, in fewer and larger batches), last completeness: a share of the
conversations is scored and the rest is counted. Requests of the appliance's own programs are never given up here.

A level changes by one step at a time, after strain of :data:`STEP_S` upwards, after calm of a hold time downwards.
Giving something up is what brings the calm, so taking it back may bring the strain: a level that has to rise again soon
after it fell doubles the hold time. So however the load moves, levels do not flap. Where a host is short of processors
through no fault of the agent, whole conversations are not given up: they would free next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

STEP_S = 3.0
"""Between two steps up, and what a measure of processor time looks back over: one look must see what the last did."""
HOLD_S = 15.0
MOST_HOLD_S = 900.0
CALM = 0.7
"""Below this strain something may be taken back: what was given up must fit again, too."""
EASY = 0.85
"""Between this and 1 the share of flows stays as it is."""
LEAST_SHARE = 1 / 64
PROFILED_ONE_IN = 8
"""Rows that are profiled under pressure; a profile says itself how many rows it has."""
_IDLE = 0.25  # an agent that uses less of its budget does not ease its host by giving anything up


class Level(IntEnum):
    """What is given up: everything up to the level."""

    NONE = 0
    SHADOW = 1
    PROFILES = 2
    WAITING = 3
    FLOWS = 4


@dataclass(frozen=True, slots=True)
class Measures:
    """Where the agent stands. What a host cannot tell is 0.

    Attributes:
        cpu: Of all processes of the agent, as a share of ``budget.cpu_percent``.
        throttled: Share of the time in which the quota of its control group held the agent up.
        memory: What its processes hold for themselves, as a share of what the budgets add up to.
        queues: The fullest of what waits to be decoded and to be scored, as a share of what may wait.
        host_cpu: Share of the time in which some task of the host waited for a processor (pressure stall information).
        host_memory: Share of the host's memory that is not available.
    """

    cpu: float = 0.0
    throttled: float = 0.0
    memory: float = 0.0
    queues: float = 0.0
    host_cpu: float = 0.0
    host_memory: float = 0.0

    @property
    def strains(self) -> Mapping[str, float]:
        """Each measure of the agent's own doing against its limit; above 1 is too much."""
        return {name: getattr(self, name) / limit for name, limit in _OWN.items()}

    @property
    def own(self) -> float:
        """The greatest strain of the agent's own doing."""
        return max(self.strains.values())

    @property
    def host(self) -> float:
        """The strain of the host's processors while the agent is one of those that use them."""
        return self.host_cpu / _HOST_CPU if self.cpu >= _IDLE else 0.0


_OWN = {"cpu": 0.95, "throttled": 0.25, "memory": 0.9, "queues": 0.5, "host_memory": 0.97}
_HOST_CPU = 0.6


class Pressure:
    """The level now. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.level = Level.NONE
        self.share = 1.0
        """Of the conversations that are scored; 1 below ``Level.FLOWS``."""
        self._hold_s = HOLD_S
        self._strained_at: float | None = None
        self._calm_at: float | None = None
        self._fell_at: float | None = None

    def look(self, measures: Measures, now_s: float) -> Level:
        """Take the measures of a moment, about once a second, and return what is given up from now on."""
        if self._is_strained(measures):
            self._calm_at = None
            self._strain(measures, now_s)
        else:
            self._strained_at = None
            self._ease(measures, now_s)
        return self.level

    def _is_strained(self, measures: Measures) -> bool:
        return measures.own > 1 or (measures.host > 1 and self.level < Level.WAITING)

    def _strain(self, measures: Measures, now_s: float) -> None:
        if self._strained_at is None:
            self._strained_at = now_s
        if now_s - self._strained_at < STEP_S:
            return
        self._strained_at = now_s
        if self.level < Level.FLOWS:
            self._rise(now_s)
        if self.level is Level.FLOWS:
            self.share = max(LEAST_SHARE, self.share * max(0.5, 1 / measures.own))

    def _rise(self, now_s: float) -> None:
        if self._fell_at is not None and now_s - self._fell_at <= 2 * self._hold_s:
            self._hold_s = min(MOST_HOLD_S, 2 * self._hold_s)
        self._fell_at = None
        self.level = Level(self.level + 1)

    def _ease(self, measures: Measures, now_s: float) -> None:
        if self.share < 1:
            self._calm_at = self._calm_at if measures.own < EASY else None
            self._regrow(measures, now_s)
            return
        strain = measures.own if self.level is Level.FLOWS else max(measures.own, measures.host)
        if strain >= CALM:
            self._calm_at = None
        elif self._calm_at is None:
            self._calm_at = now_s
        elif now_s - self._calm_at >= self._hold_s:
            self._calm_at = now_s
            self._fall(now_s)

    def _regrow(self, measures: Measures, now_s: float) -> None:
        """Score more of the conversations again, a quarter more each step."""
        if measures.own >= EASY:
            return
        if self._calm_at is None:
            self._calm_at = now_s
        if now_s - self._calm_at >= STEP_S:
            self._calm_at = now_s
            self.share = min(1.0, self.share * 1.25)

    def _fall(self, now_s: float) -> None:
        if self.level > Level.NONE:
            self.level = Level(self.level - 1)
            self._fell_at = now_s
        elif self._fell_at is None or now_s - self._fell_at > 2 * self._hold_s:
            self._hold_s = HOLD_S


_GIVEN_UP = {
    Level.SHADOW: "models in shadow",
    Level.PROFILES: f"data profiles of all but 1 in {PROFILED_ONE_IN} rows",
    Level.WAITING: "promptness (flows are scored in batches of a second)",
}
_CAUSES = {
    "cpu": ("the agent uses {:.0%} of budget.cpu_percent", "raise budget.cpu_percent"),
    "throttled": ("its CPU quota holds it up for {:.0%} of the time", "raise CPUQuota= or budget.cpu_percent"),
    "memory": ("its processes hold {:.0%} of the memory that its budgets add up to", "look for a model that leaks"),
    "queues": ("its queues are {:.0%} full", "send it fewer flows, or raise budget.cpu_percent"),
    "host_memory": ("{:.0%} of the host's memory is taken", "free memory on the host"),
}
_HOST_BUSY = ("tasks of this host wait for a processor {:.0%} of the time", "nothing: it yields to the host's own work")


def told(pressure: Pressure, measures: Measures) -> str:
    """Return the text of the condition ``under-pressure``: why, what is given up, what to do."""
    strains = measures.strains
    worst = max(strains, key=lambda name: strains[name])
    if strains[worst] > 1 or measures.host <= 1:
        (cause, remedy), amount = _CAUSES[worst], getattr(measures, worst)
    else:
        (cause, remedy), amount = _HOST_BUSY, measures.host_cpu
    given_up = [text for level, text in _GIVEN_UP.items() if level <= pressure.level]
    if pressure.level is Level.FLOWS:
        given_up.append(f"flows: {pressure.share:.0%} of the conversations are scored, the rest is counted")
    return f"{cause.format(amount)}; given up: {', '.join(given_up)}; {remedy}; it is taken back when it is calm"
