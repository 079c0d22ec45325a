"""A fleet on paper for the rollout tests: agents that answer as told, a version to roll out, a time that moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from vedette.controller.domain import rollout as machine
from vedette.controller.domain.rollout import Candidate, Rollout, Sighting
from vedette.controller.domain.rollout_plan import plan
from vedette.controller.domain.waves import parse_waves
from vedette.models.assignment import SlotAssignment
from vedette.wire import views
from vedette.wire.values import BuildRef, Facts, GenerationResult, Outcome, SlotState, SlotStatus

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODEL = "flow-threat"
GOOD_FACTS = Facts(runtimes={"onnxruntime": "1.32.0"})


def version(number: int = 2, *, signed: bool = True, requires: str = ">=1.32") -> views.Version:
    return views.Version(
        version=f"{MODEL}:{number}",
        model=MODEL,
        number=number,
        digest=f"sha256:release{number}",
        builds=(views.Build(digest=f"sha256:build{number}", kind="onnx-fp32", requires={"onnxruntime": requires}),),
        signed_by=("key",) if signed else (),
    )


def choice(number: int) -> SlotAssignment:
    return SlotAssignment(MODEL, MODEL, number, f"sha256:release{number}", f"sha256:build{number}")


def ref(number: int) -> BuildRef:
    return BuildRef(model=MODEL, version=number, build=f"sha256:build{number}")


@dataclass
class PaperAgent:
    """One agent as the controller sees it."""

    id: str
    online: bool = True
    gone: bool = False
    active: int | None = 1
    desired: SlotAssignment | None = field(default_factory=lambda: choice(1))
    slot: SlotStatus | None = None
    errors: dict[str, str] = field(default_factory=dict)
    results: list[GenerationResult] = field(default_factory=list)
    sequence: int = 0
    attempted: int | None = None  # the newest it was assigned, when None
    facts: Facts = GOOD_FACTS

    def sighting(self) -> Sighting:
        results, self.results = tuple(self.results), []
        return Sighting(
            agent_id=self.id,
            online=self.online,
            gone=self.gone,
            slot=self.slot or self._settled(),
            attempted=self.sequence if self.attempted is None else self.attempted,
            errors=dict(self.errors),
            results=results,
        )

    def _settled(self) -> SlotStatus | None:
        if self.active is None:
            return None
        return SlotStatus(slot=MODEL, state=SlotState.ACTIVE, active=ref(self.active))

    def candidate(self) -> Candidate:
        return Candidate(
            agent_id=self.id,
            name=f"edge-{self.id}",
            facts=self.facts,
            desired=self.desired,
            sighting=self.sighting(),
        )


class World:
    """Agents, one rollout, and a database that keeps its last saved form.

    Args:
        agents: How many, or their ids.
    """

    def __init__(self, agents: int | Iterable[str] = 3) -> None:
        ids = [str(i) for i in range(agents)] if isinstance(agents, int) else list(agents)
        self.agents = {name: PaperAgent(name) for name in ids}
        self.now = NOON
        self.rollout: Rollout | None = None

    def start(
        self, waves: str = "1,100%", *, soak_s: int = 30, timeout_s: int = 60, number: int = 2, selector: str = ""
    ) -> Rollout:
        self.rollout = plan_only(self, waves, soak_s=soak_s, timeout_s=timeout_s, number=number, selector=selector)
        self.act()
        return self.it

    @property
    def it(self) -> Rollout:
        assert self.rollout is not None
        return self.rollout

    def order(self) -> list[str]:
        return [member.agent_id for member in self.it.members]

    def act(self) -> None:
        """Do what is pending, as the service does after storing."""
        sequences = {}
        for action in machine.pending_actions(self.it):
            agent = self.agents[action.agent_id]
            if agent.desired != action.choice:
                agent.desired = action.choice
                agent.sequence += 1
            sequences[action.agent_id] = agent.sequence
        self.rollout = machine.performed(self.it, sequences)

    def tick(self, seconds: float = 0) -> Rollout:
        """Let time pass, look at every agent, act."""
        self.now += timedelta(seconds=seconds)
        sightings = [agent.sighting() for agent in self.agents.values()]
        self.rollout = machine.tick(self.it, sightings, self.now)
        self.act()
        return self.it

    def move(self, *ids: str, number: int = 2) -> None:
        for name in ids:
            agent = self.agents[name]
            agent.active, agent.slot = number, None

    def obey(self) -> None:
        """Let every agent that is online serve what it is assigned."""
        for agent in self.agents.values():
            if agent.online and not agent.gone and agent.desired is not None:
                agent.active, agent.slot = agent.desired.version, None

    def downloading(self, name: str, done: int, total: int = 1000, number: int = 2) -> None:
        agent = self.agents[name]
        agent.slot = SlotStatus(
            slot=MODEL,
            state=SlotState.DOWNLOADING,
            active=ref(agent.active) if agent.active else None,
            candidate=ref(number),
            candidate_bytes_done=done,
            candidate_bytes_total=total,
        )

    def fail(self, name: str, reason: str = "self-test: row 3 differs", number: int = 2) -> None:
        """Let the agent give the version up and report it in its status."""
        agent = self.agents[name]
        active = ref(agent.active) if agent.active is not None else None
        agent.slot = SlotStatus(
            slot=MODEL,
            state=SlotState.FAILED,
            active=active,
            candidate=ref(number),
            reason=reason,
            quarantined=(f"sha256:build{number}",),
        )

    def answer(self, name: str, outcome: Outcome, reason: str = "signature", sequence: int | None = None) -> None:
        agent = self.agents[name]
        number = agent.sequence if sequence is None else sequence
        agent.results.append(GenerationResult(sequence=number, outcome=outcome, code="c", reason=reason))

    def states(self) -> str:
        """Return one letter a member, waves apart: w a m f r u s."""
        return "|".join("".join(member.state[0] for member in wave.members) for wave in self.it.waves)

    def apply(self, change: str) -> None:
        """Pause, resume or abort, and act on it."""
        verb = {"pause": machine.pause, "resume": machine.resume, "abort": machine.abort}[change]
        self.rollout = verb(self.it, "ana", self.now)
        self.act()


def plan_only(
    world: World,
    waves: str = "1,100%",
    *,
    soak_s: int = 30,
    timeout_s: int = 60,
    number: int = 2,
    selector: str = "",
) -> Rollout:
    """Return a rollout that is decided and of which nothing is done yet."""
    return plan(
        "7",
        version(number),
        [agent.candidate() for agent in world.agents.values() if not agent.gone],
        selector=selector,
        waves=parse_waves(waves.split(",")),
        soak_s=soak_s,
        timeout_s=timeout_s,
        started_by="ana",
        now=world.now,
    )
