"""Every power cut that a log allows: at which record, by which model of a disk, and what had been promised by then."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.powercut.disk import Disk, Tree
from tests.support.powercut.records import Op, Record

MOST_TORN_BYTES = 4095
_SYNCS = (Op.FSYNC, Op.FSYNC_FOLDER, Op.SYNC_ALL)


@dataclass(frozen=True, slots=True)
class Crash:
    """What one power cut leaves.

    Attributes:
        at: Number of records that happened before it.
        model: The disk's, with the bytes of a torn write; see :mod:`tests.support.powercut.disk`.
        tree: What the disk holds.
        facts: What marks said until then.
        last: What happened last, for who reads a failure.
    """

    at: int
    model: str
    tree: Tree
    facts: tuple[Any, ...]
    last: Record

    def __str__(self) -> str:
        size = f" +{len(self.last.data)}@{self.last.offset}" if self.last.op is Op.WRITE else ""
        return f"cut {self.at}, {self.model}, after {self.last.op.name} {self.last.path} {self.last.other}{size}"


def crashes(records: Iterable[Record], *, unrecorded: Sequence[str] = (), seed: int = 1) -> Iterator[Crash]:
    """Yield the crashes at every prefix of a log, each state once for everything that was promised before it.

    Args:
        records: The log.
        unrecorded: See :class:`Disk`.
        seed: Of what is left to the lot: torn sizes, reordered writes.
    """
    lot, disk = random.Random(seed), Disk(unrecorded)
    facts: tuple[Any, ...] = ()
    seen: set[int] = set()
    for at, record in enumerate(records, 1):
        found = list(_before(disk, record, lot))
        disk.apply(record)
        facts += (record.fact,) if record.op is Op.MARK else ()
        found += [("strict", disk.strict()), ("ordered", disk.ordered()), ("sized", disk.sized())]
        for model, tree in found:
            key = hash((len(facts), frozenset(tree.items())))
            if key not in seen:
                seen.add(key)
                yield Crash(at, model, tree, facts, record)


def _before(disk: Disk, record: Record, lot: random.Random) -> Iterator[tuple[str, Tree]]:
    """Yield what is left when power goes while a record happens."""
    if record.op is Op.WRITE and len(record.data) > 1:
        size = lot.randint(1, min(len(record.data) - 1, MOST_TORN_BYTES))
        yield f"torn at {size}", disk.torn(record, size)
    if record.op in _SYNCS:
        yield "reordered", disk.reordered(lot)


def drawn(found: Iterable[Crash], each: int, *, seed: int = 1) -> list[Crash]:
    """Return some crashes of each model, all as likely: a reservoir, so that not all are held at once."""
    lot = random.Random(seed)
    seen: Counter[str] = Counter()
    kept: dict[str, list[Crash]] = {}
    for crash in found:
        model = crash.model.partition(" ")[0]
        seen[model] += 1
        reservoir = kept.setdefault(model, [])
        if len(reservoir) < each:
            reservoir.append(crash)
        elif (place := lot.randrange(seen[model])) < each:
            reservoir[place] = crash
    return [crash for reservoir in kept.values() for crash in reservoir]


def sampled(found: Iterable[Crash], share: float, *, seed: int = 1) -> Iterator[Crash]:
    """Yield a share of crashes, drawn by lot; of each model always the first after each mark."""
    lot = random.Random(seed)
    always: set[tuple[str, int]] = set()
    for crash in found:
        key = (crash.model.partition(" ")[0], len(crash.facts))
        if key not in always or lot.random() < share:
            always.add(key)
            yield crash
