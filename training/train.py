"""Recipe → checkpoint: films, tokenizer, five stages, figures, provenance."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import accelerate
import click
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer  # type: ignore[import-untyped]

from radvlm_edge.errors import OutputError
from radvlm_edge.training.curriculum import film_conversations, film_exchanges, real_exchanges
from radvlm_edge.training.decide import deciding_blocks
from radvlm_edge.training.evaluate import evaluate
from radvlm_edge.training.films import PhantomSet, RealSet, data_folder, kept_phantoms, load_real
from radvlm_edge.training.instructions import Labels
from radvlm_edge.training.language import LanguageLoss, talking_blocks
from radvlm_edge.training.loop import Stage
from radvlm_edge.training.model import build_model, save_checkpoint
from radvlm_edge.training.nih_labels import PICK
from radvlm_edge.training.patches import PatchLoss
from radvlm_edge.training.phrase_bank import write_phrases
from radvlm_edge.training.pointing import Aids
from radvlm_edge.training.recipe import Recipe, load_recipe
from radvlm_edge.training.tokenizer import build_tokenizer
from radvlm_edge.training.tower import Heads, TowerLoss, settle, start_tower

CITATION = (
    "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and "
    "Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017."
)


def run(recipe_path: Path, out: Path, *, resume: bool) -> Path:
    """Train as the recipe says, working under `out`; returns the checkpoint folder `out/checkpoint`.

    A killed run goes on from its last saved state with `resume`. Real films are read from the
    folder that RADVLM_EDGE_DATA names; without one the model sees phantoms only, and says so.
    Raises RecipeError for a bad recipe, OutputError where `out` holds another run.
    """
    recipe = load_recipe(recipe_path)
    folder = data_folder() if recipe.films.real else None
    real = load_real(folder, "train") if folder else None
    _claim(out, recipe, real, resume)
    torch.set_num_threads(recipe.threads)
    if real:
        click.echo(f"training on phantoms and {len(real.films)} real films (NIH, train split)", err=True)
    else:
        click.echo("training on phantoms alone: RADVLM_EDGE_DATA names no folder with nih_cxr14/", err=True)

    geometry = recipe.model.geometry(recipe.vocab_size)
    click.echo(f"drawing {recipe.films.phantoms} phantoms", err=True)
    plan = recipe.films
    films = kept_phantoms(out, recipe.seed, plan.phantoms, plan.short_px, geometry, recipe.threads)
    tokenizer = learn_tokenizer(films, recipe)
    model = build_model(recipe.model, tokenizer, recipe.seed)
    _teach(model, tokenizer, films, real, recipe, out)

    held_out = load_real(folder, "val") if folder else None
    figures = evaluate(model, tokenizer, geometry, recipe.films.short_px, recipe.evaluate_phantoms, held_out)
    return _finish(model, tokenizer, recipe, films, real, figures, out)


def _claim(out: Path, recipe: Recipe, real: RealSet | None, resume: bool) -> None:
    """Make `out` this run's folder, or check that it is."""
    note = dataclasses.asdict(recipe) | {"real_films": len(real.films) if real else 0}
    text = json.dumps(note, indent=2, sort_keys=True) + "\n"
    noted = out / "run.json"
    if noted.exists():
        if not resume:
            raise OutputError(f"{out}: holds a run already; go on with --resume, or choose another folder")
        if noted.read_text() != text:
            raise OutputError(f"{out}: holds a run of another recipe or other films; choose another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty and holds no run; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    noted.write_text(text)


def learn_tokenizer(films: PhantomSet, recipe: Recipe) -> Tokenizer:
    """Merges from the exchanges about some of the phantoms."""
    rng = np.random.default_rng([recipe.seed, 0])
    texts = []
    for labels in films.labels[:800]:
        asked = [one for _ in range(2) for one in film_exchanges(rng, labels)]
        asked += [turn for one in film_conversations(rng, labels) for turn in one]
        name = list(PICK)[int(rng.integers(len(PICK)))]
        asked += real_exchanges(rng, Labels(frozenset({name}), localised=False), name)
        for one in asked:
            texts += [f"user\n{one.question}", f"assistant\n{one.answer}"]
    return build_tokenizer(texts, recipe.vocab_size)


def _teach(
    model: Any, tokenizer: Tokenizer, films: PhantomSet, real: RealSet | None, recipe: Recipe, out: Path
) -> None:
    """The five stages; each leaves its state in `out`, where a resumed run finds it."""
    geometry, plan = recipe.model.geometry(recipe.vocab_size), recipe.tower
    tower = model.model.vision_tower
    torch.manual_seed(recipe.seed)
    start_tower(tower, films.crops[:, 0], recipe.seed)
    close = recipe.patches
    reading = PatchLoss(films, geometry, recipe.seed + 2, recipe.model.tower_width)
    narrow = [{"params": [*tower.parameters(), *reading.head.parameters()], "lr": close.rate}]
    seen: dict[str, torch.nn.Module] = {"tower": tower, "head": reading.head}
    stage = Stage("patches", out, seen, narrow, close.steps, recipe.save_every, close.decay_over)
    stage.run(lambda step: reading(tower, step, close.patches))

    heads = Heads(recipe.model.tower_width)
    seeing = TowerLoss(films, real, geometry, recipe.seed)
    decayed = [{"params": [*settle(tower, True), *heads.parameters()], "lr": plan.rate}]
    watched: dict[str, torch.nn.Module] = {"tower": tower, "heads": heads}
    stage = Stage("tower", out, watched, decayed, plan.steps, recipe.save_every, plan.decay_over)
    stage.run(lambda step: seeing(tower, heads, step, plan.phantoms, plan.real))
    settle(tower, False)

    watching = {id(one) for one in tower.parameters()}
    speaking = [one for one in model.parameters() if id(one) not in watching]
    aids = Aids(recipe.model.hidden)
    for index, (name, budget, blocks) in enumerate(
        (
            ("decide", recipe.decide, deciding_blocks),
            ("language", recipe.language, talking_blocks),
            ("joint", recipe.joint, talking_blocks),
        )
    ):
        moving = budget.tower_rate > 0
        answering = LanguageLoss(films, real, tokenizer, geometry, recipe.seed, 2 + index, blocks, moving)
        groups: list[dict[str, Any]] = [{"params": [*speaking, *aids.parameters()], "lr": budget.rate}]
        if moving:
            groups.append({"params": list(tower.parameters()), "lr": budget.tower_rate})
        _one_language_stage(name, model, aids, answering, groups, budget, recipe, out)


def _one_language_stage(
    name: str,
    model: Any,
    aids: Aids,
    answering: LanguageLoss,
    groups: list[dict[str, Any]],
    budget: Any,
    recipe: Recipe,
    out: Path,
) -> None:
    stage = Stage(name, out, {"model": model, "aids": aids}, groups, budget.steps, recipe.save_every)
    stage.run(lambda step: answering(model, aids, step, budget.phantoms, budget.real))


def _finish(
    model: Any,
    tokenizer: Tokenizer,
    recipe: Recipe,
    films: PhantomSet,
    real: RealSet | None,
    figures: dict[str, Any],
    out: Path,
) -> Path:
    """Write the checkpoint beside its final place, then move it there."""
    final, partial = out / "checkpoint", out / "checkpoint.partial"
    for stale in (partial, final):
        if stale.exists():
            shutil.rmtree(stale)
    save_checkpoint(model, tokenizer, recipe.model, partial, card(recipe, real))
    write_phrases(films.labels, recipe.seed, partial)
    (partial / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    partial.rename(final)
    return final


def card(recipe: Recipe, real: RealSet | None) -> dict[str, Any]:
    """radvlm_edge.json: what the checkpoint is and what it was trained on."""
    text = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    trained_on: dict[str, Any] = {
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "recipe": dataclasses.asdict(recipe),
        "phantoms": {"seeds": [recipe.seed, recipe.seed + recipe.films.phantoms - 1]},
        "real_films": None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }
    if real:
        trained_on["real_films"] = {
            "source": "NIH ChestX-ray14, https://nihcc.app.box.com/v/ChestXray-NIHCC",
            "acknowledgement": "The NIH Clinical Center provided these films.",
            "citation": CITATION,
            "labels": "text-mined; mapped to RadVLM's by training/nih_labels.py",
            "split": "train, patient-wise",
            "ids": [film.name for film in real.films],
        }
    return {
        "name": recipe.name,
        "demonstration": True,
        "redistributable": True,
        "licence": "Apache-2.0",
        "render": "voi",
        "trained_on": trained_on,
    }
