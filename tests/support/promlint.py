"""The rules of ``promtool check metrics``, and that series are unique and few: what a page of ours must keep.

Source: prometheus/client_golang, prometheus/testutil/promlint/validations; Prometheus, Metric and label naming.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_SERIES = 200
"""Of one family on an appliance with a handful of slots and exporters."""

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\[\\n"])*)"(?:,|$)')
_KINDS = ("counter", "gauge", "histogram", "summary", "untyped")
_OTHER_UNITS = re.compile(
    r"(?:^|_)(?:milliseconds|microseconds|nanoseconds|minutes|hours|days|weeks|bits|kilobytes|megabytes|percent|"
    r"s|ms|us|ns|sec|b|kb|mb|gb|pct|kib|mib)(?:_|$)"
)
_OWN_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}


@dataclass
class Metric:
    """A family as it stands on a page."""

    name: str
    kind: str = ""
    help: str = ""
    series: list[tuple[str, tuple[tuple[str, str], ...], float]] = field(default_factory=list)  # name, labels, value


def parse(text: str) -> dict[str, Metric]:
    """Return the families of a page by name.

    Raises:
        AssertionError: A line is none of the format, or a sample belongs to no family.
    """
    found: dict[str, Metric] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            metric = found.setdefault(name, Metric(name))
            assert not metric.series, f"{name} is described after its samples"
            assert word in ("HELP", "TYPE"), line
            setattr(metric, {"HELP": "help", "TYPE": "kind"}[word], rest)
            continue
        match = _SAMPLE.match(line)
        assert match, f"not a sample: {line!r}"
        labels = tuple(_LABEL.findall(match[2] or ""))
        assert ",".join(f'{key}="{value}"' for key, value in labels) == (match[2] or ""), line
        _family(found, match[1]).series.append((match[1], labels, float(match[3])))
    return found


def _family(found: dict[str, Metric], series: str) -> Metric:
    for metric in found.values():
        if series in (metric.name, *(metric.name + suffix for suffix in _OWN_SUFFIXES.get(metric.kind, ()))):
            return metric
    raise AssertionError(f"{series} belongs to no family")


def problems(text: str) -> list[str]:
    """Return what promtool would complain of, and series that are double or too many."""
    return [f"{metric.name}: {found}" for metric in parse(text).values() for found in _faults(metric)]


def _faults(metric: Metric) -> Iterator[str]:
    name, kind = metric.name, metric.kind
    if not metric.help:
        yield "no help text"
    if kind not in _KINDS:
        yield f"type {kind!r}"
    if (kind == "counter") != name.endswith("_total"):
        yield "counters, and nothing else, end in _total"
    if re.search(r"[A-Z:]", name):
        yield "upper case or a colon"
    if _OTHER_UNITS.search(name):
        yield "not a base unit"
    if re.search(r"(?:^|_)(?:counter|gauge|histogram|summary)(?:_|$)", name):
        yield "its type in its name"
    if kind not in _OWN_SUFFIXES and name.endswith(("_bucket", "_count", "_sum")):
        yield "an ending of histograms"
    yield from _series_faults(metric)


def _series_faults(metric: Metric) -> Iterator[str]:
    twice = [key for key, count in Counter((name, labels) for name, labels, _ in metric.series).items() if count > 1]
    if twice:
        yield f"the same series twice: {twice[0]}"
    if len(metric.series) > MOST_SERIES:
        yield f"{len(metric.series)} series, limit {MOST_SERIES}"
    if metric.kind == "histogram":
        yield from _histogram_faults(metric)
    elif any(key == "le" for _, labels, _ in metric.series for key, _ in labels):
        yield "label le is for histograms"


def _histogram_faults(metric: Metric) -> Iterator[str]:
    by_labels: dict[tuple[tuple[str, str], ...], dict[str, list[tuple[str, float]]]] = {}
    for name, labels, value in metric.series:
        rest = tuple(pair for pair in labels if pair[0] != "le")
        edge = dict(labels).get("le", "")
        by_labels.setdefault(rest, {}).setdefault(name.removeprefix(metric.name), []).append((edge, value))
    for labels, parts in by_labels.items():
        if missing := {"_bucket", "_sum", "_count"} - set(parts):
            yield f"{dict(labels)} has no {', '.join(sorted(missing))}"
            continue
        counts = [value for _, value in parts["_bucket"]]
        if parts["_bucket"][-1][0] != "+Inf" or counts != sorted(counts) or counts[-1] != parts["_count"][0][1]:
            yield f"the buckets of {dict(labels)} do not add up to its count"
