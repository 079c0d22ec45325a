"""Label windows: who did what, between which ends, from when to when; and which flows they claim.

The rule, that of the labelled captures this project ships: a flow belongs to a window when one end is ``source``, the
other end is among ``destinations`` (any when there are none), one port is ``port`` (when set) and the flow overlaps the
window, a second of slack on either side. Where windows overlap the most specific wins: one with a port, then one with
destinations, then the shortest, then the one that stands first. What no window claims is benign.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.controller.domain.errors import InvalidInput
from vedette.models.flows.records import FlowRecords, address_halves

BENIGN = "benign"
SLACK_MS = 1_000
MAX_LABEL_FILE_BYTES = 4 << 20
MAX_WINDOWS = 10_000
"""Of one dataset, all its label files together."""
MAX_DESTINATIONS = 256
_LATEST_S = 32_503_680_000  # the year 3000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Rows = npt.NDArray[np.int64]


class LabelFileError(InvalidInput):
    """A file of label windows is not what it must be."""

    def __init__(self, why: str) -> None:
        remedy = (
            'a label file is {"labels": [{"label", "src", "dst", "dport", "start", "end"}, …]}, times in Unix seconds'
        )
        super().__init__("bad-labels", "the label file is refused", why, remedy)


@dataclass(frozen=True, slots=True)
class LabelWindow:
    """One labelled activity. Addresses as text in their usual form; no destinations: any; times in Unix ms."""

    label: str
    source: str
    destinations: tuple[str, ...]
    port: int | None
    start_ms: int
    end_ms: int

    @property
    def specificity(self) -> tuple[bool, bool, int]:
        """Greater is more specific."""
        return self.port is not None, bool(self.destinations), self.start_ms - self.end_ms

    def to_value(self) -> dict[str, Any]:
        """Return the window as JSON values, for a manifest."""
        return {
            "label": self.label,
            "source": self.source,
            "destinations": list(self.destinations),
            "port": self.port,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> LabelWindow:
        """Return the window of :meth:`to_value`'s form, as our own stores keep it."""
        destinations = tuple(value["destinations"])
        return cls(
            value["label"], value["source"], destinations, value["port"], value["start_ms"], value["end_ms"]
        )  # fmt: skip


