"""What one exporter's flows have been doing lately: fixed-memory state that advances in ticks of record time.

Five tables remember sources, destinations, pairs, services (destination, port, protocol) and users of a service (pair,
port, protocol). Each is a two-way set-associative hash table keyed by 64 bits: a new key takes the place of the longer
unused one of its two, so a flood of random addresses costs a bounded amount of memory and no time beyond its own rows.
Tables begin small and double while they fill, up to their limit.

An entry holds sums that decay with time constants of 10 s and 60 s, bitmaps that count distinct members over the last
30 to 60 s by linear counting in two rotating halves, and for some tables exponentially weighted means of the interval
between flows and of their sizes.

Everything is counted in whole ticks: all flows of a tick are added at once and each sees the sums with its tick in
them, so the order inside a tick and the way records were batched cannot matter. Only additions of integers below 2**53,
multiplication, division and tables made by ``math`` are used: numpy's own ``exp`` and ``log`` differ in the last bit
between kinds of CPU, and the features must not.

Sources: Whang, Vander-Zanden and Taylor, A Linear-Time Probabilistic Counting Algorithm for Database Applications, ACM
    TODS 15(2), 1990; Estan, Varghese and Fisk, Bitmap Algorithms for Counting Active Flows on High-Speed Links, IMC
    2003 (several bitmaps in rotation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vedette.models.flows.hashing import Keys, begins

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FAST_S, SLOW_S = 10, 60
"""Time constants of the two decayed sums, seconds."""
HALF_S = 30
"""Length of one half of a distinct counter: it looks back between one and two halves."""
FORGET_S = 3_600
"""An entry unseen for so long is new again."""
WARM_S = 120
"""What an exporter reports in the first minutes of an epoch counts as known: all of it would be new otherwise."""
KNOWN_AFTER_S = 600
"""An entry that appeared later becomes known gradually over this time."""
PAUSE = 8
"""A gap of more than so many usual intervals, and of more than 8 s, is a pause: it starts a series anew, else one long
absence hides a regular interval for the next twenty (measured: the second visit of a beacon)."""
BITMAP_BITS = 256

_WORDS = BITMAP_BITS // 64
_LAST = 1_200  # exp(-1200 / 60) is 2e-9: nothing is left of a count


def _decays(constant_s: int) -> Floats:
    return np.array([math.exp(-age / constant_s) for age in range(_LAST)] + [0.0])


_DECAYS = np.stack([_decays(FAST_S), _decays(SLOW_S)], axis=1)[:, :, None]  # shape (ages, windows, 1)
_EVERY = slice(None)  # in place of the numbers of all rows: a view where those would copy
_NO_MEANS = np.zeros((0, 0))
# A full bitmap has no estimate; it counts as one bit free.
_DISTINCT = np.array(
    [-BITMAP_BITS * math.log(max(BITMAP_BITS - used, 1) / BITMAP_BITS) for used in range(BITMAP_BITS + 1)]
)


@dataclass(frozen=True, slots=True)
class Tick:
    """The flows of one closed second of record time, as every table needs them."""

    number: int  # seconds of record time, never less than before
    warm_until: int  # entries first seen before this tick are known at once
    amounts: Floats  # what to add to the sums, whole numbers, shape (flows, sums)
    start_ms: Ints  # shape (flows,)


@dataclass(frozen=True, slots=True)
class TableShape:
    """What the entries of a table hold.

    ``sums``: decayed sums in each of the two windows. ``bitmaps``: distinct counters. ``means``: weighted means of
    values beside that of the interval; -1 for none and no interval either. ``weight``: the least weight of the newest
    tick in those means. ``limit``: the most entries, a power of two.
    """

    sums: int
    bitmaps: int = 0
    means: int = -1
    weight: float = 0.25
    limit: int = 16_384


@dataclass(frozen=True, slots=True)
class Touched:
    """The entries that the flows of one tick belong to, after that tick; row ``entry[i]`` is that of flow ``i``."""

    entry: Ints  # shape (flows,)
    fast: Floats  # shape (entries, sums), decayed at 10 s
    slow: Floats  # shape (entries, sums), decayed at 60 s
    distinct: Floats  # shape (entries, bitmaps)
    known: Floats  # shape (entries,), 0 new to 1 known
    means: Floats  # shape (entries, 4 + 2 * means): columns below
    earlier: Floats  # the same before this tick


INTERVALS, INTERVAL_MEAN, INTERVAL_DEVIATION, UPDATES, FIRST_MEAN = range(5)
"""Columns of :attr:`Touched.means`; from FIRST_MEAN on a mean and a mean absolute deviation for each value."""

INITIAL_ENTRIES = 512
"""Tables double when a quarter is taken: then one set in seventy has a third claimant for its two places."""


class Table:
    """One two-way set-associative table. Not thread-safe; copies by ``copy.deepcopy``."""

    def __init__(self, shape: TableShape) -> None:
        self.shape = shape
        self.untracked = 0
        """Entries that found both their places taken by others of the same tick, and were not remembered."""
        self._round = 0
        self._live = 0
        self._allocate(min(INITIAL_ENTRIES, shape.limit))

    def __len__(self) -> int:
        return self._live

    @property
    def nbytes(self) -> int:
        """Return the memory that the arrays take, bytes."""
        return sum(array.nbytes for array in self._arrays())

    @property
    def wants_bytes(self) -> int:
        """Return how much more memory the next doubling takes, 0 when none is due."""
        due = self._live * 4 > len(self._keys) and len(self._keys) < self.shape.limit
        return self.nbytes if due else 0

    def grow(self) -> None:
        """Double the places. No entry is lost: those of one set divide over the two sets it becomes."""
        old, old_keys = self._arrays(), self._keys
        live = np.flatnonzero(old_keys)
        self._allocate(2 * len(self._keys))
        sets = np.uint64(len(self._keys) // 2 - 1)
        place = (old_keys[live] & sets).astype(np.int64) * 2 + (live & 1)
        for array, before in zip(self._arrays(), old, strict=True):
            array[place] = before[live]

    def touch(self, keys: Keys, tick: Tick, members: tuple[Keys, ...] = (), values: Floats | None = None) -> Touched:
        """Add the flows of one tick and return the entries they touched.

        Args:
            keys: Entry of each flow, shape (flows,).
            tick: The flows.
            members: For each bitmap the key of the member that each flow adds, shape (flows,) each.
            values: What to keep means of, whole numbers, shape (flows, means); None for a table without.
        """
        self._round += 1
        entries, entry = _grouped(keys)
        now = tick.number
        slots, fresh = self._places(entries, now)
        at = np.maximum(slots, 0)
        age = np.where(fresh, _LAST, np.minimum(now - self._seen[at], _LAST))
        added = _totals(entry, tick.amounts, len(entries))
        sums = self._sums[at].astype(np.float64)
        sums[fresh] = 0.0
        sums *= _DECAYS[age]
        sums += added[:, None]
        bits = self._bits_after(at, fresh, now, entry, members)
        born = np.where(fresh, now, self._born[at])
        is_tracked = slots >= 0
        kept = _EVERY if is_tracked.all() else is_tracked.nonzero()[0]
        into = slots[kept]
        earlier = means = _NO_MEANS
        if values is not None:
            earlier = self._means[at]
            earlier[fresh] = 0.0
            newest, last_ms = _newest(entry, tick.start_ms, len(entries)), self._last_ms[at]
            gap = np.where(fresh, 0.0, (newest - last_ms) / added[:, 0])
            sizes = _totals(entry, values, len(entries)) / added[:, :1]
            means = _means_after(earlier, gap, sizes, self.shape.weight)
            self._means[into] = means[kept]
            self._last_ms[into] = np.where(fresh, newest, np.maximum(last_ms, newest))[kept]
        self._keys[into], self._seen[into], self._born[into] = entries[kept], now, born[kept]
        self._sums[into] = sums[kept]
        if members:
            self._bits[into] = bits[kept]
        grown = np.minimum(now - born, KNOWN_AFTER_S) / KNOWN_AFTER_S
        known = np.where(born < tick.warm_until, 1.0, grown)
        used = np.bitwise_count(bits[:, :, 0] | bits[:, :, 1]).sum(axis=2, dtype=np.int64)
        return Touched(entry, sums[:, 0], sums[:, 1], _DISTINCT[used], known, means, earlier)

    def _allocate(self, places: int) -> None:
        shape = self.shape
        self._keys = np.zeros(places, np.uint64)
        self._used = np.zeros(places, np.int64)
        self._seen = np.zeros(places, np.int64)
        self._born = np.zeros(places, np.int64)
        self._sums = np.zeros((places, 2, shape.sums), np.float32)
        self._bits = np.zeros((places, shape.bitmaps, 2, _WORDS), np.uint64)
        columns = 0 if shape.means < 0 else FIRST_MEAN + 2 * shape.means
        self._means = np.zeros((places, columns), np.float64)
        self._last_ms = np.zeros(places if columns else 0, np.int64)

    def _arrays(self) -> tuple[npt.NDArray[np.generic], ...]:
        always = (self._keys, self._used, self._seen, self._born, self._sums, self._bits)
        return (*always, self._means, self._last_ms) if self._means.shape[1] else always

    def _places(self, entries: Keys, tick: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Return the slot of each entry, -1 where there is none to have, and which entries are new."""
        left = ((entries & np.uint64(len(self._keys) // 2 - 1)) * np.uint64(2)).astype(np.int64)
        right = left + 1
        slots = np.where(self._keys[left] == entries, left, np.where(self._keys[right] == entries, right, -1))
        fresh = slots < 0
        missing = fresh.nonzero()[0]
        if len(missing) == 0:
            self._used[slots] = self._round
            return slots, tick - self._seen[slots] > FORGET_S
        hit = (~fresh).nonzero()[0]
        self._used[slots[hit]] = self._round
        fresh[hit] = tick - self._seen[slots[hit]] > FORGET_S
        slots[missing] = self._victims(left[missing])
        self.untracked += int(np.count_nonzero(slots[missing] < 0))
        return slots, fresh

    def _victims(self, left: Ints) -> Ints:
        """Give each new entry a place in its set: the longest unused first, never one that this tick uses."""
        order = np.argsort(left, kind="stable")
        sets = left[order]
        place = np.arange(len(sets))
        rank = place - np.maximum.accumulate(np.where(begins(sets), place, 0))
        used_left, used_right = self._used[sets], self._used[sets + 1]
        free = (used_left != self._round).astype(np.int64) + (used_right != self._round)
        oldest = sets + (used_right < used_left)
        place = np.where(rank == 0, oldest, sets + sets + 1 - oldest)
        place = np.where(rank < free, place, -1)
        taken = place[place >= 0]
        self._live += int(np.count_nonzero(self._keys[taken] == 0))
        self._used[taken] = self._round
        slots = np.empty_like(place)
        slots[order] = place
        return slots

    def _bits_after(
        self, at: Ints, fresh: npt.NDArray[np.bool_], tick: int, entry: Ints, members: tuple[Keys, ...]
    ) -> Keys:
        if not members:
            return np.zeros((len(at), 0, 2, _WORDS), np.uint64)
        bits = self._bits[at]
        halves = tick // HALF_S - self._seen[at] // HALF_S
        halves[fresh] = 2  # as good as long ago
        turned = halves.nonzero()[0]
        if len(turned):
            bits[turned, :, 1] = np.where(halves[turned] == 1, bits[turned, :, 0].T, 0).T
            bits[turned, :, 0] = 0
        flat = bits.reshape(-1)
        for column, member in enumerate(members):
            bit = member & np.uint64(BITMAP_BITS - 1)
            word = (entry * len(members) + column) * 2 * _WORDS + (bit >> np.uint64(6)).astype(np.int64)
            np.bitwise_or.at(flat, word, np.uint64(1) << (bit & np.uint64(63)))
        return bits


def _means_after(earlier: Floats, gap: Floats, sizes: Floats, least_weight: float) -> Floats:
    """Return the means with one more interval, where there is one, and one more size of each entry."""
    means = earlier.copy()
    usual = np.maximum(means[:, INTERVAL_MEAN], 1000.0)
    paused = (means[:, INTERVALS] > 0) & (gap > PAUSE * usual)
    means[paused, INTERVALS : INTERVAL_DEVIATION + 1] = 0.0
    timed = ((gap > 0.0) & ~paused).nonzero()[0]
    means[timed, INTERVALS] += 1.0
    _shift(means, timed, INTERVAL_MEAN, gap[timed], np.maximum(least_weight, 1.0 / means[timed, INTERVALS]))
    means[:, UPDATES] += 1.0
    weight = np.maximum(least_weight, 1.0 / means[:, UPDATES])
    for column in range(sizes.shape[1]):
        _shift(means, _EVERY, FIRST_MEAN + 2 * column, sizes[:, column], weight)
    return means


def _newest(entry: Ints, start_ms: Ints, entries: int) -> Ints:
    newest = np.full(entries, np.iinfo(np.int64).min)
    np.maximum.at(newest, entry, start_ms)
    return newest


def _shift(means: Floats, rows: Ints | slice, mean: int, values: Floats, weight: Floats) -> None:
    """Move a weighted mean and the mean absolute deviation beside it towards ``values``."""
    off = values - means[rows, mean]
    means[rows, mean] += weight * off
    # At the first value there is nothing to be off from.
    means[rows, mean + 1] += np.where(weight == 1.0, 0.0, weight * (np.abs(off) - means[rows, mean + 1]))


def _grouped(keys: Keys) -> tuple[Keys, Ints]:
    """Return the different keys, sorted and never 0, and the row of each key among them."""
    keys = np.maximum(keys, np.uint64(1))  # 0 marks an empty place
    order = np.argsort(keys)
    ordered = keys[order]
    first = begins(ordered)
    entry = np.empty(len(keys), np.int64)
    entry[order] = np.cumsum(first) - 1
    return ordered[first], entry


def _totals(entry: Ints, amounts: Floats, entries: int) -> Floats:
    """Return the sums of ``amounts`` over the flows of each entry, shape (entries, columns)."""
    columns = amounts.shape[1]
    cell = entry[:, None] * columns + np.arange(columns)
    totals = np.bincount(cell.ravel(), weights=amounts.ravel(), minlength=entries * columns)
    return totals.astype(np.float64, copy=False).reshape(entries, columns)
