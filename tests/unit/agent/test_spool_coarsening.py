"""Claims about a spool that is over its budget: it loses detail, no count, and nothing is counted twice."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vedette.agent.adapters.storage import spool as module
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.domain.errors import StateReadOnly
from vedette.controller.domain.telemetry import Range, admit, check_batch
from vedette.models.profile import LATENCY_EDGES_MS, DataProfile, ProfileCounts, ReferenceProfile
from vedette.wire.convert import BATCH
from vedette.wire.limits import MAX_MESSAGE_BYTES
from vedette.wire.v1 import telemetry_pb2
from vedette.wire.values import TelemetryBatch, Window

MIDNIGHT = datetime(2026, 11, 1, tzinfo=UTC)
RANDOM = np.random.default_rng(11)
NAMES = [f"feature_{number}" for number in range(40)]
TRAINING = np.exp(RANDOM.normal(size=(4000, 40))).astype(np.float32)
REFERENCE = ReferenceProfile.fit(NAMES, TRAINING, RANDOM.random(4000), RANDOM.random(4000) > 0.98)


def minute_windows(count: int, rows: int) -> list[tuple[Window, ...]]:
    """Return what minutes of a busy appliance may look like: one model of 40 features, and the agent itself."""
    made: list[tuple[Window, ...]] = []
    for _ in range(count):
        profile = DataProfile(REFERENCE)
        seen = TRAINING[RANDOM.integers(0, len(TRAINING), rows)] * RANDOM.normal(1, 0.05, (rows, 1)).astype(np.float32)
        flagged = RANDOM.random(rows) > 0.98
        profile.add(seen, RANDOM.random(rows), flagged)
        latency = np.bincount(RANDOM.integers(20, 30, rows), minlength=len(LATENCY_EDGES_MS) + 1)
        work = Window(
            start=MIDNIGHT,
            end=MIDNIGHT,
            slot="flow-threat",
            model="flow-threat",
            version=1,
            build="sha256:" + "a" * 64,
            rows=rows,
            flagged=int(flagged.sum()),
            verdicts={"benign": rows - int(flagged.sum()), "scan": int(flagged.sum())},
            latency_counts=tuple(latency.tolist()),
            profile=profile.encode(),
        )
        counters = {name: int(RANDOM.integers(1, 10_000)) for name in ("datagrams", "records", "flows", "rows_scored")}
        counters |= {f"counter_{number}": int(RANDOM.integers(1, 100)) for number in range(12)}
        own = Window(start=MIDNIGHT, end=MIDNIGHT, counters=counters, cpu_seconds=1.5, memory_bytes=90_000_000)
        made.append((work, own))
    return made


def at(windows: tuple[Window, ...], minute: int) -> tuple[Window, ...]:
    start = MIDNIGHT + timedelta(minutes=minute)
    return tuple(replace(window, start=start, end=start + timedelta(minutes=1)) for window in windows)


@pytest.fixture(autouse=True, scope="module")
def unsynced_files() -> Iterator[None]:
    """Do without syncs: what a power cut does is another test's claim."""
    made = module._made

    def unsynced(name: str) -> sqlite3.Connection:
        connection = made(name)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_made", unsynced)
        yield


