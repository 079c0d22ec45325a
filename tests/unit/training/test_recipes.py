"""Recipes on their shelf: the installed ones read well, names lead to the nearest, parameters are judged."""

from __future__ import annotations

import pytest

from tests.support.learning import SHELF
from vedette.controller.adapters.recipes_loader import (
    RecipeShelf,
    recipe_names,
    recipes_folder,
)
from vedette.controller.domain.errors import InvalidInput, NotFound
from vedette.controller.domain.runs import check_parameters


def test_every_installed_recipe_has_a_description_whose_defaults_fit() -> None:
    shelf = RecipeShelf(recipes_folder())
    assert "flow-threat" in recipe_names()
    for name in recipe_names():
        spec = shelf.spec(name)
        assert spec.name == name
        check_parameters(spec, {p.name: str(p.default) for p in spec.parameters})


def test_unknown_recipe_names_the_nearest_and_a_broken_one_says_why() -> None:
    with pytest.raises(NotFound) as unknown:
        SHELF.spec("toyy")
    assert unknown.value.why == "did you mean toy?"
    with pytest.raises(NotFound) as strange:
        SHELF.spec("../toy")
    assert "toy" in strange.value.why
    with pytest.raises(InvalidInput) as broken:
        SHELF.spec("broken")
    assert "not TOML" in broken.value.why


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("rounds", "0", "parameter rounds is 0, allowed 1 to 50"),
        ("rounds", "many", "parameter rounds is 'many', which is no int"),
        ("mood", "sad", "allowed: good, raises, dies, waits"),
        ("rond", "3", "did you mean rounds?"),
        ("zzz", "3", "known are rounds, mood"),
    ],
)
def test_parameter_that_does_not_fit_names_value_and_limit(name: str, value: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_parameters(SHELF.spec("toy"), {name: value})
    assert says in caught.value.why
