"""How much of all crashes a test run looks at."""

from __future__ import annotations

import os


def share_of(usual: float) -> float:
    """Return the share of crashes to check: ``usual``, or what POWERCUT_SHARE says; 1 is all of them."""
    return float(os.environ.get("POWERCUT_SHARE", usual))
