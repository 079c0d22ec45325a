"""The waves of a rollout: how many agents each takes, and which.

A wave is a count (``5``) or a share of everyone selected (``25%``, rounded up), so a plan reads the same for three
agents and for three thousand. Each wave takes that many of those still left; together they must reach everyone, else
the rest would silently keep the old version. Which agents come first is decided by a hash of the rollout and the
agent: repeatable, and another rollout has other canaries. Agents that are online go before those that are not, since
a canary that cannot answer proves nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from typing import TypeVar

from vedette.controller.domain.errors import InvalidInput

MAX_WAVES = 20
MAX_COUNT = 100_000
DEFAULT_WAVES = ("1", "25%", "100%")

_SIZE = re.compile(r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,2})?)(?P<percent>%?)", re.ASCII)

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class WaveSize:
    """How many agents one wave takes: a count, or a share of everyone selected."""

    text: str
    count: int | None = None
    share: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> WaveSize:
        """Return the size that a text such as ``1`` or ``12.5%`` names.

        Raises:
            InvalidInput: It is neither a whole number from 1 to 100,000 nor a percentage above 0 up to 100.
        """
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise _bad_size(text)
        if match["percent"]:
            share = Fraction(match["number"]) / 100
            if not 0 < share <= 1:
                raise _bad_size(text)
            return cls(text.strip(), share=share)
        if "." in match["number"] or not 1 <= int(match["number"]) <= MAX_COUNT:
            raise _bad_size(text)
        return cls(text.strip(), count=int(match["number"]))

    def of(self, everyone: int) -> int:
        """Return how many of ``everyone`` the wave asks for, at least one."""
        if self.share is not None:
            return max(1, math.ceil(self.share * everyone))
        return self.count or 1


def _bad_size(text: str) -> InvalidInput:
    return InvalidInput(
        "wave-size",
        f"wave size {text[:40]!r} is not understood",
        f"a wave is a whole number from 1 to {MAX_COUNT:,} or a percentage above 0 up to 100%",
        "example: --waves 1,25%,100%",
    )


def parse_waves(texts: Sequence[str]) -> tuple[WaveSize, ...]:
    """Return the sizes of a plan; the default plan when ``texts`` is empty.

    Raises:
        InvalidInput: A size is not understood, or there are more than 20.
    """
    if len(texts) > MAX_WAVES:
        raise InvalidInput("wave-count", f"{len(texts)} waves are too many", f"limit {MAX_WAVES}", "merge some of them")
    return tuple(WaveSize.parse(text) for text in texts or DEFAULT_WAVES)


def split(agents: Sequence[A], sizes: Sequence[WaveSize]) -> tuple[tuple[WaveSize, tuple[A, ...]], ...]:
    """Return the agents of each wave in the order given; a wave for which nobody is left is dropped.

    Raises:
        InvalidInput: The waves end before everyone is in one.
    """
    waves: list[tuple[WaveSize, tuple[A, ...]]] = []
    taken = 0
    for size in sizes:
        members = tuple(agents[taken : taken + size.of(len(agents))])
        taken += len(members)
        if members:
            waves.append((size, members))
    if taken < len(agents):
        raise InvalidInput(
            "waves-too-small",
            f"the waves reach {taken} of {len(agents)} agents",
            f"waves {','.join(size.text for size in sizes)}: each takes that many of those still left",
            "end them with 100%",
        )
    return tuple(waves)


def in_order(
    agents: Sequence[A], rollout_id: str, agent_id: Callable[[A], str], online: Callable[[A], bool]
) -> list[A]:
    """Return the agents in the order in which a rollout takes them: online first, then by hash."""

    def key(agent: A) -> tuple[bool, bytes, str]:
        name = agent_id(agent)
        return not online(agent), sha256(f"{rollout_id}:{name}".encode()).digest(), name

    return sorted(agents, key=key)
