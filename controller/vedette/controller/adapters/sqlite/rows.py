"""How values lie in columns: times as ISO 8601 UTC text, maps as JSON, messages as the bytes of their wire form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from vedette.models.documents import time_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_column(at: datetime | None) -> str | None:
    """Return a time as text that sorts as the times do."""
    return time_text(at) if at else None


def time_of(text: str | None) -> datetime | None:
    """Return the time of a column that may be NULL."""
    return datetime.fromisoformat(text) if text else None


def microseconds(at: datetime) -> int:
    """Return microseconds since 1970, exactly."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def time_at(count: int) -> datetime:
    """Return the time of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=count)


def json_column(items: Mapping[str, Any]) -> str:
    """Return a map as JSON text."""
    return json.dumps(dict(items), sort_keys=True, separators=(",", ":"))


_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


def digests_in(text: str | bytes) -> set[str]:
    """Return every SHA-256 digest that a stored document mentions, wherever in it."""
    raw = text.encode() if isinstance(text, str) else bytes(text)
    return {found.decode() for found in _DIGEST.findall(raw)}
