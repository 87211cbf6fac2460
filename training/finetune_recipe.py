"""recipes/*.yaml of kind `finetune` → a checked FinetuneRecipe: all a run depends on but its folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.render import RENDERS
from radvlm_edge.training.recipe_fields import fill, read_yaml

KIND = "finetune"
PARTS = ("tower", "projector", "language")
"""What a learning rate is set for. `language` includes the embeddings, the output matrix and the newline, as
RadVLM's `mm_language_model` does."""
LOSSES = ("pairs", "tokens")
PRECISIONS = ("fp32", "bf16")
WEIGHTS = ("float16", "bfloat16", "float32")
SCHEDULES = ("cosine", "linear", "constant_with_warmup")


@dataclass(frozen=True)
class Rates:
    """Peak learning rate of each part; None: the part stays as it is."""

    tower: float | None = None
    projector: float | None = None
    language: float | None = None

    def of(self, part: str) -> float | None:
        rate: float | None = getattr(self, part)
        return rate


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (peft) on the linear layers of some parts."""

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.0
    parts: tuple[str, ...] = ("language",)
    """Parts that get adapters; a part with a rate and without adapters is trained in full beside them."""
    quantised: bool = False
    """QLoRA: the frozen weights in 4 bits (nf4, bitsandbytes); needs CUDA."""
    merge: bool = False
    """Write a whole checkpoint at the end instead of the adapter alone."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """A run of fine-tuning."""

    kind: str
    name: str
    rates: Rates
    start: str | None = None
    """Folder of the checkpoint that is tuned; `train --start` goes before it."""
    data: str | None = None
    """Folder that `dataset build` wrote; `train --data` goes before it."""
    root: str | None = None
    """Folder the films' paths lead from, where shards do not hold them; `train --root` goes before it."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Task → share of its pairs that is used, 0 to 1, drawn by a hash of their names; empty: all of all."""
    repeats: dict[str, int] = field(default_factory=dict)
    """Task → how often each of its pairs comes in an epoch; 1 where it is not named."""
    seed: int = 0
    epochs: float = 1.0
    steps: int | None = None
    """Optimiser steps; None: as `epochs` says."""
    batch: int = 256
    """Films in an optimiser step, over all processes."""
    per_device: int = 1
    """Films that go through the model at a time in each process; the rest of `batch` is accumulated."""
    pack: int = 1
    """At most so many pairs of a film are put behind it, each seeing the film and itself."""
    loss: str = "pairs"
    """`pairs`: every pair counts alike (times its weight), as with the paper's one pair per device;
    `tokens`: every token of an answer does."""
    system: str = ""
    """System prompt of every conversation; empty: none, as at inference."""
    detail: int | None = None
    """Cap in pixels on the canvas's long side; None: as the checkpoint crops (anyres)."""
    render: str | None = None
    """How DICOM and deep films are rendered; None: as the checkpoint says."""
    schedule: str = "cosine"
    warmup: float = 0.03
    """Share of the steps over which the rate rises."""
    decay: float = 0.0
    """AdamW's weight decay of matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "fp32"
    """`bf16`: autocast, with float32 weights to update (FSDP's and DeepSpeed's own where they run)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    lora: Lora | None = None
    save_as: str = "float16"
    """What the checkpoint's weights are written as."""
    save_every: int = 500
    """Steps between saved states."""
    log_every: int = 10
    workers: int = 0
    """Processes beside each training process that read and cut films."""


def kind_of(path: Path) -> str:
    """What a recipe file describes: `finetune`, or `scratch` where it names no kind."""
    given = read_yaml(path)
    return str(given.get("kind", "scratch")) if isinstance(given, dict) else "scratch"


def load_finetune_recipe(path: Path) -> FinetuneRecipe:
    """Read and check a recipe. Raises RecipeError naming the file, the key and what is accepted."""
    recipe = fill(FinetuneRecipe, read_yaml(path), str(path))
    check(recipe, str(path))
    return recipe


def check(recipe: FinetuneRecipe, where: str) -> None:
    """Values that have the right type and make no sense. Raises RecipeError."""
    choices: dict[str, tuple[Any, tuple[str, ...]]] = {
        "kind": (recipe.kind, (KIND,)),
        "loss": (recipe.loss, LOSSES),
        "precision": (recipe.precision, PRECISIONS),
        "save_as": (recipe.save_as, WEIGHTS),
        "schedule": (recipe.schedule, SCHEDULES),
        "render": (recipe.render or RENDERS[0], tuple(RENDERS)),
    }
    for part in recipe.lora.parts if recipe.lora else ():
        choices[f"lora, parts, {part}"] = (part, PARTS)
    for key, (value, accepted) in choices.items():
        if value not in accepted:
            raise RecipeError(f"{where}: {key} is {value!r}; choose one of {', '.join(accepted)}")
    positive = {
        name: getattr(recipe, name)
        for name in ("epochs", "batch", "per_device", "pack", "clip", "save_every", "log_every")
    }
    positive |= {f"rates, {part}": recipe.rates.of(part) for part in PARTS}
    positive |= {"steps": recipe.steps, "detail": recipe.detail}
    positive |= {f"repeats, {task}": number for task, number in recipe.repeats.items()}
    if recipe.lora:
        positive |= {"lora, rank": recipe.lora.rank, "lora, alpha": recipe.lora.alpha}
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise RecipeError(f"{where}: {key} is {value}; it must be above 0 (leave a rate out to freeze)")
    shares = {"warmup": recipe.warmup, **{f"tasks, {name}": one for name, one in recipe.tasks.items()}}
    shares |= {"lora, dropout": recipe.lora.dropout} if recipe.lora else {}
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise RecipeError(f"{where}: {key} is {value}; a share from 0 to 1 is needed")
    _check_rates(recipe, where)


def _check_rates(recipe: FinetuneRecipe, where: str) -> None:
    if all(recipe.rates.of(part) is None for part in PARTS):
        raise RecipeError(f"{where}: rates names no part to train; give one of {', '.join(PARTS)} a rate")
    if not recipe.lora:
        return
    for part in recipe.lora.parts:
        if recipe.rates.of(part) is None:
            raise RecipeError(f"{where}: lora names {part}, which has no rate; add it to rates")
    for part in PARTS:
        if part not in recipe.lora.parts and recipe.rates.of(part) is not None and part != "projector":
            raise RecipeError(
                f"{where}: {part} has a rate and no adapters; beside lora only the projector is trained in "
                f"full: add {part} to lora, parts, or take its rate out"
            )
    if not recipe.lora.parts:
        raise RecipeError(f"{where}: lora, parts is empty; name one of {', '.join(PARTS)}")
    if recipe.lora.quantised and recipe.lora.merge:
        raise RecipeError(
            f"{where}: lora is quantised, so its base is not what the adapter should be merged into; "
            "set merge: false and export the full checkpoint with --lora"
        )
