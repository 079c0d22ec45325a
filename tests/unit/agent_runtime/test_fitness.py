from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.support.tiny_models import FLOW_OUTPUTS, Shelf
from vedette.agent.domain.fitness import misfit, unmet
from vedette.models.release import Release, TensorSpec

RUNTIMES = {"onnxruntime": "1.32.0"}


def release(**changes: object) -> Release:
    return replace(Shelf().flow_release(1), **changes)


def reason(of: Release) -> str | None:
    return misfit(of, of.builds[0], RUNTIMES)


def test_a_flow_release_that_keeps_to_the_convention_fits() -> None:
    assert reason(release()) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"schema": None}, "needs a feature schema"),
        ({"row_wise": False}, "must answer each row for itself"),
        ({"labels": ("benign", "odd", "odder")}, r"'probabilities' is float32\[-1, 2\], .* need float32\[-1, 3\]"),
        ({"outputs": FLOW_OUTPUTS[:2]}, "output 'probabilities' is absent"),
        ({"inputs": (TensorSpec("features", "float64", (-1, 4)),)}, r"float64\[-1, 4\]"),
        ({"inputs": (TensorSpec("features", "float32", (-1, 4)), TensorSpec("more", "float32", (-1,)))}, r"\['more'\]"),
    ],
)
def test_a_flow_release_that_breaks_it_is_told_where(changes: dict[str, object], match: str) -> None:
    assert re.search(match, str(reason(release(**changes))))


def test_a_tensor_release_may_have_any_tensors() -> None:
    assert reason(release(kind="tensor", schema=None, outputs=(TensorSpec("y", "int8", (3, -1)),))) is None


def test_a_build_of_another_kind_and_one_that_is_not_there_do_not_fit() -> None:
    made = release()
    assert "no build of the assigned digest" in str(misfit(made, None, RUNTIMES))
    assert "'tensorrt' is not served here" in str(misfit(made, replace(made.builds[0], kind="tensorrt"), RUNTIMES))


@pytest.mark.parametrize(
    ("condition", "installed", "met"),
    [
        (">=1.32", "1.32.0", True),
        (">=1.32", "1.31.9", False),
        (">=1.9", "1.32", True),
        ("<2, >=1.32", "1.40.1", True),
        ("<2,>=1.32", "2.0", False),
        ("==1.32", "1.32.0+cpu", True),
        ("!=1.32", "1.32", False),
        (">1.32", "1.32.0rc1", False),
        ("~=1.32", "1.32", False),
        ("", "1.32", False),
        (">=1.32", None, False),
    ],
)
def test_version_conditions(condition: str, installed: str | None, met: bool) -> None:
    assert (unmet(condition, installed) is None) is met
