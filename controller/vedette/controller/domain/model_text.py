"""What the gate asks of operators on strings: those whose attributes the runtime trusts more than it should.

Measured with onnxruntime 1.32: a ``TfIdfVectorizer`` with fewer ``ngram_indexes`` than n-grams ends the process at
load; one index of 2^31 makes it write 17 GB a run for 73 s; a ``max_skip_count`` of 2^40 does not return. A
``StringNormalizer`` that changes case does not load where the locale it names is not installed, and by default it names
``en_US.UTF-8``, which a Debian appliance need not have. Regular expressions are RE2's, which takes time in proportion
to the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from vedette.controller.domain.model_trees import NodeFault

TEXT_OPERATORS = ("RegexFullMatch", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Tokenizer")
PLAIN_LOCALES = ("C", "C.UTF-8", "C.utf8", "POSIX")
"""Locales that every Debian host has."""

PLAIN_LOCALE = "C.UTF-8"

_MOST_SKIPS = 16
_MOST_TERMS = 1 << 20  # places of the vector that a text becomes
_MOST_PATTERN = 1_024  # characters
_MOST_PATTERNS = 64


def check_text(operator: str, attributes: Mapping[str, Any]) -> None:
    """Judge one node of :data:`TEXT_OPERATORS`.

    Raises:
        NodeFault: Its attributes contradict each other or go beyond the limits.
    """
    if operator == "TfIdfVectorizer":
        _check_terms(attributes)
    elif operator == "StringNormalizer":
        _check_locale(attributes)
    else:
        _check_patterns(attributes)


def needs_plain_locale(attributes: Mapping[str, Any]) -> bool:
    """Return whether a StringNormalizer names English, or nothing, where the plain locale does the same everywhere."""
    return _locale(attributes) not in PLAIN_LOCALES


def _locale(attributes: Mapping[str, Any]) -> str:
    return attributes["locale"].s.decode("utf-8", "replace") if "locale" in attributes else "en_US.UTF-8"


def _check_locale(attributes: Mapping[str, Any]) -> None:
    locale = _locale(attributes)
    if locale not in PLAIN_LOCALES and not locale.startswith("en"):
        text = f"locale is {locale[:40]!r}, which an appliance need not have; save it with locale {PLAIN_LOCALE!r}"
        raise NodeFault("text-locale", text)


def _check_patterns(attributes: Mapping[str, Any]) -> None:
    for name in ("separators", "tokenexp", "pattern", "delimiter"):
        if name not in attributes:
            continue
        patterns = list(attributes[name].strings) or [attributes[name].s]
        longest = max(len(pattern) for pattern in patterns)
        if len(patterns) > _MOST_PATTERNS or longest > _MOST_PATTERN:
            text = f"{name} has {len(patterns)} of up to {longest} bytes, limit {_MOST_PATTERNS} of {_MOST_PATTERN}"
            raise NodeFault("text-pattern", text)


def _check_terms(attributes: Mapping[str, Any]) -> None:
    pools = [pool for pool in (_texts(attributes, "pool_strings"), _whole(attributes, "pool_int64s")) if pool]
    counts, places = _whole(attributes, "ngram_counts"), _whole(attributes, "ngram_indexes")
    least, most = (_number(attributes, f"{which}_gram_length") for which in ("min", "max"))
    skips = _number(attributes, "max_skip_count")
    if len(pools) != 1 or not 1 <= least <= most <= len(counts):
        sizes = f"{len(pools)} pools, grams of {least} to {most}, {len(counts)} ngram_counts"
        raise NodeFault("text-terms", f"it has {sizes}; needed are one pool and a count for each length")
    if not 0 <= skips <= _MOST_SKIPS:
        raise NodeFault("text-terms", f"max_skip_count is {skips}, allowed 0 to {_MOST_SKIPS}")
    terms = _terms(counts, len(pools[0]))
    weights = len(attributes["weights"].floats) if "weights" in attributes else 0
    if len(places) != terms or weights not in (0, terms):
        text = f"its pool holds {terms} terms, with {len(places)} ngram_indexes and {weights} weights"
        raise NodeFault("text-terms", text)
    if min(places, default=0) < 0 or max(places, default=0) >= _MOST_TERMS:
        raise NodeFault("text-terms", f"ngram_indexes go to {max(places)}, allowed 0 to {_MOST_TERMS - 1}")


def _terms(counts: Sequence[int], pool: int) -> int:
    """Return how many terms a pool holds: from ``counts[n - 1]`` on lie those of n words, one after the other."""
    ends = [*counts, pool]
    if counts[0] != 0 or any(not after - at >= 0 for at, after in pairwise(ends)):
        raise NodeFault(
            "text-terms", f"ngram_counts are {list(counts)[:8]} for a pool of {pool}, expected 0 and rising"
        )
    found = 0
    for length, (at, after) in enumerate(pairwise(ends), start=1):
        if (after - at) % length:
            raise NodeFault("text-terms", f"{after - at} words are no whole number of terms of {length}")
        found += (after - at) // length
    return found


def _texts(attributes: Mapping[str, Any], name: str) -> list[bytes]:
    return list(attributes[name].strings) if name in attributes else []


def _whole(attributes: Mapping[str, Any], name: str) -> list[int]:
    return list(attributes[name].ints) if name in attributes else []


def _number(attributes: Mapping[str, Any], name: str) -> int:
    return int(attributes[name].i) if name in attributes else -1
