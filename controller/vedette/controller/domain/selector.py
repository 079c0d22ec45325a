"""Selectors: which agents someone means, by their labels and by what they are.

Form: terms joined by commas, all of which must hold. ``site=s1``, ``site!=s1``, ``site in (a, b)``,
``site notin (a, b)``, ``lab`` (has it), ``!lab`` (has it not). Empty selects everyone. Besides labels, the names in
:data:`BUILT_IN` may be asked for; labels may not use them. ``!=`` and ``notin`` also hold where the key is absent.

Source of the form: Kubernetes label selectors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vedette.controller.domain.errors import InvalidInput
from vedette.wire.values import Facts

BUILT_IN = ("name", "architecture", "os")
MAX_SELECTOR_CHARACTERS = 4096
MAX_LABELS = 64

_KEY = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_TERM = re.compile(
    rf"\s*(?:(?P<not>!)\s*(?P<absent>{_KEY})"
    rf"|(?P<set_key>{_KEY})\s+(?P<set_operator>in|notin)\s*\((?P<members>[^()]*)\)"
    rf"|(?P<key>{_KEY})\s*(?P<operator>!=|==|=)\s*(?P<value>{_VALUE})?"
    rf"|(?P<present>{_KEY}))\s*(?:,|$)"
)
_HELP = "write terms such as site=s1, site in (a,b), !lab; empty is everyone"


@dataclass(frozen=True, slots=True)
class _Term:
    key: str
    values: frozenset[str] | None  # None: any value
    is_wanted: bool

    def matches(self, attributes: Mapping[str, str]) -> bool:
        has = self.key in attributes and (self.values is None or attributes[self.key] in self.values)
        return has == self.is_wanted


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector; ``text`` is as it was written."""

    text: str
    _terms: tuple[_Term, ...]

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Return the selector of a text.

        Raises:
            InvalidInput: The text is too long or has no such form; the message quotes where it goes wrong.
        """
        if len(text) > MAX_SELECTOR_CHARACTERS:
            why = f"it has {len(text)} characters, limit {MAX_SELECTOR_CHARACTERS}"
            raise InvalidInput("selector-invalid", "the selector is too long", why)
        terms, at = [], 0
        while text[at:].strip():
            match = _TERM.match(text, at)
            if match is None:
                why = f"{text[at : at + 60].strip()!r} at character {at + 1} is no term"
                raise InvalidInput("selector-invalid", "the selector cannot be read", why, _HELP)
            terms.append(_term(match))
            at = match.end()
        return cls(text.strip(), tuple(terms))

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Return whether every term holds; ``attributes`` as :func:`attributes_of` gives them."""
        return all(term.matches(attributes) for term in self._terms)


def _term(match: re.Match[str]) -> _Term:
    if match["absent"]:
        return _Term(match["absent"], None, is_wanted=False)
    if match["present"]:
        return _Term(match["present"], None, is_wanted=True)
    if match["set_key"]:
        members = frozenset(part.strip() for part in match["members"].split(","))
        return _Term(match["set_key"], members, is_wanted=match["set_operator"] == "in")
    return _Term(match["key"], frozenset([match["value"] or ""]), is_wanted=match["operator"] != "!=")


def attributes_of(name: str, labels: Mapping[str, str], facts: Facts) -> dict[str, str]:
    """Return all that a selector can ask of an agent."""
    return {**labels, "name": name, "architecture": facts.architecture, "os": facts.os}


def check_labels(labels: Mapping[str, str]) -> None:
    """Check that labels may be set on an agent.

    Raises:
        InvalidInput: A key or value has a form that no selector could name, is taken, or there are too many.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidInput("label-invalid", "too many labels", f"{len(labels)} labels, limit {MAX_LABELS}")
    for key, value in labels.items():
        if key in BUILT_IN:
            remedy = f"choose another key than {', '.join(BUILT_IN)}"
            raise InvalidInput("label-invalid", f"{key!r} cannot be a label", "every agent already has it", remedy)
        if not re.fullmatch(_KEY, key) or not re.fullmatch(f"(?:{_VALUE})?", value):
            why = "key and value have at most 63 characters, letters and digits at the ends, . _ - inside (/ in a key)"
            raise InvalidInput("label-invalid", f"{key[:80]!r}={value[:80]!r} cannot be a label", why)
