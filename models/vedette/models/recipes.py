"""What a training recipe is given and what it hands back: the one contract between recipes and whoever runs them.

A recipe is a folder with ``recipe.toml`` (its name, what can be set, in which range) and ``recipe.py`` with one
function::

    def train(data: TrainingData, parameters: Mapping[str, Any], progress: Progress) -> TrainingResult

It reads no file, no clock and no network; with the same data, parameters and libraries it returns the same result. The
runner makes the features, converts what was fitted, checks parity, and keeps snapshots, runs and versions.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.errors import ModelsError
from vedette.models.flows.records import FlowRecords
from vedette.models.schema import FeatureSchema

MAX_RECIPE_BYTES = 1 << 20
BENIGN = "benign"

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str}

Matrix = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is going on. May raise to stop the training."""


class RecipeError(ModelsError):
    """A recipe is not well formed, or a parameter is unknown, of the wrong type or out of its range."""


class TrainingDataError(ModelsError):
    """Rows, labels and sites do not fit together, or do not hold what this recipe needs."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Labelled rows in the order they happened within each site.

    Two captures of the same minutes by different exporters are two sites. Row order matters only within a site.
    """

    schema: FeatureSchema
    features: Matrix  # shape (rows, len(schema)), finite
    labels: Codes  # shape (rows,), index into classes
    classes: tuple[str, ...]  # the first is the harmless one
    groups: Codes  # shape (rows,), index into sites
    sites: tuple[str, ...]  # where rows come from: source file, exporter and domain as text
    times_ms: Codes  # shape (rows,), Unix milliseconds; flows: the record clock
    flows: FlowRecords | None = None  # shape (rows,), the biflows behind the rows, for evaluation only

    def __post_init__(self) -> None:
        rows = len(self.features)
        if self.features.shape != (rows, len(self.schema)):
            raise TrainingDataError(f"features have shape {self.features.shape}, the schema {len(self.schema)} columns")
        for name in ("labels", "groups", "times_ms", "flows"):
            column = getattr(self, name)
            if column is not None and len(column) != rows:
                raise TrainingDataError(f"{name} has {len(column)} rows, features have {rows}")
        _check_codes("labels", self.labels, self.classes)
        _check_codes("groups", self.groups, self.sites)
        bad = np.argwhere(~np.isfinite(self.features))
        if len(bad):
            row, column = bad[0].tolist()
            raise TrainingDataError(f"row {row} has no finite {self.schema.names[column]} ({len(bad)} such values)")

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class Cascade:
    """A binary gate on every row and a model of kinds on what passes, both LightGBM boosters.

    A row is flagged when the gate's raw margin reaches ``margin``; its kind is the most likely of ``classes[1:]``.
    """

    gate: Any  # lightgbm.Booster, objective binary
    kinds: Any | None  # lightgbm.Booster, multiclass over classes[1:]; None when there is one kind only
    margin: float
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training leaves behind."""

    fitted: Any  # Cascade, or another form that the runner can convert
    classes: tuple[str, ...]
    threshold: float  # on the converted model's score: a row at or above it is flagged
    metrics: Mapping[str, float]
    golden_rows: Matrix  # rows that every build must repeat
    reference_rows: Matrix  # what is usual: the rows that the reference profile is made of
    usual: Matrix  # shape (features,), what evidence compares a flagged row with
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # JSON values


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that can be set."""

    name: str
    type: str  # int | float | bool | str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """Return the value in the parameter's type; text is read as people type it.

        Raises:
            RecipeError: It cannot be read, or lies outside the range.
        """
        made = self._typed(value)
        low, high = self.minimum, self.maximum
        if not isinstance(made, (bool, str)) and not (
            (low is None or made >= low) and (high is None or made <= high)  # also refuses NaN
        ):
            raise RecipeError(f"parameter {self.name} is {made}, allowed {low} to {high}")
        if self.choices and made not in self.choices:
            raise RecipeError(f"parameter {self.name} is {str(made)[:80]!r}, allowed: {', '.join(self.choices)}")
        return made

    def _typed(self, value: Any) -> Any:
        wanted = _TYPES[self.type]
        if isinstance(value, str) and wanted is not str:
            return self._parsed(value)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not wanted:
            raise RecipeError(f"parameter {self.name} is {str(value)[:80]!r}, which is no {self.type}")
        return value

    def _parsed(self, text: str) -> Any:
        words = {"true": True, "false": False}
        try:
            return words[text.lower()] if self.type == "bool" else _TYPES[self.type](text)
        except (KeyError, ValueError):
            raise RecipeError(f"parameter {self.name} is {text[:80]!r}, which is no {self.type}") from None


@dataclass(frozen=True, slots=True)
class RecipeSpec:
    """What ``recipe.toml`` says."""

    name: str
    description: str
    schema: str  # kind of rows it takes: flow or tensor
    parameters: tuple[Parameter, ...]

    @classmethod
    def from_bytes(cls, raw: bytes) -> RecipeSpec:
        """Read a recipe.toml.

        Raises:
            RecipeError: It is too long, no TOML, or not a recipe.
        """
        if len(raw) > MAX_RECIPE_BYTES:
            raise RecipeError(f"recipe.toml is {len(raw)} bytes, limit {MAX_RECIPE_BYTES} (MAX_RECIPE_BYTES)")
        try:
            document = tomllib.loads(raw.decode())
        except ValueError as exc:
            raise RecipeError(f"recipe.toml is not TOML: {exc}") from exc
        _expect(document, "recipe.toml", {"name", "description", "schema"}, {"parameters"})
        if not _NAME.fullmatch(str(document["name"])) or document["schema"] not in ("flow", "tensor"):
            raise RecipeError(f"recipe {str(document['name'])[:80]!r} takes {str(document['schema'])[:40]!r} rows")
        parameters = document.get("parameters", {})
        if not isinstance(parameters, dict):
            raise RecipeError("parameters of recipe.toml is no table")
        made = tuple(_parameter(name, body) for name, body in parameters.items())
        return cls(document["name"], str(document["description"]), document["schema"], made)

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return every parameter: what is given, else the default.

        Raises:
            RecipeError: A name is unknown, or a value does not fit.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        strange = next((name for name in given if name not in known), None)
        if strange is not None:
            raise RecipeError(f"recipe {self.name} has no parameter {strange[:80]!r}, known: {', '.join(known)}")
        return {name: p.read(given[name]) if name in given else p.default for name, p in known.items()}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe ready to run."""

    spec: RecipeSpec
    train: Callable[[TrainingData, Mapping[str, Any], Progress], TrainingResult]