def parse_label_file(data: bytes) -> tuple[LabelWindow, ...]:
    """Return the windows of a label file, in its order.

    Raises:
        LabelFileError: Too large, not JSON of the form, or a window that cannot be; names window, value and limit.
    """
    if len(data) > MAX_LABEL_FILE_BYTES:
        raise LabelFileError(f"it is {len(data)} bytes, limit {MAX_LABEL_FILE_BYTES}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise LabelFileError(f"it is not JSON: {exc}") from exc
    items = document.get("labels") if isinstance(document, dict) else None
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_WINDOWS:
        found = f"{len(items)} of them" if isinstance(items, list) else type(items).__name__
        raise LabelFileError(f'"labels" must be a list of 1 to {MAX_WINDOWS} windows, found {found}')
    return tuple(_window(item, f"labels[{place}]") for place, item in enumerate(items))


def _window(item: Any, where: str) -> LabelWindow:
    if not isinstance(item, dict):
        raise LabelFileError(f"{where} is a {type(item).__name__}, not an object")
    unknown = sorted(set(item) - {"label", "src", "dst", "dport", "start", "end"})
    if unknown:
        raise LabelFileError(f"{where} has unknown members {', '.join(map(_shown, unknown[:5]))[:200]}")
    label = item.get("label")
    if not isinstance(label, str) or not _NAME.fullmatch(label):
        raise LabelFileError(f"{where}.label is {_told(label)!r}, not 1 to 64 of A-Z a-z 0-9 _ . -")
    if label == BENIGN:
        raise LabelFileError(f"{where}.label is {BENIGN!r}: that is what no window claims")
    start, end = _time_ms(item.get("start"), f"{where}.start"), _time_ms(item.get("end"), f"{where}.end")
    if end < start:
        raise LabelFileError(f"{where} ends at {end} ms, before it starts at {start} ms")
    source = _address(item.get("src"), f"{where}.src")
    return LabelWindow(
        label, source, _destinations(item.get("dst"), where), _port(item.get("dport"), where), start, end
    )


def _told(value: Any) -> str:
    """Return a wrong value as an error may hold it; lists in lists without end are not gone into."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else str(value)[:80]


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _time_ms(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 - NaN
        raise LabelFileError(f"{where} is {_told(value)!r}, not a number of Unix seconds")
    if not 0 <= value <= _LATEST_S:
        raise LabelFileError(f"{where} is {str(value)[:40]}, allowed 0 to {_LATEST_S} Unix seconds")
    return round(value * 1_000)


def _address(value: Any, where: str) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError(f"a {type(value).__name__}")  # noqa: TRY004  one message for all that is no address
        return str(ipaddress.ip_address(value))
    except ValueError as exc:
        raise LabelFileError(f"{where} is {_told(value)!r}, not an IPv4 or IPv6 address") from exc


def _destinations(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    if not 1 <= len(items) <= MAX_DESTINATIONS:
        raise LabelFileError(
            f"{where}.dst has {len(items)} addresses, allowed 1 to {MAX_DESTINATIONS}, or null for any"
        )
    return tuple(sorted({_address(item, f"{where}.dst") for item in items}))


def _port(value: Any, where: str) -> int | None:
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65_535:
        raise LabelFileError(f"{where}.dport is {_told(value)!r}, allowed 1 to 65535, or null for any")
    return value


def merge(files: Iterable[Sequence[LabelWindow]]) -> tuple[LabelWindow, ...]:
    """Return the windows of several files in order, each once.

    Raises:
        LabelFileError: There are more than :data:`MAX_WINDOWS`.
    """
    merged = tuple(dict.fromkeys(window for file in files for window in file))
    if len(merged) > MAX_WINDOWS:
        raise LabelFileError(f"the dataset would have {len(merged)} label windows, limit {MAX_WINDOWS}")
    return merged


def claim(records: FlowRecords, windows: Sequence[LabelWindow]) -> Rows:
    """Return which window each flow belongs to.

    Args:
        records: Flows or biflows, shape (rows,).
        windows: In the order that breaks ties.

    Returns:
        Index into ``windows``, -1 for benign, shape (rows,).
    """
    claimed = np.full(len(records), -1, np.int64)
    if not len(records):
        return claimed
    by_start = np.argsort(records["start_ms"], kind="stable")
    starts = records["start_ms"][by_start]
    longest = int((records["end_ms"] - records["start_ms"]).max())
    # the least specific first: a more specific one overwrites what it claims too
    for place in sorted(range(len(windows)), key=lambda p: (windows[p].specificity, -p)):
        window = windows[place]
        low = np.searchsorted(starts, window.start_ms - SLACK_MS - longest, "left")
        high = np.searchsorted(starts, window.end_ms + SLACK_MS, "right")
        near = by_start[low:high]
        claimed[near[_matches(records[near], window)]] = place
    return claimed


def _matches(records: FlowRecords, window: LabelWindow) -> npt.NDArray[np.bool_]:
    from_source = _is_end(records, "src", (window.source,))
    to_source = _is_end(records, "dst", (window.source,))
    found = (from_source | to_source) & (records["end_ms"] >= window.start_ms - SLACK_MS)
    if window.destinations:
        other = np.where(
            from_source,
            _is_end(records, "dst", window.destinations),
            _is_end(records, "src", window.destinations),
        )
        found &= other
    if window.port is not None:
        found &= (records["src_port"] == window.port) | (records["dst_port"] == window.port)
    return np.asarray(found, np.bool_)


def _is_end(records: FlowRecords, end: str, addresses: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return where one end of a flow is one of some addresses."""
    halves = np.array([address_halves(text) for text in addresses], np.uint64)
    high, low = records[f"{end}_hi"], records[f"{end}_lo"]
    is_one = np.zeros(len(records), np.bool_)
    for wanted_high, wanted_low in halves:
        is_one |= (high == wanted_high) & (low == wanted_low)
    return is_one


def count_by_label(claimed: Rows, windows: Sequence[LabelWindow]) -> dict[str, int]:
    """Return rows by label, benign included when there are any, in order of the names."""
    counts: dict[str, int] = {}
    for place, count in zip(*np.unique(claimed, return_counts=True), strict=True):
        name = BENIGN if place < 0 else windows[place].label
        counts[name] = counts.get(name, 0) + int(count)
    return dict(sorted(counts.items()))
