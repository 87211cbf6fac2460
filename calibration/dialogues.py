"""Films → prompts with answers in RadVLM's forms, tokenised: what a language model sees in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer  # type: ignore[import-untyped]

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.probe_films import ProbeFilm, ProbeFilms
from radvlm_edge.export.shared_prefix import Sequences, stream_image_features
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.training import instructions
from radvlm_edge.training.instructions import Exchange, Labels
from radvlm_edge.training.phantom import Finding
from radvlm_edge.training.phantom_difficulty import DEVICES, FINDINGS, GRADES, SIDED
from radvlm_edge.training.reports import IN_LUNG

REGIONS = {"right lung": (0.1, 0.15, 0.45, 0.8), "cardiac silhouette": (0.4, 0.45, 0.75, 0.8)}
"""Where unlabelled films are said to show them: the form of an answer counts here, not its truth."""


def dialogues(
    checkpoint: Checkpoint,
    films: ProbeFilms,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Sequences]:
    """One `Sequences` a film: image tokens and some ten questions of all tasks, answers included.

    Films without labels get answers drawn at random in RadVLM's forms.
    """
    geometry = checkpoint.config.geometry
    tokenizer = Tokenizer.from_str(json.dumps(checkpoint.tokenizer))
    rng = np.random.default_rng(seed)
    cut = [crops.cut(film.pixels, geometry) for film in films.films]
    features = stream_image_features(checkpoint, [views for views, _ in cut], progress)
    newline = checkpoint.tensor("image_newline").float().numpy()
    result = []
    for film, (_, layout), feature in zip(films.films, cut, features, strict=True):
        exchanges = _exchanges(rng, film)
        heads = {prompts.render([prompts.Turn(e.question)], checkpoint.prompting)[0] for e in exchanges}
        (head,) = heads
        tails = [_tail(checkpoint, tokenizer, exchange) for exchange in exchanges]
        image = anyres.pack(feature, layout, newline)
        result.append(Sequences(_ids(tokenizer, head), image, tails))
    return result


def without_images(sequences: list[Sequences]) -> list[Sequences]:
    """The same prompts with no image: what a text-only importance matrix is made from."""
    return [replace(one, image=one.image[:0]) for one in sequences]


def _tail(checkpoint: Checkpoint, tokenizer: Any, exchange: Exchange) -> list[int]:
    _, text = prompts.render([prompts.Turn(exchange.question)], checkpoint.prompting)
    return [*_ids(tokenizer, text + exchange.answer), checkpoint.prompting.stop_ids[0]]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _exchanges(rng: np.random.Generator, film: ProbeFilm) -> list[Exchange]:
    """Questions of every task the film's labels allow."""
    labels = film.labels or _random_labels(rng)
    asked = [instructions.yes_no(rng, labels, name) for name in FINDINGS]
    asked.append(instructions.classify(rng, labels))
    found = sorted({one.name for one in labels.found})
    asked += [instructions.locate_finding(rng, labels, name) for name in found]
    if labels.localised:
        asked += [
            instructions.yes_no(rng, labels, name, ("right", "left")[int(rng.integers(2))]) for name in SIDED
        ]
        asked += [instructions.report(rng, labels), instructions.detect(rng, labels)]
    if regions := sorted(labels.regions or ()):
        drawn = [regions[int(rng.integers(len(regions)))] for _ in range(2)]
        asked += [instructions.locate_region(rng, labels, name) for name in drawn]
    if labels.localised and found:
        asked.append(instructions.locate_phrase(rng, labels, labels.found[0]))
    if labels.localised and len(found) > 1:
        asked.append(instructions.locate_several(rng, labels, found[:3]))
    return asked


def _random_labels(rng: np.random.Generator) -> Labels:
    found = []
    for name in (name for name in FINDINGS if rng.random() < 0.4):
        x, y = (float(value) for value in rng.uniform(0.1, 0.5, 2))
        side = ("right", "left")[int(rng.integers(2))] if name in SIDED else ""
        site = ("upper", "mid", "lower")[int(rng.integers(3))] if name in IN_LUNG else ""
        grades = GRADES[name]
        severity = grades[int(rng.integers(len(grades)))].name
        kind = sorted(DEVICES)[int(rng.integers(len(DEVICES)))] if name == "support devices" else ""
        found.append(Finding(name, side, (x, y, x + 0.3, y + 0.3), severity, site, kind))
    return Labels(frozenset(one.name for one in found), tuple(found), dict(REGIONS))