def open_recipe(folder: Path) -> Recipe:
    """Load a recipe's description and code. Runs the code's top level: open only recipes you trust.

    Raises:
        RecipeError: A file is missing or not what it must be.
    """
    try:
        with (folder / "recipe.toml").open("rb") as file:
            spec = RecipeSpec.from_bytes(file.read(MAX_RECIPE_BYTES + 1))
    except OSError as exc:
        raise RecipeError(f"recipe.toml of {folder.name} cannot be read: {exc.strerror}") from exc
    code = folder / "recipe.py"
    found = importlib.util.spec_from_file_location(f"vedette_recipe_{spec.name.replace('-', '_')}", code)
    if not code.is_file() or found is None or found.loader is None:
        raise RecipeError(f"recipe {spec.name} has no recipe.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickling look modules up by name
    found.loader.exec_module(module)
    train = getattr(module, "train", None)
    if not callable(train):
        raise RecipeError(f"recipe.py of {spec.name} has no function train")
    return Recipe(spec, train)


def _parameter(name: str, body: Any) -> Parameter:
    if not _PARAMETER.fullmatch(name) or not isinstance(body, dict):
        raise RecipeError(f"parameter {name[:80]!r} is no table with a name of a-z 0-9 _")
    _expect(body, f"parameter {name}", {"type", "default", "help"}, {"minimum", "maximum", "choices"})
    if body["type"] not in _TYPES:
        raise RecipeError(f"parameter {name} has type {str(body['type'])[:40]!r}, known: {', '.join(_TYPES)}")
    choices = tuple(str(choice) for choice in body.get("choices", ()))
    bounds = (body.get("minimum"), body.get("maximum"))
    made = Parameter(name, body["type"], body["default"], str(body["help"]), *bounds, choices)
    made.read(made.default)
    return made


def _expect(table: Mapping[str, Any], what: str, needed: set[str], allowed: set[str]) -> None:
    missing, strange = sorted(needed - set(table)), sorted(set(table) - needed - allowed)
    if missing or strange:
        raise RecipeError(
            f"{what} lacks {', '.join(missing) or 'nothing'} and has unknown {', '.join(strange) or 'nothing'}"
        )


def _check_codes(what: str, codes: Codes, names: tuple[str, ...]) -> None:
    if len(codes) and not (int(codes.min()) >= 0 and int(codes.max()) < len(names)):
        raise TrainingDataError(f"{what} lie between {codes.min()} and {codes.max()}, there are {len(names)} names")
    if len(set(names)) != len(names):
        raise TrainingDataError(f"{what} have a name twice")
