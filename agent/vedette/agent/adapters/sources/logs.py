"""Flows from the log files of other programs: follow, parse, hand on, and remember where.

What a crash leaves: **at least once, bounded**. A stored position is one of which every flow has been told: the lines
before it were read :data:`SETTLE_S` ago, so that their tick was closed, and what was queued then has been scored. So
nothing that was read is lost with a process, and a process that dies has the lines read once more that were read in
its last :data:`SAVE_EVERY_S` + :data:`SETTLE_S`, or that it had not scored yet. A stop in order repeats nothing. (What
was told twice is in verdicts and counts twice; exactly once would need the positions, the verdict files and the spool
to be written in one transaction.) The positions of all sources are one file, written whole and synced, at most once in
:data:`SAVE_EVERY_S` and only when they moved: never a line's worth.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vedette.agent.adapters.sources.follow import Follower, Position, PositionError
from vedette.agent.adapters.storage.files import FileTooLarge, read_file, replace_file
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.errors import DiskFull
from vedette.agent.domain.metrics import Family, Sample
from vedette.models.flows.extract import SILENCE_MS
from vedette.models.flows.log_lines import LineSplitter, LogParser, LogStateError, Reason
from vedette.models.flows.records import FlowRecords
from vedette.wire.values import Severity

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 10.0
SETTLE_S = SILENCE_MS / 1000 + 1.0
POLL_S = 0.5
READ_BYTES = 64 * 1024  # some hundred lines: 5 ms of the loop
_HEADER_BYTES = 64 * 1024
_MAX_FILE_BYTES = 1 << 20
_FORM = 1
_STORED = {"path", "position", "is_skipping", "parser"}


class Flows(Protocol):
    """What takes flow records."""

    queued_flows: int

    @property
    def finished_flows(self) -> int:
        """How many of the queued flows have been told, or given up."""
        ...

    def take_records(self, records: FlowRecords) -> None:
        """Queue the flows of the ticks that these records close."""
        ...

    def advance(self) -> None:
        """Queue what waits of exporters that fell silent."""
        ...

    async def room(self) -> None:
        """Wait until more may be read."""
        ...


class LogSource:
    """One file of one format.

    Args:
        name: ``eve`` or ``zeek``.
        path: Of the file.
        parser: Of its format.
        exporter: The number under which the pipeline knows this file.
        flows: Takes what is read.
        clock: Durations only.
        stored: What :attr:`settled` was in an earlier process; None, or something else, begins as at the first start.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        parser: LogParser,
        *,
        exporter: int,
        flows: Flows,
        clock: Clock,
        stored: object = None,
    ) -> None:
        self.name = name
        self.path = path
        self.parser = parser
        self._exporter = exporter
        self._flows = flows
        self._clock = clock
        self._splitter = LineSplitter()
        self.follower = Follower(path, self._restored(stored), clock.monotonic)
        self._heard_s = float("-inf")
        self._mark: tuple[dict[str, Any], float, int | None] | None = None
        self.settled: dict[str, Any] | None = None

    @property
    def too_long(self) -> int:
        """Lines over the limit."""
        return self._splitter.too_long

    @property
    def bad(self) -> dict[str, int]:
        """Lines that gave no flow though they should, by reason."""
        found = {reason.value: count for reason, count in sorted(self.parser.counters.bad.items())}
        return found | ({Reason.TOO_LONG.value: self.too_long} if self.too_long else {})

    async def run(self) -> None:
        """Read for ever."""
        while True:
            if self.step():
                await asyncio.sleep(0)  # inference and the link have their turn between two pieces
                await self._flows.room()
            else:
                await self._clock.sleep(POLL_S)

    def step(self) -> bool:
        """Read a piece and hand it on; return whether there was one. Never raises for what the file holds or does."""
        piece = self.follower.read(READ_BYTES)
        now_s = self._clock.monotonic()
        if piece is not None:
            self._heard_s = now_s
            lines = self._begun() if piece.begins else []
            self._hand_on(lines + self._splitter.feed(piece.data))
        elif now_s - self._heard_s <= SETTLE_S + POLL_S:
            self._flows.advance()
        self._settle(now_s)
        return piece is not None

    def place(self) -> dict[str, Any] | None:
        """Return where reading stands now, as JSON values; None before a file was there."""
        position = self.follower.position
        if position is None:
            return None
        value = position.to_value()
        value["offset"] -= self._splitter.held_bytes
        return {
            "path": str(self.path),
            "position": value,
            "is_skipping": self._splitter.is_skipping,
            "parser": self.parser.state(),
        }

    def close(self) -> None:
        """Close the file."""
        self.follower.close()

    def _begun(self) -> list[bytes]:
        """Take note that a file begins; return the last line of the one before when it has no end."""
        rest = self._splitter.finish()
        self._hand_on(rest)
        self.parser.begin()
        if self.follower.began_inside:
            self.follower.began_inside = False
            self._splitter.skip()
            return [line for line in self.follower.head(_HEADER_BYTES).split(b"\n")[:-1] if line.startswith(b"#")]
        return []

    def _hand_on(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        records = self.parser.parse(lines, self._exporter)
        if len(records):
            self._flows.take_records(records)

    def _settle(self, now_s: float) -> None:
        """Move the place of which everything has been told."""
        # A writer whose record clock stands still, for seconds and thousands of flows, keeps a tick open for longer.
        if self._mark is None:
            place = self.place()
            self._mark = (place, now_s, None) if place is not None else None
            return
        place, since_s, queued = self._mark
        if queued is None and now_s - since_s >= SETTLE_S:
            queued = self._flows.queued_flows
            self._mark = (place, since_s, queued)
        if queued is not None and self._flows.finished_flows >= queued:
            self.settled, self._mark = place, None

    def _restored(self, stored: object) -> Position | None:
        """Return the position of a stored place of this file, its parser and lines made ready; None without one."""
        if not isinstance(stored, Mapping) or stored.get("path") != str(self.path):
            return None
        try:
            if set(stored) != _STORED or not isinstance(stored["parser"], Mapping):
                raise PositionError(f"it has {sorted(map(str, stored))[:6]}, expected {sorted(_STORED)}")
            position = Position.from_value(stored["position"])
            self.parser.restore(stored["parser"])
        except (PositionError, LogStateError) as exc:
            logger.warning("the stored position in %s is not used: %s", self.path, exc)
            self.parser.begin()
            return None
        if stored["is_skipping"] is True:
            self._splitter.skip()
        return position


class LogSources:
    """All log files of an appliance.

    Args:
        file: Where positions are kept.
        conditions: ``source-failed`` is held here while a file is not read.
        clock: Waits between two savings.
    """

    def __init__(self, file: Path, conditions: Conditions, clock: Clock) -> None:
        self._file = file
        self._conditions = conditions
        self._clock = clock
        self._stored = self._load()
        self._saved: bytes | None = None
        self.sources: list[LogSource] = []

    def stored(self, name: str) -> object:
        """Return what an earlier process settled of a source; None for nothing."""
        return self._stored.get(name)

    def tasks(self) -> Iterator[Any]:
        """Return what is to be run while the agent does."""
        if self.sources:
            yield from (source.run() for source in self.sources)
            yield self._keep()

    def save(self, *, is_all_told: bool) -> None:
        """Store the settled places, or where reading stopped once everything has been told."""
        places = {source.name: source.place() if is_all_told else source.settled for source in self.sources}
        moved = {name: place for name, place in places.items() if place is not None}
        data = json.dumps({"form": _FORM, "sources": {**self._stored, **moved}}, separators=(",", ":")).encode()
        if not moved or data == self._saved:
            return
        try:
            replace_file(self._file, data, 0o600)
        except (OSError, DiskFull) as exc:
            logger.warning("positions in log files are not saved: %s", exc)
            return
        self._saved = data

    def close(self) -> None:
        """Close all files."""
        for source in self.sources:
            source.close()

    def counters(self) -> dict[str, int]:
        """Return sums over all sources, by plain names, for telemetry windows and ``status``."""
        if not self.sources:
            return {}
        return {
            "log_records": sum(source.parser.counters.records for source in self.sources),
            "log_lines_bad": sum(sum(source.bad.values()) for source in self.sources),
            "log_gaps": sum(source.follower.counters.gaps for source in self.sources),
        }

    def report(self) -> list[dict[str, Any]]:
        """Return how each source stands, for ``status``."""
        return [
            {
                "source": source.name,
                "path": str(source.path),
                "lines": source.parser.counters.lines + source.too_long,
                "records": source.parser.counters.records,
                "bad": source.bad,
                "behind_bytes": source.follower.lag_bytes,
                "gaps": source.follower.counters.gaps,
                "problem": source.follower.problem.text if source.follower.problem else None,
            }
            for source in self.sources
        ]

    async def _keep(self) -> None:
        """Tell what is not read, and store positions, for ever."""
        saved_s = self._clock.monotonic()
        while True:
            await self._clock.sleep(POLL_S)
            self._tell()
            if self._clock.monotonic() - saved_s >= SAVE_EVERY_S:
                saved_s = self._clock.monotonic()
                self.save(is_all_told=False)

    def _tell(self) -> None:
        problems = [source.follower.problem for source in self.sources if source.follower.problem is not None]
        if not problems:
            self._conditions.clear("source-failed")
            return
        severity = Severity.WARNING if all(problem.is_waiting for problem in problems) else Severity.ERROR
        self._conditions.hold("source-failed", severity, "; ".join(problem.text for problem in problems))

    def _load(self) -> dict[str, Any]:
        try:
            document = json.loads(read_file(self._file, _MAX_FILE_BYTES))
            if document["form"] == _FORM and isinstance(document["sources"], dict):
                return dict(document["sources"])
            raise ValueError("it has another form")
        except FileNotFoundError:
            pass
        except (OSError, FileTooLarge, ValueError, KeyError, TypeError, RecursionError) as exc:
            logger.warning("stored positions in log files are not used: %s", exc)
        return {}


def families_log_sources(logs: LogSources) -> Iterator[Family]:
    """Return what ``/metrics`` says of the log files."""

    def each(name: str, kind: str, text: str, value: Callable[[LogSource], float]) -> Family:
        return Family(name, kind, text, [Sample(value(source), {"source": source.name}) for source in logs.sources])

    text = "Lines read of log files."
    lines = "vedette_agent_source_lines_total"
    yield each(lines, "counter", text, lambda source: source.parser.counters.lines + source.too_long)
    text = "Flow records in them."
    yield each("vedette_agent_source_records_total", "counter", text, lambda source: source.parser.counters.records)
    text = "Lines about something else than flows."
    yield each("vedette_agent_source_lines_other_total", "counter", text, lambda s: s.parser.counters.others)
    bad = [Sample(n, {"source": s.name, "reason": why}) for s in logs.sources for why, n in s.bad.items()]
    yield Family("vedette_agent_source_lines_bad_total", "counter", "Lines that could not be read.", bad)
    text = "Bytes read of log files."
    yield each("vedette_agent_source_read_bytes_total", "counter", text, lambda source: source.follower.counters.bytes)
    text = "Bytes written to the log file and not read yet."
    yield each("vedette_agent_source_behind_bytes", "gauge", text, lambda source: source.follower.lag_bytes)
    text = "Rotations of the log file seen."
    yield each("vedette_agent_source_rotations_total", "counter", text, lambda s: s.follower.counters.rotations)
    text = "Times the log file was cut under the agent."
    yield each("vedette_agent_source_truncations_total", "counter", text, lambda s: s.follower.counters.truncations)
    text = "Times lines may have been missed."
    yield each("vedette_agent_source_gaps_total", "counter", text, lambda source: source.follower.counters.gaps)
    text = "1 while the log file is not read."
    yield each("vedette_agent_source_failed", "gauge", text, lambda source: int(source.follower.problem is not None))
