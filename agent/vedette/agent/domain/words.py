"""Times, sizes and counts as people read them: relative, with a unit and three figures."""

from __future__ import annotations

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))
_SIZES = ("B", "kB", "MB", "GB", "TB")
_NOW_S = 5.0
_KILO = 1000.0


def span(seconds: float) -> str:
    """Return a length of time: ``14 min``."""
    for unit_s, name in _UNITS:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {name}"
    return f"{int(seconds)} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def ago(seconds: float) -> str:
    """Return how long ago something was: ``14 min ago``, ``now``."""
    return "now" if seconds < _NOW_S else f"{span(seconds)} ago"


def size(count: float) -> str:
    """Return bytes: ``61.2 MB``."""
    for name in _SIZES[:-1]:
        if round(count) < _KILO:
            return f"{count:.3g} {name}"
        count /= _KILO
    return f"{count:,.0f} {_SIZES[-1]}" if count >= _KILO else f"{count:.3g} {_SIZES[-1]}"


def milliseconds(value: float) -> str:
    """Return milliseconds: ``0.91 ms``."""
    return f"{value:.3g} ms" if round(value) < _KILO else f"{value:,.0f} ms"


def plural(count: int, one: str, several: str = "") -> str:
    """Return a count with its noun: ``1 packet``, ``1,204 packets``."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
