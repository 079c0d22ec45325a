"""The planning of a rollout: which agents, in which waves, with which build, and what forbids it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion
from packaging.version import Version as RuntimeVersion

from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.domain.rollout import Candidate, Member, Rollout, Wave, begin
from vedette.controller.domain.waves import WaveSize, in_order, split
from vedette.models.assignment import SlotAssignment
from vedette.wire import views
from vedette.wire.values import Facts

DEFAULT_TIMEOUT_S = 600
MAX_TIMEOUT_S = 7 * 24 * 3600
MAX_SOAK_S = 30 * 24 * 3600


def plan(
    rollout_id: str,
    version: views.Version,
    candidates: Sequence[Candidate],
    *,
    selector: str,
    waves: Sequence[WaveSize],
    soak_s: int,
    timeout_s: int,
    started_by: str,
    now: datetime,
    others: Iterable[Rollout] = (),
) -> Rollout:
    """Return a rollout over ``candidates`` whose first wave is assigned.

    Args:
        rollout_id: Also decides, with the agents' ids, who goes first.
        version: What to roll out.
        candidates: Every agent the selector matches.
        selector: As a person wrote it; empty is everyone.
        waves: Sizes, as parsed.
        soak_s: How long each wave must stay well before the next, seconds.
        timeout_s: How long an agent may go without progress, seconds; 0 is the default.
        started_by: Name of the admin.
        now: The time.
        others: Rollouts of any model that have not ended.

    Raises:
        InvalidInput: A time is out of range, or the waves do not reach everyone.
        Refused: The version is unsigned, nobody matches, another rollout moves some of these agents' slot, an agent
            can run none of the builds or has quarantined the one it would get.
    """
    _check_seconds("soak", soak_s, MAX_SOAK_S)
    _check_seconds("timeout", timeout_s, MAX_TIMEOUT_S)
    _check_signed(version)
    _check_somebody(candidates, selector)
    _check_free(version, candidates, others)
    members = [_member(version, candidate) for candidate in _able(version, candidates)]
    ordered = in_order(members, rollout_id, lambda member: member.agent_id, lambda member: member.online)
    rollout = Rollout(
        id=rollout_id,
        model=version.model,
        version=version.version,
        release=version.digest,
        selector=selector,
        waves=tuple(Wave(size=size.text, members=part) for size, part in split(ordered, waves)),
        soak_s=soak_s,
        timeout_s=timeout_s or DEFAULT_TIMEOUT_S,
        started=now,
        started_by=started_by,
    )
    return begin(rollout, [candidate.sighting for candidate in candidates], now)


def by_file(
    version: views.Version, candidates: Sequence[Candidate], *, selector: str, others: Iterable[Rollout] = ()
) -> dict[str, SlotAssignment]:
    """Return what agents shall run that get a version by file, by id: outside of waves, for no wave reaches them.

    Who is to run it already is left as it is, whatever rollout decided that.

    Args:
        version: What they are to run.
        candidates: Every agent the selector matches.
        selector: As a person wrote it; empty is everyone.
        others: Rollouts of any model that have not ended.

    Raises:
        Refused: As :func:`plan`; or an agent is connected, so that this would move it at once, past every gate.
    """
    _check_signed(version)
    _check_somebody(candidates, selector)
    choices = {candidate.agent_id: _choice(version, candidate) for candidate in _able(version, candidates)}
    moved = [candidate for candidate in candidates if candidate.desired != choices[candidate.agent_id]]
    online = [candidate.name for candidate in moved if candidate.sighting.online]
    if online:
        raise Refused(
            "agent-online",
            f"{_names(online)} would be moved at once",
            f"an assignment in a file counts from now on, and {len(online)} of these agents are connected",
            f"leave them out with --for; or move them first: vedette rollout start {version.version} --to SELECTOR",
        )
    _check_free(version, moved, others)
    return choices


def _choice(version: views.Version, candidate: Candidate) -> SlotAssignment:
    build = choose_build(version, candidate.facts)
    return SlotAssignment(version.model, version.model, version.number, version.digest, build.digest if build else "")


def _check_seconds(what: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise InvalidInput("time-range", f"{what} is {value} s", f"0 to {most} s", f"give a {what} in that range")


def _check_signed(version: views.Version) -> None:
    if not version.signed_by:
        raise Refused(
            "version-unsigned",
            f"{version.version} is not signed",
            "an agent loads only what a release key signed; its release document has 0 trusted signatures of 1",
            f"sign it, then start the rollout again; see: vedette model show {version.version}",
        )


def _check_somebody(candidates: Sequence[Candidate], selector: str) -> None:
    if not candidates:
        raise Refused(
            "nobody-selected",
            f"no agent matches {selector!r}" if selector else "there is no agent yet",
            "a rollout needs at least one agent that is not revoked",
            "see who is there: vedette agent ls" if selector else "invite one: vedette token create",
        )


def _check_free(version: views.Version, candidates: Sequence[Candidate], others: Iterable[Rollout]) -> None:
    wanted = {candidate.agent_id for candidate in candidates}
    for other in others:
        shared = wanted & {member.agent_id for member in other.members}
        if not other.has_ended and other.model == version.model and shared:
            raise Refused(
                "rollout-overlap",
                f"rollout {other.id} ({other.version}) is still moving {len(shared)} of these agents",
                f"it is {other.state}; one rollout at a time may move an agent's slot {version.model}",
                f"wait for it: vedette rollout watch {other.id}, or end it: vedette rollout abort {other.id}",
            )


def _able(version: views.Version, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Return the candidates, all of which can run the version."""
    unable = [candidate.name for candidate in candidates if choose_build(version, candidate.facts) is None]
    if unable:
        raise Refused(
            "no-build",
            f"{version.version} has no build for {_names(unable)}",
            f"its builds need {_needs(version)}; the agents do not report that",
            "leave them out with --to, or bring their runtimes up to date",
        )
    burnt = [candidate.name for candidate in candidates if _quarantined(version, candidate)]
    if burnt:
        raise Refused(
            "build-quarantined",
            f"{_names(burnt)} will not try {version.version} again",
            "this build failed there before and is in quarantine",
            "roll out a newer version, or leave them out with --to",
        )
    return candidates


