"""How well a tuned checkpoint does one task on phantoms nobody trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radvlm_edge.runtime.answers import parse_labels
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.prompts import task_question
from radvlm_edge.training.instructions import Labels, labels_of
from radvlm_edge.training.phantom import make_phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.phrasings import SPOKEN
from radvlm_edge.training.scores import balanced_accuracy, iou

if TYPE_CHECKING:
    from radvlm_edge.training.evaluate import Examinee

HELD_OUT = 50_000_000
"""Seed of the first phantom for evaluation."""
REGIONS = ("right lung", "left lung", "cardiac silhouette")

Score = Callable[["list[tuple[Examinee, Labels]]"], "tuple[float, int]"]
"""Films looked at → the figure and how many answers it is of."""


def _best(examinee: Examinee, name: str, true: list[Any]) -> list[float]:
    from radvlm_edge.training.evaluate import boxes_in

    said = boxes_in(examinee.ask(task_question(f"locate={name}")))
    return [max((iou(box, one) for box in said), default=0.0) for one in true]


def _regions(films: list[tuple[Examinee, Labels]]) -> tuple[float, int]:
    scores = [
        score
        for examinee, labels in films
        for name in REGIONS
        if labels.regions and name in labels.regions
        for score in _best(examinee, name, [labels.regions[name]])
    ]
    return float(np.mean(scores)), len(scores)


def _abnormalities(films: list[tuple[Examinee, Labels]]) -> tuple[float, int]:
    scores = [
        score
        for examinee, labels in films
        for name in sorted(labels.present)
        for score in _best(examinee, name, labels.boxes(name))
    ]
    return (float(np.mean(scores)) if scores else 0.0), len(scores)


def _decisions(films: list[tuple[Examinee, Labels]]) -> tuple[float, int]:
    said, true = [], []
    for examinee, labels in films:
        for name in FINDINGS:
            said.append(examinee.leaning(f"any {SPOKEN[name][0]}?") > 0)
            true.append(name in labels.present)
    right = [one == other for one, other in zip(said, true, strict=True)]
    return balanced_accuracy(true, right) or 0.0, len(true)


def _labels(films: list[tuple[Examinee, Labels]]) -> tuple[float, int]:
    hits = named = present = 0
    for examinee, labels in films:
        said = set(parse_labels(examinee.ask(task_question("classify"))))
        hits += len(said & labels.present)
        named += len(said)
        present += len(labels.present)
    return 2 * hits / max(1, named + present), len(films)


SCORES: dict[str, tuple[str, Score]] = {
    "region": ("mean IoU of the lungs' and the heart's boxes", _regions),
    "abnormality": ("mean best IoU of findings' boxes", _abnormalities),
    "yesno": ("balanced accuracy of yes/no", _decisions),
    "classify": ("micro F1 of the labels named", _labels),
}
"""Task → what its figure is, and the function."""


def score(folder: Path, task: str, films: int, short_px: tuple[int, int]) -> dict[str, Any]:
    """A checkpoint's figure on `films` held-out phantoms: transformers' greedy answers in float32."""
    import torch
    from tokenizers import Tokenizer  # type: ignore[import-untyped]

    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.reference import build_reference
    from radvlm_edge.training.evaluate import Examinee

    checkpoint = open_checkpoint(folder)
    model = build_reference(checkpoint)
    tokenizer = Tokenizer.from_str(json.dumps(checkpoint.tokenizer))
    name, figure = SCORES[task]
    looked = []
    with torch.no_grad():
        for number in range(films):
            phantom = make_phantom(HELD_OUT + number, short_px)
            crops, layout = cut(phantom.pixels, checkpoint.config.geometry)
            examinee = Examinee(model, tokenizer, crops[:, 0], (layout.height, layout.width))
            looked.append((examinee, labels_of(phantom)))
        value, answers = figure(looked)
    return {"figure": name, "value": round(value, 4), "answers": answers, "films": films}
