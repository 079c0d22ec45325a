"""An agent that kills itself when its state is asked to store one thing: METHOD[=STAGE] before|after ARGUMENTS…"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from vedette.agent.adapters.storage.state import State
from vedette.agent.cli import run_command


def doom(method: str, stage: str, *, before: bool) -> None:
    """Replace a method of the state by one that the process does not outlive, for one stage of a slot or for all."""
    store_it = getattr(State, method)

    def stored_no_more(state: State, fact: Any, *rest: Any) -> None:
        is_last = not stage or fact.stage == stage
        if is_last and before:
            os.kill(os.getpid(), signal.SIGKILL)
        store_it(state, fact, *rest)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(State, method, stored_no_more)


if __name__ == "__main__":
    name, _, slot_stage = sys.argv[1].partition("=")
    doom(name, slot_stage, before=sys.argv[2] == "before")
    sys.exit(run_command(sys.argv[3:]))
