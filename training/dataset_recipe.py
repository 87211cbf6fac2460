"""recipes/*.yaml of data sets → a checked DataRecipe: which pairs from which films, how often."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.source import SPLITS
from radvlm_edge.training.sources import SOURCES, source_named

TASKS = (
    "report",
    "classify",
    "region",
    "abnormality",
    "detect",
    "phrase",
    "conversation",
    "conversation-grounded",
)
UNCERTAIN = ("present", "absent", "drop")
FORMATS = ("parquet", "webdataset")
WRITERS = ("template", "gguf", "openai")


@dataclass(frozen=True)
class Entry:
    """Pairs of one task from one source."""

    task: str
    source: str
    splits: tuple[str, ...] = ("train",)
    repeats: int = 1
    """How often each pair is written, worded anew each time."""
    weight: float = 1.0
    """Weight of each pair in the loss, written beside it."""
    take: int | None = None
    """At most so many pairs, drawn by a hash of their names; None: all."""
    paper: int | None = None
    """Pairs of the paper's row, to compare with."""


@dataclass(frozen=True)
class SourcePlan:
    """How a source is read."""

    folder: str | None = None
    """Its folder under the root; None: the source's usual name."""
    splits: str = "official"
    """`official`, or `patients`: 80/10/10 by a hash of the patient."""


@dataclass(frozen=True)
class DataRecipe:
    """A whole data set, root folder apart."""

    name: str
    pairs: tuple[Entry, ...]
    seed: int = 0
    held_out: tuple[str, ...] = ("test",)
    """Splits no patient of which may be trained on, in whichever source of the same population."""
    leaks: str = "error"
    """`error`: a leak stops the build; `drop`: films of held-out patients are left out."""
    uncertain: str = "present"
    """What an uncertain label counts as; the paper's policy is `present`."""
    filter: str = "rules"
    """Reports: `rules`, `model` (the conversation writer's language model) or `none`."""
    writer: str = "template"
    """Who writes conversations."""
    format: str = "parquet"
    embed: bool = False
    """Parquet: put the film into the shard instead of its path. WebDataset shards always hold it."""
    longest_px: int | None = None
    """Embedded films are scaled down to this longest side."""
    shard_pairs: int = 10_000
    sources: dict[str, SourcePlan] = field(default_factory=dict)

    def plan(self, source: str) -> SourcePlan:
        return self.sources.get(source, SourcePlan())

    def needed(self) -> list[str]:
        """Every source read, those its sources lean on included."""
        names: list[str] = []
        for entry in self.pairs:
            names += [entry.source, *SOURCES[entry.source].needs]
        return list(dict.fromkeys(names))

    def folders(self, root: Path) -> dict[str, Path]:
        """Source → its folder."""
        return {name: root / (self.plan(name).folder or SOURCES[name].folder) for name in self.needed()}


def load_data_recipe(path: Path) -> DataRecipe:
    """Read and check a recipe. Raises RecipeError naming the file, the key and what is accepted."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: recipe cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    recipe: DataRecipe = _fill(DataRecipe, given, str(path))
    _check(recipe, str(path))
    return recipe


def _fill(kind: Any, given: Any, where: str) -> Any:
    """Build a dataclass from a mapping. Raises RecipeError for unknown, missing and wrongly typed keys."""
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: expected a mapping, found {given!r}")
    fields = {one.name: str(one.type) for one in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {key!r}; accepted are {', '.join(fields)}")
        values[key] = _value(fields[key], value, f"{where}, {key}")
    missing = [
        one.name
        for one in dataclasses.fields(kind)
        if one.name not in values
        and one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"{where}: {missing[0]!r} is missing")
    return kind(**values)


def _value(wanted: str, value: Any, where: str) -> Any:
    if wanted == "tuple[Entry, ...]":
        if not isinstance(value, list) or not value:
            raise RecipeError(f"{where}: a list of entries is needed, found {value!r}")
        return tuple(_fill(Entry, one, f"{where}[{index}]") for index, one in enumerate(value))
    if wanted == "dict[str, SourcePlan]":
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: a mapping of sources is needed, found {value!r}")
        return {name: _fill(SourcePlan, one or {}, f"{where}, {name}") for name, one in value.items()}
    if wanted == "tuple[str, ...]":
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise RecipeError(f"{where}: a list of words is needed, found {value!r}")
        return tuple(value)
    if value is None and wanted.endswith("| None"):
        return None
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "bool": (bool,),
        "int": (int,),
        "float": (int, float),
    }
    accepted = kinds[wanted.removesuffix(" | None")]
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise RecipeError(f"{where} is {value!r}; {wanted.removesuffix(' | None')} is needed")
    return value


def _check(recipe: DataRecipe, where: str) -> None:
    """Values that have the right type and make no sense."""
    choices = {
        "leaks": (recipe.leaks, ("error", "drop")),
        "uncertain": (recipe.uncertain, UNCERTAIN),
        "filter": (recipe.filter, ("rules", "model", "none")),
        "writer": (recipe.writer, WRITERS),
        "format": (recipe.format, FORMATS),
    }
    for index, entry in enumerate(recipe.pairs):
        choices[f"pairs[{index}], task"] = (entry.task, TASKS)
        source_named(entry.source)
        for split in entry.splits:
            choices[f"pairs[{index}], splits, {split}"] = (split, SPLITS)
            if split in recipe.held_out:
                raise RecipeError(
                    f"{where}: pairs[{index}] trains on {split!r} of {entry.source}, which held_out names; "
                    "take it out of one of the two"
                )
        if entry.repeats < 1 or entry.weight <= 0 or (entry.take is not None and entry.take < 1):
            raise RecipeError(f"{where}: pairs[{index}]: repeats, weight and take must be above 0")
    for name, plan in recipe.sources.items():
        source_named(name)
        choices[f"sources, {name}, splits"] = (plan.splits, ("official", "patients"))
    for split in recipe.held_out:
        choices[f"held_out, {split}"] = (split, SPLITS)
    for key, (value, accepted) in choices.items():
        if value not in accepted:
            raise RecipeError(f"{where}: {key} is {value!r}; choose one of {', '.join(accepted)}")
    if recipe.shard_pairs < 1 or (recipe.longest_px is not None and recipe.longest_px < 64):
        raise RecipeError(f"{where}: shard_pairs must be above 0, longest_px at least 64")
    if recipe.filter == "model" and recipe.writer == "template":
        raise RecipeError(f"{where}: filter 'model' needs a language model; set writer to gguf or openai")
