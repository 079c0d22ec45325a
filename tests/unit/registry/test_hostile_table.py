"""The gate at registration against the same models that are tried on an appliance whose controller has none."""

from __future__ import annotations

import pytest

from tests.support.hostile_models import BROKEN, HOSTILE, SLOW, Hostile, asking_for_files
from vedette.controller.domain.model_gate import ModelRefused, check_model, check_size, check_tree_nodes
from vedette.controller.jobs.examine import parse

MODELS = [*asking_for_files("/var/lib/secret", "hard"), *BROKEN, *HOSTILE, *SLOW]


def judged(hostile: Hostile) -> str:
    """Return the rule by which the gate refuses a file, read as data only; empty when it lets it through."""
    data = hostile.data()
    try:
        check_size(len(data))
        model = parse(data)
        check_model(model)
        check_tree_nodes(model)
    except ModelRefused as exc:
        return exc.code
    return ""


@pytest.mark.parametrize("hostile", MODELS, ids=[hostile.name for hostile in MODELS])
def test_the_gate_refuses_it_or_it_is_said_why_no_reading_of_the_file_could(hostile: Hostile) -> None:
    assert judged(hostile) == ("" if " " in hostile.gate else hostile.gate)


def test_an_empty_file_is_refused_unread() -> None:
    with pytest.raises(ModelRefused, match="the file is 0 bytes"):
        check_size(0)
