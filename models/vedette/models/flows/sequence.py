"""What an exporter's sequence numbers count, and what their gaps say is missing.

v5 counts flows, v9 datagrams, IPFIX data records, each number the count before its datagram. Exporters differ:
softflowd 1.1.0 puts the count behind the datagram into IPFIX (measured on the shared captures), others count records in
v9 or stand still. A gap by the standard's way of counting would be a lie there, so the way is judged first:

- The first :data:`JUDGED_AFTER` steps are held against every way of :class:`Counting`; the one that explains most of
  them, and more than half, is the exporter's. Gaps among them count from then on.
- When none does, the numbers are not credible: nothing is counted, and they are judged anew later.
- A step that another way explains exactly is a gap only when that stays a coincidence (:data:`DOUBTS`).
- A number a little behind came late or twice and is no gap; one far behind is an exporter that began anew.
- Numbers that mostly break the judged way are judged anew.

Source: Cisco NetFlow export v5, RFC 3954 section 5.1 (v9), RFC 7011 section 3.1 (IPFIX).
"""

from __future__ import annotations

from enum import StrEnum

JUDGED_AFTER = 8
"""Steps that are held against every way of counting before one is believed."""

DOUBTS = 4
"""So many steps that only one other way explains, and the exporter counts that way."""

JUDGED_AGAIN_AFTER = 256
"""Steps until numbers that made no sense are judged anew."""

_WINDOW = 64
_LATE = 1024  # steps back that are reordering; further back is a new beginning
_MODULUS = 1 << 32
_HALF = 1 << 31


class Counting(StrEnum):
    """What a sequence number counts; ``after`` ones include their own datagram."""

    DATAGRAMS = "datagrams"
    RECORDS = "records"
    FLOWS = "flows"
    RECORDS_AFTER = "records after"
    FLOWS_AFTER = "flows after"


_WAYS = tuple(Counting)
_STANDARD = {5: _WAYS.index(Counting.FLOWS), 9: _WAYS.index(Counting.DATAGRAMS), 10: _WAYS.index(Counting.RECORDS)}
_JUDGING, _NOT_CREDIBLE = -1, -2

_Steps = tuple[int | None, ...]


class Sequence:
    """The numbers of one exporter at one source port. Not thread-safe."""

    __slots__ = (
        "_checks",
        "_doubtful",
        "_explained",
        "_flows",
        "_hits",
        "_last",
        "_missed",
        "_misses",
        "_records",
        "_standard",
        "_way",
        "gaps",
        "late",
        "lost",
    )

    def __init__(self, version: int) -> None:
        self.gaps = 0
        self.lost = 0
        """What is missing in those gaps, in units of :attr:`counting`; what came late is not taken off."""
        self.late = 0
        """Datagrams that came late or twice."""
        self._standard = _STANDARD[version]
        self._last: int | None = None
        self._flows: int | None = 0  # of the last datagram; None: nobody knows
        self._records: int | None = 0
        self._judge()

    @property
    def counting(self) -> Counting | None:
        """What the numbers count; None while that is judged, and when they are not credible."""
        return _WAYS[self._way] if self._way >= 0 else None

    @property
    def is_credible(self) -> bool | None:
        """Whether the numbers say what is lost; None while that is judged."""
        return None if self._way == _JUDGING else self._way >= 0

    def take(self, number: int, flows: int | None, records: int | None) -> int:
        """Take the number of the next datagram and return how many gaps became certain.

        Args:
            number: From its header.
            flows: Flow records it holds; None when nobody knows, as without their template.
            records: Data records it holds, option data included.
        """
        if self._last is None:
            self._remember(number, flows, records)
            return 0
        steps = (1, self._records, self._flows, records, flows)
        step = (number - self._last) % _MODULUS
        if self._way >= 0 and step == steps[self._way]:
            self._checks += 1
            self._remember(number, flows, records)
            return self._end_of_window() if self._checks >= _WINDOW else 0
        if (step == 0 or step >= _MODULUS - _LATE) and step not in steps:
            self.late += 1
            return self._seen(steps, step)
        self._remember(number, flows, records)
        return self._seen(steps, step)

    def _remember(self, number: int, flows: int | None, records: int | None) -> None:
        self._last, self._flows, self._records = number, flows, records

    def _seen(self, steps: _Steps, step: int) -> int:
        """Count a step that is not the one expected, or that no way is judged to expect."""
        if self._way >= 0:
            return self._broken(steps, step)
        self._checks += 1
        if self._way == _NOT_CREDIBLE:
            if self._checks >= JUDGED_AGAIN_AFTER:
                self._judge()
            return 0
        for way, expected in enumerate(steps):
            self._hits[way] += step == expected
            self._missed[way].append(_missing(step, expected))
        return self._verdict() if self._checks >= JUDGED_AFTER else 0

    def _judge(self) -> None:
        self._way, self._checks = _JUDGING, 0
        self._hits = [0] * len(_WAYS)
        self._missed: list[list[int]] = [[] for _ in _WAYS]
        self._settle()

    def _settle(self) -> None:
        """Begin a window of a way that is believed."""
        self._misses = 0
        self._explained = [0] * len(_WAYS)
        self._doubtful: list[int] = []

    def _verdict(self) -> int:
        # The standard's own way first: where all datagrams hold the same number of records, several explain as much.
        order = [self._standard, *(way for way in range(len(_WAYS)) if way != self._standard)]
        best = max(order, key=self._hits.__getitem__)
        is_credible = self._hits[best] * 2 > JUDGED_AFTER
        self._way, self._checks = best if is_credible else _NOT_CREDIBLE, 0
        return self._certain(self._missed[best]) if is_credible else 0

    def _broken(self, steps: _Steps, step: int) -> int:
        expected = steps[self._way]
        if expected is None:
            return 0
        self._checks += 1
        self._misses += 1
        explaining = [way for way, other in enumerate(steps) if step == other]
        for way in explaining:
            self._explained[way] += 1
            if self._explained[way] >= DOUBTS and self._explained[way] == self._misses:
                self._way, self._checks = way, 0
                self._settle()
                return 0
        missing = _missing(step, expected)
        certain = 0
        if explaining:
            self._doubtful.append(missing)
        else:
            certain = self._certain([missing])
        return certain + (self._end_of_window() if self._checks >= _WINDOW else 0)

    def _end_of_window(self) -> int:
        certain = self._certain(self._doubtful)
        if self._misses * 2 > self._checks:
            self._judge()
        else:
            self._checks = 0
            self._settle()
        return certain

    def _certain(self, missing: list[int]) -> int:
        gaps = [count for count in missing if count]
        self.gaps += len(gaps)
        self.lost += sum(gaps)
        return len(gaps)


def _missing(step: int, expected: int | None) -> int:
    """Return how much lies in a gap; 0 for a step that is none: as expected, back, or where nobody knows."""
    if expected is None or step in (0, expected) or step >= _HALF:
        return 0
    # A gap by fewer than the datagram before held is one all the same: something was not counted as we did.
    return max(step - expected, 1)
