"""docs/models.md names every rule of the gate, and no rule that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = [
    *(ROOT / "controller/vedette/controller/domain").glob("model_*.py"),
    ROOT / "controller/vedette/controller/jobs/examine.py",
    ROOT / "controller/vedette/controller/services/registry.py",
]
_RAISED = re.compile(r'(?:ModelRefused|NodeFault|_at)\(\s*(?:node, )?"([a-z-]+)"|Refused\(\s*"model-(crashed)"')


def test_every_code_of_the_gate_is_in_the_docs_and_the_other_way() -> None:
    raised = {one or two for path in SOURCES for one, two in _RAISED.findall(path.read_text())}
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    documented = {code for row in rows for code in re.findall(r"`([a-z-]+)`", row)}
    assert documented == raised
