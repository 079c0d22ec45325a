"""How numbers, times and labels are read and written for people."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime

from vedette.controller.cli.problems import Usage

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?P<count>[0-9]{1,9})(?P<unit>[smhdw]?)", re.ASCII)
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def seconds(text: str, what: str) -> int:
    """Return the seconds of ``30s``, ``10m``, ``24h``, ``7d``, ``2w`` or a bare number of seconds.

    Raises:
        Usage: The text has no such form; ``what`` names the option.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise Usage(f"{what} {text!r} is not a time", "a whole number and s, m, h, d or w", f"example: {what} 10m")
    return int(match["count"]) * _SECONDS[match["unit"]]


def pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """Return the map of texts such as ``k=v``.

    Raises:
        Usage: One has no ``=``, no key, or a key comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise Usage(f"{what} {text!r} is not KEY=VALUE", "", f"example: {what} site=paris")
        if key.strip() in found:
            raise Usage(f"{what} {key.strip()} is given twice", f"{found[key.strip()]!r} and {value.strip()!r}")
        found[key.strip()] = value.strip()
    return found


def clean(text: str) -> str:
    """Return a text that cannot move the cursor or colour the terminal: what an appliance wrote may try to."""
    return "".join(" " if c in "\t\n" else "�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)


def ago(at: datetime | None, now: datetime) -> str:
    """Return how long ago it was: ``now``, ``4 min ago``, ``in 20 s``."""
    if at is None:
        return "never"
    span = (now - at).total_seconds()
    if abs(span) < 10:
        return "now"
    return f"{_span(span)} ago" if span > 0 else f"in {_span(-span)}"


def span(length_s: float) -> str:
    """Return a length of time in its largest unit, rounded: ``8 s``, ``3 min``, ``2 h``, ``5 days``."""
    return _span(max(0.0, length_s))


def _span(length_s: float) -> str:
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if length_s < limit:
            return f"{length_s / size:.0f} {unit}"
    return f"{length_s / 86400:.0f} days"


def when(at: datetime | None) -> str:
    """Return a time in the reader's zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if at else "–"


def utc(at: datetime) -> str:
    """Return a time as JSON has it: UTC, ISO 8601."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(count: float) -> str:
    """Return bytes with a unit and three figures: ``19.5 MB``."""
    step = 0
    while count >= 999.5 and step < len(_UNITS) - 1:
        count /= 1000
        step += 1
    return f"{three(count)} {_UNITS[step]}"


def three(value: float) -> str:
    """Return a number with three figures, thousands apart: ``0.0312``, ``12.4``, ``1,204``, ``1.23e-07``."""
    if value == 0:
        return "0"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def share(value: float) -> str:
    """Return a share as a percentage."""
    return f"{three(100 * value)} %"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 agent``, ``3 agents``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
