"""Claims about the names on ``/metrics``: that the page of the docs lists all of them, and the linter's own rules."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

import vedette.agent.app
from tests.support.promlint import problems
from vedette.agent.adapters.telling.figures import COUNTERS
from vedette.agent.adapters.telling.process_figures import families_process
from vedette.agent.domain.metrics import histogram, render

_DOCS = Path(__file__).parents[3] / "docs/metrics.md"
_NAME = re.compile(r'"((?:vedette_agent|process)_[a-z0-9_]+)"')


def _named_in_the_code() -> set[str]:
    root = Path(vedette.agent.app.__file__).parent
    sources = [source for source in root.rglob("*.py") if source.name != "seccomp.py"]  # names system calls
    literal = {name for source in sources for name in _NAME.findall(source.read_text())}
    return literal | {f"vedette_agent_{name}_total" for name in COUNTERS}


def test_the_page_of_the_docs_lists_every_figure_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", _DOCS.read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert sorted(set(listed) ^ _named_in_the_code()) == []


def test_the_process_figures_are_those_of_this_process() -> None:
    page = render(families_process()).decode()
    values = dict(line.split() for line in page.splitlines() if not line.startswith("#"))
    assert problems(page) == []
    assert int(values["process_resident_memory_bytes"]) < int(values["process_virtual_memory_bytes"])
    assert 0 < int(values["process_open_fds"]) < int(values["process_max_fds"])
    # btime has whole seconds, and the process began before this test
    age_s = time.time() - float(values["process_start_time_seconds"])
    assert -1.0 <= age_s < 24 * 3600
    assert float(values["process_cpu_seconds_total"]) == pytest.approx(sum(os.times()[:2]), abs=0.5)


def test_a_histogram_has_its_sum_and_adds_up() -> None:
    page = render([histogram("a_seconds", "A.", [0.1, 1.0], {"s": [1, 2, 3]}, {"s": 4.5})]).decode()
    assert 'a_seconds_sum{slot="s"} 4.5' in page.splitlines()
    assert problems(page) == []


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("# HELP a A.\n# TYPE a counter\na 1", "end in _total"),
        ("# HELP a_total A.\n# TYPE a_total gauge\na_total 1", "end in _total"),
        ("# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1", "base unit"),
        ("# HELP a_milliseconds A.\n# TYPE a_milliseconds gauge\na_milliseconds 1", "base unit"),
        ("# TYPE a gauge\na 1", "no help"),
        ("# HELP a A.\na 1", "type"),
        ("# HELP a_gauge A.\n# TYPE a_gauge gauge\na_gauge 1", "type in its name"),
        ("# HELP aB A.\n# TYPE aB gauge\naB 1", "upper case"),
        ("# HELP a_count A.\n# TYPE a_count gauge\na_count 1", "ending of histograms"),
        ('# HELP a A.\n# TYPE a gauge\na{x="1"} 1\na{x="1"} 2', "twice"),
        ('# HELP a A.\n# TYPE a gauge\na{le="1"} 1', "label le"),
        ('# HELP a A.\n# TYPE a histogram\na_bucket{le="+Inf"} 1\na_count 1', "has no _sum"),
        ('# HELP a A.\n# TYPE a histogram\na_bucket{le="1"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1', "add up"),
        ("# HELP a A.\n# TYPE a gauge\n" + "\n".join(f'a{{x="{n}"}} 1' for n in range(201)), "201 series"),
    ],
)
def test_a_page_against_the_conventions_is_complained_of(page: str, complaint: str) -> None:
    assert any(complaint in found for found in problems(page))
