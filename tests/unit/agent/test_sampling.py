"""Claims about sampling: whole conversations, nested shares, no address that is always safe."""

from __future__ import annotations

import numpy as np
import pytest

from vedette.agent.domain.sampling import in_share
from vedette.models.flows.records import V4_MAPPED, FlowRecords, empty

SECRET = 0x0123_4567_89AB_CDEF


def flows(count: int, seed: int = 1) -> FlowRecords:
    """Return flows between hosts of one network, as an appliance sees them: consecutive IPv4 addresses."""
    made, random = empty(count), np.random.default_rng(seed)
    for end in ("src", "dst"):
        made[f"{end}_lo"] = V4_MAPPED | (0x0A00_0000 + random.integers(0, 4096, count)).astype(np.uint64)
        made[f"{end}_port"] = random.integers(1, 65535, count)
    return made


@pytest.mark.parametrize("share", [1 / 64, 0.1, 0.5, 0.9, 1.0])
def test_a_share_is_that_share_of_the_conversations(share: float) -> None:
    assert in_share(flows(100_000), share, SECRET).mean() == pytest.approx(share, abs=0.01)


def test_both_directions_and_all_ports_of_a_conversation_stay_together() -> None:
    there = flows(10_000)
    back = there.copy()
    for field in ("hi", "lo", "port"):
        back[f"src_{field}"], back[f"dst_{field}"] = there[f"dst_{field}"], there[f"src_{field}"]
    back["src_port"] += 1
    assert (in_share(there, 0.5, SECRET) == in_share(back, 0.5, SECRET)).all()


def test_what_is_in_a_share_is_in_every_larger_one() -> None:
    some, more = (in_share(flows(10_000), share, SECRET) for share in (0.2, 0.3))
    assert not (some & ~more).any()
    assert more.sum() > some.sum()


def test_another_process_chooses_others() -> None:
    one, other = (in_share(flows(10_000), 0.5, secret) for secret in (SECRET, SECRET + 1))
    assert 0.4 < (one == other).mean() < 0.6
