"""Whose request is answered first where not all can be."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Why a row is scored; the smaller goes first, the larger is refused first."""

    PROGRAM = 0  # the appliance's own programs asked: its job, never given up before what watches it
    FLOW = 1
    EXPLAIN = 2  # evidence for a verdict that stands already
    SHADOW = 3  # a candidate beside the one that answers