def choose_build(version: views.Version, facts: Facts | None) -> views.Build | None:
    """Return the first build whose needs an agent's runtimes meet, in the order of the release."""
    runtimes = facts.runtimes if facts else {}
    return next((build for build in version.builds if _meets(runtimes, build.requires)), None)


def _meets(runtimes: Mapping[str, str], requires: Mapping[str, str]) -> bool:
    try:
        return all(
            name in runtimes and RuntimeVersion(runtimes[name]) in SpecifierSet(need, prereleases=True)
            for name, need in requires.items()
        )
    except (InvalidVersion, InvalidSpecifier):
        return False  # an agent that reports nonsense must not stop the plan for the others with a stack trace


def _quarantined(version: views.Version, candidate: Candidate) -> bool:
    build = choose_build(version, candidate.facts)
    slot = candidate.sighting.slot
    return build is not None and slot is not None and build.digest in slot.quarantined


def _needs(version: views.Version) -> str:
    needs = {f"{name}{need}" for build in version.builds for name, need in build.requires.items()}
    return ", ".join(sorted(needs)) or "nothing (there is no build at all)"


def _member(version: views.Version, candidate: Candidate) -> Member:
    build = choose_build(version, candidate.facts)
    return Member(
        agent_id=candidate.agent_id,
        name=candidate.name,
        build=build.digest if build else "",
        before=candidate.desired,
        online=candidate.sighting.online,
        known_errors=tuple(sorted(candidate.sighting.errors)),
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"
