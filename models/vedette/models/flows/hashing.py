"""64-bit keys of addresses, endpoints and flows: what state tables are indexed with.

The keys are the same on every machine and in every process, because training and agents must agree on which entries
share a place in a table of fixed size. They are no secret and guard nothing: whoever crafts collisions disturbs only
the context of the exporter that reported those flows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.flows.records import FlowRecords

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2 = np.uint64(0x94D0_49BB_1331_11EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(values: npt.NDArray[Any]) -> Keys:
    """Return well-spread 64-bit numbers, one for each of ``values``.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (SplitMix64).
    """
    z: Keys = values.astype(np.uint64)  # a copy: what follows is done in place
    z += _GOLDEN
    z ^= z >> _30
    z *= _MIX_1
    z ^= z >> _27
    z *= _MIX_2
    z ^= z >> _31
    return z


def join(left: Keys, right: npt.NDArray[Any]) -> Keys:
    """Return keys of ordered pairs: ``join(a, b)`` and ``join(b, a)`` differ."""
    return mix((left * _MIX_1) ^ right.astype(np.uint64))


def source_keys(flows: FlowRecords) -> Keys:
    """Return the key of each source address, shape (records,)."""
    return join(mix(flows["src_hi"]), flows["src_lo"])


def destination_keys(flows: FlowRecords) -> Keys:
    """Return the key of each destination address; equal addresses have the key that :func:`source_keys` gives."""
    return join(mix(flows["dst_hi"]), flows["dst_lo"])


def begins(ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which of some sorted values are the first of their kind. Shape (values,)."""
    first = np.empty(len(ordered), np.bool_)
    first[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first
