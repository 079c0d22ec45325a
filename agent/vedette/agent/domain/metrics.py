"""Figures as Prometheus text.

Source: Prometheus exposition formats, text format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value with its labels; ``suffix`` is of a histogram's series."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: name, type (counter, gauge, histogram), help and its samples."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def render(families: Iterable[Family]) -> bytes:
    """Return the text of all families; one without samples is left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {_escape(family.help)}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{item.suffix}{_labels(item.labels)} {_number(item.value)}" for item in family.samples]
    return ("\n".join(lines) + "\n").encode()


def single(name: str, kind: str, text: str, value: float) -> Family:
    """Return a family of one sample without labels."""
    return Family(name, kind, text, (Sample(value),))


def histogram(
    name: str,
    text: str,
    upper_edges: Sequence[float],
    series: Mapping[str, Sequence[int]],
    sums: Mapping[str, float],
) -> Family:
    """Return a histogram with one series a slot.

    Args:
        name: Of the family.
        text: Its help.
        upper_edges: Of the bins, ascending, shape (bins,).
        series: Counts by slot, shape (bins + 1,); the last is above every edge.
        sums: Of all observed values, by slot.
    """
    samples: list[Sample] = []
    for slot, counts in series.items():
        total = 0
        for edge, count in zip([*map(_number, upper_edges), "+Inf"], counts, strict=True):
            total += count
            samples.append(Sample(total, {"slot": slot, "le": edge}, "_bucket"))
        samples.append(Sample(sums[slot], {"slot": slot}, "_sum"))
        samples.append(Sample(total, {"slot": slot}, "_count"))
    return Family(name, "histogram", text, samples)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    quoted = ",".join(f'{name}="{_escape(value, quote=True)}"' for name, value in labels.items())
    return f"{{{quoted}}}"


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
