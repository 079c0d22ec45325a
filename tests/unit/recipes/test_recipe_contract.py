"""What a recipe may say of itself, and what a training may be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vedette.models.recipes import Matrix, RecipeError, RecipeSpec, TrainingData, TrainingDataError, open_recipe
from vedette.models.schema import Feature, FeatureSchema

_TOML = """
name = "tiny"
description = "d"
schema = "tensor"
[parameters.rounds]
type = "int"
default = 10
minimum = 1
maximum = 100
help = "h"
[parameters.rate]
type = "float"
default = 0.5
minimum = 0.0
maximum = 1.0
help = "h"
[parameters.loud]
type = "bool"
default = false
help = "h"
[parameters.mode]
type = "str"
default = "a"
choices = ["a", "b"]
help = "h"
"""
_DEFAULTS = {"rounds": 10, "rate": 0.5, "loud": False, "mode": "a"}


def _spec(text: str = _TOML) -> RecipeSpec:
    return RecipeSpec.from_bytes(text.encode())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"rounds": "7"}, {"rounds": 7}),
        ({"rate": 1, "loud": "TRUE"}, {"rate": 1.0, "loud": True}),
        ({"mode": "b"}, {"mode": "b"}),
    ],
)
def test_parameters_are_read_as_people_type_them(given: dict[str, object], expected: dict[str, object]) -> None:
    resolved = _spec().resolve(given)
    assert resolved == _DEFAULTS | expected
    assert [type(value) for value in resolved.values()] == [int, float, bool, str]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"round": 1}, "no parameter 'round', known: rounds, rate, loud, mode"),
        ({"rounds": 0}, "rounds is 0, allowed 1 to 100"),
        ({"rounds": "many"}, "'many', which is no int"),
        ({"rounds": 1.5}, "'1.5', which is no int"),
        ({"rounds": True}, "'True', which is no int"),
        ({"rate": "nan"}, "rate is nan, allowed 0.0 to 1.0"),
        ({"loud": "yes"}, "'yes', which is no bool"),
        ({"mode": "c"}, "'c', allowed: a, b"),
    ],
)
def test_a_wrong_parameter_is_refused_with_value_and_limit(given: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _spec().resolve(given)


@pytest.mark.parametrize(
    "text",
    [
        "name = ",
        'name = "x"',
        _TOML.replace('"tensor"', '"picture"'),
        _TOML.replace('"tiny"', '"No Name"'),
        _TOML.replace("default = 10", "default = 1000"),
        _TOML.replace('type = "int"', 'type = "complex"'),
        _TOML.replace("minimum = 1\n", "least = 1\n"),
        "parameters = 3\n" + _TOML.split("[", maxsplit=1)[0],
    ],
)
def test_a_wrong_description_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        _spec(text)


def test_a_folder_opens_as_a_recipe_and_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        open_recipe(tmp_path)
    (tmp_path / "recipe.toml").write_text(_TOML)
    with pytest.raises(RecipeError, match=r"no recipe\.py"):
        open_recipe(tmp_path)
    (tmp_path / "recipe.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="no function train"):
        open_recipe(tmp_path)
    (tmp_path / "recipe.py").write_text("def train(data, parameters, progress):\n    return parameters\n")
    recipe = open_recipe(tmp_path)
    assert recipe.spec.resolve({}) == _DEFAULTS


def _data(features: Matrix, **columns: object) -> TrainingData:
    rows = len(features)
    whole: dict[str, object] = {
        "labels": np.zeros(rows, np.int64), "classes": ("benign",), "groups": np.zeros(rows, np.int64),
        "sites": ("s",), "times_ms": np.zeros(rows, np.int64),
    } | columns  # fmt: skip
    return TrainingData(FeatureSchema("s", (Feature("a", "", ""),)), features, **whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"labels": np.array([0, 1])}, "labels lie between 0 and 1, there are 1 names"),
        ({"groups": np.array([-1, 0])}, "groups lie between -1 and 0"),
        ({"times_ms": np.zeros(3, np.int64)}, "times_ms has 3 rows, features have 2"),
        ({"classes": ("benign", "benign")}, "a name twice"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingDataError, match=words):
        _data(np.zeros((2, 1), np.float32), **columns)


def test_features_that_are_not_finite_are_refused_by_row_and_name() -> None:
    with pytest.raises(TrainingDataError, match="row 1 has no finite a"):
        _data(np.array([[0.0], [np.nan]], np.float32))
