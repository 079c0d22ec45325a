"""Canonical JSON and digests: one value has one form in bytes, so that signatures and digests are of content.

The canonical form is UTF-8 JSON with keys in code point order, no white space, no NaN or infinity. Numbers are written
as Python's ``repr`` writes them (shortest text that reads back the same). A reader accepts only bytes that are
their own canonical form, so one document cannot have two digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from vedette.models.errors import ModelsError

MAX_DOCUMENT_BYTES = 1024 * 1024
"""Of one document; a release with 75 features described takes about 20 kB."""

_MOST_KEY = 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
T = TypeVar("T")


class DocumentError(ModelsError):
    """A document is not what its kind must be; whoever made it must mend it."""


def canonical_json(value: Any) -> bytes:
    """Return the one form in bytes of a JSON value.

    Raises:
        DocumentError: The value holds something JSON has no form for, NaN and infinity included.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise DocumentError(f"no canonical JSON form: {exc}") from exc


def parse_json(data: bytes, what: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Any:
    """Return the value of canonical JSON bytes.

    Args:
        data: The document.
        what: Its kind, for the message.
        limit: The most bytes it may have.

    Raises:
        DocumentError: Too large, not JSON, or not in canonical form.
    """
    if len(data) > limit:
        raise DocumentError(f"{what} is {len(data)} bytes, limit {limit}")
    try:
        value = json.loads(data)
        if canonical_json(value) != data:
            raise DocumentError(f"{what} is JSON but not in canonical form (sorted keys, no white space)")
    except (ValueError, RecursionError) as exc:
        raise DocumentError(f"{what} is not JSON: {exc}") from exc
    return value


def digest_of(data: bytes) -> str:
    """Return the digest of bytes in the form ``sha256:<64 hexadecimal digits>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(text: str) -> str:
    """Return a digest's text unchanged when it has the form of one.

    Raises:
        DocumentError: It has not.
    """
    if not _DIGEST.fullmatch(text):
        raise DocumentError(f"{text[:80]!r} is no digest; one is sha256: and 64 hexadecimal digits")
    return text


def time_text(at: datetime) -> str:
    """Return an aware time as ISO 8601 in UTC with microseconds and Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Fields:
    """Reads a parsed document field by field and says exactly what is wrong with it."""

    def __init__(self, value: Any, where: str, known: Sequence[str]) -> None:
        if not isinstance(value, dict):
            raise DocumentError(f"{where} is a {type(value).__name__}, not an object")
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise DocumentError(f"{where} has unknown fields {', '.join(str(name)[:40] for name in unknown[:5])}")
        self._value = value
        self._where = where

    def get(self, name: str, kind: type[T]) -> T:
        """Return a field of an exact type (a whole number also serves as float).

        Raises:
            DocumentError: The field is absent or of another type.
        """
        if name not in self._value:
            raise DocumentError(f"{self._where}.{name} is absent")
        item: Any = self._value[name]
        if kind is float and type(item) is int:
            try:
                item = float(item)
            except OverflowError as exc:
                raise DocumentError(f"{self._where}.{name} is a whole number beyond all floats") from exc
        if type(item) is not kind:
            raise DocumentError(f"{self._where}.{name} is a {type(item).__name__}, not a {kind.__name__}")
        return item

    def has(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self._value.get(name) is not None

    def text(self, name: str, *, most: int = 128) -> str:
        """Return a text of 1 to ``most`` characters."""
        item = self.get(name, str)
        if not 1 <= len(item) <= most:
            raise DocumentError(f"{self._where}.{name} is {len(item)} characters, limits 1 and {most}")
        return item

    def whole(self, name: str, *, least: int = 0, most: int = 2**53) -> int:
        """Return a whole number within limits."""
        item = self.get(name, int)
        if not least <= item <= most:
            raise DocumentError(f"{self._where}.{name} is {str(item)[:40]}, limits {least} and {most}")
        return item

    def digest(self, name: str) -> str:
        """Return a digest."""
        return check_digest(self.get(name, str))

    def time(self, name: str) -> datetime:
        """Return an aware UTC time."""
        item = self.text(name)
        try:
            at = datetime.fromisoformat(item)
            written = time_text(at)  # fails for what no zone but its own has in the years 1 to 9999
        except (ValueError, OverflowError) as exc:
            raise DocumentError(f"{self._where}.{name} is {item!r}, not an ISO 8601 time") from exc
        if written != item:
            raise DocumentError(f"{self._where}.{name} is {item!r}, not UTC with microseconds and Z")
        return at

    def items(self, name: str, *, most: int) -> list[Any]:
        """Return a list of at most ``most`` entries."""
        item: list[Any] = self.get(name, list)
        if len(item) > most:
            raise DocumentError(f"{self._where}.{name} has {len(item)} entries, limit {most}")
        return item

    def mapping(self, name: str, kind: type[T], *, most: int) -> dict[str, T]:
        """Return a map of at most ``most`` entries of one type."""
        item = self.get(name, dict)
        if len(item) > most:
            raise DocumentError(f"{self._where}.{name} has {len(item)} entries, limit {most}")
        inner = Fields(item, f"{self._where}.{name}", list(item))
        for key in item:
            if len(key) > _MOST_KEY:
                raise DocumentError(f"{self._where}.{name} has a name of {len(key)} characters, limit {_MOST_KEY}")
        return {key: inner.get(key, kind) for key in item}


def texts(items: list[Any], where: str, *, most: int = 128) -> tuple[str, ...]:
    """Return a list's entries when each is a text of at most ``most`` characters.

    Raises:
        DocumentError: One is not.
    """
    for index, item in enumerate(items):
        if not isinstance(item, str) or not 1 <= len(item) <= most:
            told = repr(item[:80]) if isinstance(item, str) else f"a {type(item).__name__}"
            raise DocumentError(f"{where}[{index}] is {told}, not a text of 1 to {most} characters")
    return tuple(items)


def plain(mapping: Mapping[str, T]) -> dict[str, T]:
    """Return a mapping as a plain dict, for canonical JSON."""
    return dict(mapping)
