"""A controller's run service that kills itself as soon as a run is stored in a state: FOLDER STATE."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import datetime
from pathlib import Path

from tests.support.learning import data_room
from vedette.controller.adapters.sqlite.runs import RunStore
from vedette.controller.domain.runs import NewRun, RunRecord

STATE = sys.argv[2] if len(sys.argv) > 2 else ""


class KillingStore(RunStore):
    """Stores, and then, in the state it was told, is no more."""

    def add(self, new: NewRun, now: datetime) -> RunRecord:
        record = super().add(new, now)
        _kill_in(record)
        return record

    def save(self, record: RunRecord) -> None:
        super().save(record)
        _kill_in(record)


def _kill_in(record: RunRecord) -> None:
    if record.state.value == STATE:
        os.kill(os.getpid(), signal.SIGKILL)


async def main(root: Path) -> None:
    with data_room(root, runs=KillingStore) as room:
        run = await room.runs.start("toy", "lab@1", {})
        async for _ in room.runs.watch(run.run):
            pass


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
