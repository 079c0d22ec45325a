"""A controller that kills itself right after it has stored a rollout for the N-th time: CONFIG N."""

from __future__ import annotations

import os
import signal
import sys

from vedette.controller.__main__ import main
from vedette.controller.adapters.sqlite.rollouts import SqliteRollouts
from vedette.controller.domain.rollout import Rollout

_save = SqliteRollouts.save
_left = int(sys.argv[2])


def save(self: SqliteRollouts, rollout: Rollout, before: Rollout | None) -> None:
    """Store a rollout, and be no more if it was the last time."""
    global _left  # noqa: PLW0603 - of one short-lived process
    _save(self, rollout, before)
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    SqliteRollouts.save = save  # type: ignore[method-assign]
    sys.exit(main(["serve", "--config", sys.argv[1]]))
