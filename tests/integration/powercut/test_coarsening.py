"""A spool over its budget after a power cut at any moment: merged or not, every minute is in it once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.powercut.conftest import Crashed
from tests.support.powercut.crashes import crashes, sampled
from tests.support.powercut.recording import Recording
from tests.support.powercut.share import share_of
from vedette.agent.adapters.storage.spool import Spool

BUDGET_BYTES = 2000

COARSENING = """
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tests.support.powercut.records import mark
from vedette.agent.adapters.storage.spool import Spool
from vedette.wire.values import Window
log = Path(os.environ["POWERCUT_LOG"])
spool = Spool(Path(os.environ["POWERCUT_ROOT"], "spool.db"), {budget}, 1)
for minute in range(60):
    start = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=minute)
    counters = {{f"counter_{{n:02}}": 1 for n in range(12)}}
    spool.append([Window(start=start, end=start + timedelta(minutes=1), slot="s", rows=1, counters=counters)])
    mark(log, {{"kept": minute + 1}})
    if minute == 30:
        sent = spool.oldest()
        mark(log, {{"sent": [sent.first, sent.sequence]}})
"""


@pytest.mark.timeout(600)
def test_a_cut_while_windows_are_merged_loses_no_minute_counts_none_twice_and_keeps_what_was_sent_whole(
    tmp_path: Path, crashed: Crashed
) -> None:
    (tmp_path / "disk").mkdir()
    recording = Recording(tmp_path / "disk", tmp_path / "log")
    environment = {**os.environ, **recording.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = COARSENING.format(budget=BUDGET_BYTES)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    merged = 0
    for crash in sampled(crashes(recording.records()), share_of(0.05)):
        with crashed(crash) as folder:
            merged += _check(folder / "spool.db", crash.facts, str(crash))
    assert merged > 0, "no cut fell behind a merger"


def _check(path: Path, facts: list[dict[str, object]], crash: str) -> bool:
    """Check what a cut left; return whether anything had been merged."""
    kept = max((fact["kept"] for fact in facts if "kept" in fact), default=0)
    spool = Spool(path, BUDGET_BYTES, 2)
    try:
        batches = []
        while (batch := spool.oldest()) is not None:
            batches.append(batch)
            spool.acknowledge(batch.boot_epoch, batch.sequence)
        assert spool.times_damaged == 0, crash
    finally:
        spool.close()
    reached = 0
    for batch in batches:
        assert (batch.first, batch.gaps) == (reached + 1, ()), f"{crash}: a hole or an overlap behind {reached}"
        reached = batch.sequence
        rows = sum(window.rows for window in batch.windows)
        assert rows == batch.sequence - batch.first + 1, f"{crash}: {rows} rows in {batch.first} to {batch.sequence}"
    assert kept <= reached <= kept + 1, crash  # one may have been on its way
    for first, last in [fact["sent"] for fact in facts if "sent" in fact]:
        assert (first, last) in {(batch.first, batch.sequence) for batch in batches}, f"{crash}: merged what was sent"
    return any(batch.first < batch.sequence for batch in batches)