def drained(spool: Spool) -> Iterator[TelemetryBatch]:
    while (batch := spool.oldest()) is not None:
        yield batch
        spool.acknowledge(batch.boot_epoch, batch.sequence)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("days", "budget_bytes"),
    [(2, 250_000), pytest.param(30, 3 * 2**20, marks=pytest.mark.slow)],
    ids=["two days in 250 kB", "thirty days in 3 MiB"],
)
def test_days_without_a_controller_fit_in_a_small_spool_and_no_count_is_lost(
    tmp_path: Path, days: int, budget_bytes: int
) -> None:
    kinds, expected, profiled = minute_windows(48, rows=3000), Counter[str](), np.zeros((41, 28), np.uint64)
    latency = np.zeros(len(LATENCY_EDGES_MS) + 1, np.int64)
    sizes = [BATCH.to_wire(TelemetryBatch(windows=windows)).ByteSize() for windows in kinds]
    written = 0
    with closing(Spool(tmp_path / "spool.db", budget_bytes, 1)) as spool:
        for minute in range(days * 24 * 60):
            work, own = kinds[minute % len(kinds)]
            spool.append(at((work, own), minute))
            written += sizes[minute % len(kinds)]
            expected.update({"rows": work.rows, "flagged": work.flagged, **work.verdicts, **own.counters})
            latency += work.latency_counts
        for work, _ in kinds:
            profiled += ProfileCounts.decode(work.profile).counts * np.uint64(days * 24 * 60 // len(kinds))
        assert spool.bytes_waiting <= budget_bytes < written / 15
        assert spool.waiting().oldest == MIDNIGHT
        found, found_latency, found_profile, spans = Counter[str](), 0 * latency, 0 * profiled, []
        reached = 0
        for batch in drained(spool):
            check_batch(batch)
            assert BATCH.to_wire(batch).ByteSize() < MAX_MESSAGE_BYTES
            assert (batch.gaps, batch.first) == ((), reached + 1)
            reached = batch.sequence
            work, own = batch.windows
            found.update({"rows": work.rows, "flagged": work.flagged, **work.verdicts, **own.counters})
            found_latency += work.latency_counts
            found_profile += ProfileCounts.decode(work.profile).counts
            spans.append(batch.sequence - batch.first + 1)
    assert found == expected
    assert (found_latency == latency).all()
    assert (found_profile == profiled).all()
    assert spans == sorted(spans, reverse=True)  # detail fades with age
    assert spans[0] >= 60
    assert spans[-1] == 1
    assert reached == days * 24 * 60


SMALL = [Window(start=MIDNIGHT, end=MIDNIGHT, slot="s", rows=1, counters={f"counter_{n:02}": 1 for n in range(12)})]


def filled(path: Path, minutes: int, budget_bytes: int = 2000) -> Spool:
    spool = Spool(path, budget_bytes, 1)
    for minute in range(minutes):
        spool.append(at(tuple(SMALL), minute))
    return spool


def test_a_batch_that_may_have_been_sent_is_never_merged_not_even_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with closing(filled(path, 3)) as spool:
        sent = spool.oldest()
    with closing(Spool(path, 2000, boot_epoch=2)) as spool:
        for minute in range(3, 60):
            spool.append(at(tuple(SMALL), minute))
        batches = list(drained(spool))
    assert batches[0] == sent
    assert [(b.boot_epoch, b.first, b.sequence) for b in batches[:2]] == [(1, 1, 1), (1, 2, 3)]
    assert sum(window.rows for batch in batches for window in batch.windows) == 60


def test_when_even_days_do_not_fit_the_oldest_become_a_gap_of_all_they_stood_for(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool.db", 2000, 1)) as spool:
        for hour in range(24 * 60):
            spool.append(at(tuple(SMALL), hour * 60))
            assert spool.bytes_waiting <= 2000
        gap, *days = list(drained(spool))
        assert [day.sequence - day.first + 1 for day in days[:-1]][:3] == [24, 24, 24]
        (told,) = gap.gaps
        assert (told.first_sequence, told.last_sequence, told.rows) == (1, gap.sequence, gap.sequence)
        assert spool.batches_dropped == gap.sequence
        assert gap.sequence + sum(window.rows for day in days for window in day.windows) == 24 * 60


def test_what_gets_no_smaller_stays_as_it_is(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool.db", 3000, 1)) as spool:
        for minute in range(20):
            spool.append(at((replace(SMALL[0], version=minute, profile=RANDOM.bytes(300)),), minute))
        assert spool.batches_merged == 0
        assert {batch.sequence - batch.first for batch in drained(spool)} == {0}


def test_a_merged_batch_is_never_larger_than_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGED_BYTES", 1200)
    with closing(Spool(tmp_path / "spool.db", 6000, 1)) as spool:
        for minute in range(40):
            spool.append(at(tuple(replace(SMALL[0], slot=f"s{minute // 3 % 4}", version=v) for v in (1, 2)), minute))
        assert spool.batches_merged > 0
        assert max(BATCH.to_wire(batch).ByteSize() for batch in drained(spool) if batch.first_sequence) <= 1200


def test_a_flipped_bit_found_while_merging_is_a_gap_of_its_own_and_the_rest_merges(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    filled(path, 6, budget_bytes=10**6).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE batches SET body = x'FFFF' WHERE sequence = 3")
    with closing(Spool(path, 900, boot_epoch=2)) as spool:
        spool.append(at(tuple(SMALL), 6))
        batches = list(drained(spool))
    told = [(batch.first, batch.sequence, len(batch.gaps)) for batch in batches if batch.boot_epoch == 1]
    assert (3, 3, 1) in told
    assert sum(g.rows for b in batches for g in b.gaps) == 1
    assert sum(w.rows for b in batches for w in b.windows) == 6


def test_the_spool_of_an_older_agent_is_used_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    bodies = [BATCH.to_wire(TelemetryBatch(boot_epoch=1, sequence=n, windows=at(tuple(SMALL), n))) for n in (1, 2, 3)]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE batches (boot_epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, gap_from INTEGER,"
            " rows INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (boot_epoch, sequence))"
        )
        rows = [(1, n, None, 1, body.SerializeToString()) for n, body in enumerate(bodies, 1)]
        connection.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", rows)
    with closing(Spool(path, 1800, boot_epoch=2)) as spool:
        assert spool.times_damaged == 0
        for minute in range(4, 30):
            spool.append(at(tuple(SMALL), minute))
        told = [(batch.boot_epoch, batch.first, batch.sequence) for batch in drained(spool)]
    assert told[:3] == [(1, 1, 1), (1, 2, 2), (1, 3, 3)]
    assert told[3][0] == 2
    assert len(told) < 10


@dataclass
class Controller:
    """Counts as the real one does."""

    counted: dict[int, tuple[Range, ...]] = field(default_factory=dict)
    rows: int = 0
    lost: int = 0

    def report(self, batch: TelemetryBatch) -> None:
        check_batch(batch)
        admission = admit(self.counted.get(batch.boot_epoch, ()), batch)
        self.counted[batch.boot_epoch] = admission.counted
        self.lost += sum(gap.rows for gap in admission.lost)
        if admission.is_new:
            self.rows += sum(window.rows for window in batch.windows)


_CHILD = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from vedette.agent.adapters.storage.spool import Spool
from vedette.wire.convert import BATCH
from vedette.wire.values import Window
epoch = int(sys.argv[2])
spool = Spool(Path(sys.argv[1]), 3000, epoch)
for minute in range(10**6):
    at = datetime(2026, 1, epoch, tzinfo=UTC) + timedelta(minutes=minute % 1440)
    spool.append([Window(start=at, end=at, slot="s", rows=1, counters={f"counter_{n:02}": 1 for n in range(12)})])
    print("stored", flush=True)
    if minute % 23 == 22:
        batch = spool.oldest()
        print("sent", BATCH.to_wire(batch).SerializeToString().hex(), flush=True)
        if minute % 2:
            spool.acknowledge(batch.boot_epoch, batch.sequence)
"""


def test_an_agent_killed_while_it_merges_counts_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    controller, stored, path = Controller(), 0, tmp_path / "spool.db"
    for epoch, lines in enumerate((150, 71, 233), start=1):
        command = [sys.executable, "-c", _CHILD, str(path), str(epoch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            said += child.stdout.readlines()
        for line in (line for line in said if line.endswith("\n")):
            word, _, body = line.rstrip().partition(" ")
            stored += word == "stored"
            if word == "sent":
                controller.report(BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(bytes.fromhex(body))))
    with closing(Spool(path, 10**6, boot_epoch=9)) as spool:
        assert spool.waiting().merged > 0
        for batch in drained(spool):
            controller.report(batch)
    assert controller.lost == 0
    assert stored <= controller.rows <= stored + 3  # each run may have been killed before it said what it had stored


class Life(RuleBasedStateMachine):
    """Any order of appending, sending, losing answers, dying, and of a disk that takes no writes."""

    budget_bytes = 10**9

    def profile(self) -> bytes:
        return b""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="vedette-spool-"))
        self.path = self.folder / "spool.db"
        self.epoch, self.minute, self.appended = 1, 0, 0
        self.controller = Controller()
        self.holding: TelemetryBatch | None = None
        self.refuses, self.was_broken = "", False
        self.opened()

    def opened(self) -> None:
        self.spool = Spool(self.path, self.budget_bytes, self.epoch, shelter=self.folder / "shelter.db")
        whole = self.spool._transaction
        life = self

        def flaky() -> AbstractContextManager[sqlite3.Connection]:
            if life.refuses and not life.spool._is_detached:
                return _refusing(whole, is_done=life.refuses == "after")
            return whole()

        self.spool._transaction = flaky  # type: ignore[method-assign, assignment]

    @rule(minutes=st.integers(1, 60), rows=st.integers(1, 9))
    def append(self, minutes: int, rows: int) -> None:
        for _ in range(minutes):
            self.minute += 1
            self.appended += rows
            self.spool.append(at((replace(SMALL[0], rows=rows, profile=self.profile()),), self.minute))

    @rule()
    def hold(self) -> None:
        if not self.refuses or self.spool._is_detached:
            self.holding = self.spool.oldest()

    @rule(answered=st.lists(st.booleans(), min_size=1, max_size=4))
    def send_some(self, answered: list[bool]) -> None:
        for is_answered in answered:
            self.hold()
            if self.holding is not None:
                self.send(is_answered)

    @precondition(lambda self: self.holding)
    @rule(is_answered=st.booleans())
    def send(self, is_answered: bool) -> None:
        assert self.holding is not None
        self.controller.report(self.holding)
        if is_answered and (not self.refuses or self.spool._is_detached):
            self.spool.acknowledge(self.holding.boot_epoch, self.holding.sequence)
            self.holding = None

    @rule(minutes=st.integers(-10_000, 10_000))
    def set_the_clock(self, minutes: int) -> None:
        self.minute = max(0, self.minute + minutes)

    @rule(how=st.sampled_from(["", "before", "after"]))
    def break_or_mend_the_disk(self, how: str) -> None:
        self.refuses = how
        self.was_broken |= bool(how)

    @rule()
    def die(self) -> None:
        self.spool.close()
        self.epoch += 1
        self.holding = None
        if self.refuses:
            self.refuses = ""  # a start finds the shelter, and the disk mended
        self.opened()

    @invariant()
    def every_row_arrived_or_waits(self) -> None:
        """What the controller has, and gets if all that waits is sent now, is what there was: no more and no less."""
        bodies: list[bytes] = []
        for path in (self.folder / "shelter.db", self.path):  # what is in memory is sent before what is on the disk
            if path.exists():
                with closing(sqlite3.connect(path)) as file:
                    query = "SELECT body FROM batches ORDER BY boot_epoch, sequence"
                    bodies += [body for (body,) in file.execute(query)]
        future = Controller(dict(self.controller.counted), self.controller.rows, self.controller.lost)
        for body in bodies:
            future.report(BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(body)))
        assert future.rows + future.lost == self.appended
        assert future.lost == 0 or self.profile() or self.was_broken  # the memory's own budget is small, too

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.folder)


@contextmanager
def _refusing(
    whole: Callable[[], AbstractContextManager[sqlite3.Connection]], *, is_done: bool
) -> Iterator[sqlite3.Connection]:
    """Fail a transaction before it began, or after it was done, as a disk whose sync gives an error does."""
    if not is_done:
        raise StateReadOnly("the disk takes no writes")
    with whole() as connection:
        yield connection
    raise StateReadOnly("the disk took it and said that it did not")


class LifeOverBudget(Life):
    """The same with a budget that days fit in."""

    budget_bytes = 8_000


class LifeInMisery(Life):
    """The same with windows that get no smaller: many become gaps."""

    budget_bytes = 64 * 1024

    def profile(self) -> bytes:
        return RANDOM.bytes(2_000)


for case in (Life, LifeOverBudget, LifeInMisery):
    case.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLife, TestLifeOverBudget, TestLifeInMisery = Life.TestCase, LifeOverBudget.TestCase, LifeInMisery.TestCase
