"""recipes/*.yaml → a checked Recipe: everything a run depends on, data folder apart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.model import Sizes


@dataclass(frozen=True)
class FilmsPlan:
    """Which films are seen."""

    phantoms: int = 6000
    """Phantoms drawn for training; evaluation draws others."""
    short_px: tuple[int, int] = (380, 520)
    """Bounds of a phantom's shorter side in pixels."""
    real: bool = True
    """Use the real films under RADVLM_EDGE_DATA where that is set."""


@dataclass(frozen=True)
class Stage:
    """One stage of optimisation. A budget is a number of steps, never of minutes."""

    steps: int
    rate: float
    """Peak learning rate of what the stage teaches first."""
    phantoms: int = 0
    """Phantoms in each step."""
    real: int = 0
    """Real films in each step."""
    tower_rate: float = 0.0
    """Peak learning rate of the tower in a stage about language."""
    patches: int = 0
    """Patches in each step of the stage about patches."""
    decay_over: int = 0
    """Steps after which the rate would reach zero; 0: those of the stage."""


@dataclass(frozen=True)
class Recipe:
    """A run: sizes, films, five stages."""

    name: str
    seed: int
    vocab_size: int
    model: Sizes
    films: FilmsPlan
    patches: Stage
    tower: Stage
    decide: Stage
    language: Stage
    joint: Stage
    evaluate_phantoms: int = 200
    threads: int = 2
    save_every: int = 100
    """Steps between saved states."""


def _fill(kind: Any, given: Any, where: str) -> Any:
    """Build a dataclass from a mapping; unknown, missing and wrongly shaped keys are refused."""
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: expected a mapping, found {given!r}")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise RecipeError(f"{where}: unknown key {unknown[0]!r}; accepted are {', '.join(fields)}")
    values: dict[str, Any] = {}
    nested = {"Sizes": Sizes, "FilmsPlan": FilmsPlan, "Stage": Stage}
    for key, value in given.items():
        kind_name = str(fields[key].type)
        if kind_name in nested:
            value = _fill(nested[kind_name], value, f"{where}, {key}")
        elif isinstance(value, list):
            value = tuple(tuple(one) if isinstance(one, list) else one for one in value)
        elif kind_name in ("int", "float") and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise RecipeError(f"{where}: {key} is {value!r}; a number is needed")
        values[key] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {str(error).split('() ')[-1]}") from error


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises RecipeError, naming the file and the key."""
    try:
        given = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: recipe cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    recipe: Recipe = _fill(Recipe, given, str(path))
    return recipe
