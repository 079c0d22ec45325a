"""Which conversations are scored when not all can be.

A conversation is all that two addresses say to each other, whoever begins, on whatever ports: it is scored wholly or
not at all. What is in a share is in every larger one, so that a share that moves keeps most of its conversations. The
choice is keyed by numbers of this process: who wants to hide a flow cannot pick addresses that are never looked at.

Source: Duffield and Grossglauser, Trajectory Sampling for Direct Traffic Observation, IEEE/ACM Transactions on
Networking 9(3), 2001 (hash-based selection); the finaliser is SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vedette.models.flows.records import FlowRecords

Words = npt.NDArray[np.uint64]
_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_30, _27, _31 = (np.uint64(n) for n in (30, 27, 31))
_KEYS = 2**64


def in_share(flows: FlowRecords, share: float, secret: int) -> npt.NDArray[np.bool_]:
    """Return which flows belong to a share of all conversations.

    Args:
        flows: Shape (rows,).
        share: 0 to 1, of the conversations; of the flows only as far as conversations are alike.
        secret: 64 random bits, the same for as long as the choice is to stay.
    """
    if share >= 1:
        return np.ones(len(flows), np.bool_)
    salt = np.uint64(secret)
    ends = (_mixed(_mixed(flows[f"{end}_hi"] ^ salt) ^ flows[f"{end}_lo"]) for end in ("src", "dst"))
    key = _mixed(np.add(*ends) ^ salt)  # a sum: the same in both directions
    return key < np.uint64(int(share * _KEYS))


def _mixed(words: Words) -> Words:
    words = words + _STEP
    words = (words ^ (words >> _30)) * _FIRST
    words = (words ^ (words >> _27)) * _SECOND
    mixed: Words = words ^ (words >> _31)
    return mixed
