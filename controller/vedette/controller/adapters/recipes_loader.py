"""Where recipes lie: inside the wheel as data, or in a checkout's ``models/recipes``.

Only their descriptions are read here; their code is loaded by the training child alone.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from vedette.controller.domain.errors import InvalidInput, NotFound, StoreFailed
from vedette.models.recipes import MAX_RECIPE_BYTES, RecipeError, RecipeSpec

_DESCRIPTION = "recipe.toml"


def recipes_folder() -> Path:
    """Return the folder of the installed recipes.

    Raises:
        StoreFailed: This installation has none.
    """
    packaged = Path(str(resources.files("vedette.controller"))) / "data" / "recipes"
    checkout = Path(__file__).parents[4] / "models" / "recipes"  # an editable installation runs from the sources
    for folder in (packaged, checkout):
        if folder.is_dir():
            return folder
    raise StoreFailed("no-recipes", "this installation has no recipes", f"looked in {packaged} and {checkout}")


def recipe_names() -> tuple[str, ...]:
    """Return the names of the installed recipes.

    Raises:
        StoreFailed: This installation has none.
    """
    return RecipeShelf(recipes_folder()).names()


class RecipeShelf:
    """Recipes in the folders of one folder, each named as its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """Return the names of all recipes."""
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"*/{_DESCRIPTION}")))

    def spec(self, name: str) -> RecipeSpec:
        """Return a recipe's description.

        Raises:
            NotFound: There is none of that name; the message names the nearest.
            InvalidInput: Its description is broken.
        """
        known = self.names()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            why = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"
            raise NotFound(
                "recipe-unknown",
                f"there is no recipe {name[:80]}",
                why,
                f"example: vedette train {(near or known or ['RECIPE'])[0]} --data DATASET@N",
            )
        try:
            with (self.folder / name / _DESCRIPTION).open("rb") as file:
                return RecipeSpec.from_bytes(file.read(MAX_RECIPE_BYTES + 1))
        except (OSError, RecipeError) as exc:
            raise InvalidInput("bad-recipe", f"recipe {name} is broken", str(exc)) from exc
