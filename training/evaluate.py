"""A trained model → figures on phantoms it never saw and on real films of other patients."""

from __future__ import annotations

import copy
from typing import Any

import click
import numpy as np
import torch
from transformers import DynamicCache

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.answers import parse_boxes
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.films import RealSet, draw_phantoms
from radvlm_edge.training.instructions import Labels
from radvlm_edge.training.language import image_tokens_of, see
from radvlm_edge.training.packing import HEAD
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.phrasings import SPOKEN
from radvlm_edge.training.scores import Box, auroc, balanced_accuracy, iou
from radvlm_edge.training.tokenizer import TURN_END, TURN_START

FIRST_HELD_OUT = 10_000_000
"""Seeds of phantoms drawn for evaluation; training seeds lie far below."""
_UNIT = 10_000


class Examinee:
    """A model looking at one film: the prefix is computed once, every question goes on from it."""

    def __init__(self, model: Any, tokenizer: Any, crops: Any, size: tuple[int, int]) -> None:
        self.model, self.tokenizer = model, tokenizer
        image = image_tokens_of(model, see(model, crops[None]), [size])[0]
        head = model.get_input_embeddings()(torch.tensor([tokenizer.encode(HEAD).ids]))
        self.cache = DynamicCache(config=model.config.text_config)
        self._go_on(torch.cat([head, image[None]], 1), self.cache)

    def _go_on(self, embeds: torch.Tensor, cache: Any) -> torch.Tensor:
        out = self.model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = self.model.lm_head(out.last_hidden_state[0, -1])
        return logits

    def _put(self, question: str) -> tuple[torch.Tensor, Any]:
        text = f"\n{question}{TURN_END}\n{TURN_START}assistant\n"
        cache = copy.deepcopy(self.cache)
        embeds = self.model.get_input_embeddings()(torch.tensor([self.tokenizer.encode(text).ids]))
        return self._go_on(embeds, cache), cache

    def leaning(self, question: str) -> float:
        """Logit of Yes less logit of No as the answer's first token."""
        logits, _ = self._put(question)
        yes, no = (self.tokenizer.encode(word).ids[0] for word in ("Yes", "No"))
        return float(logits[yes] - logits[no])

    def ask(self, question: str, most: int = 160) -> str:
        """Greedy answer."""
        logits, cache = self._put(question)
        end, ids = self.tokenizer.token_to_id(TURN_END), list[int]()
        while len(ids) < most and (token := int(logits.argmax())) != end:
            ids.append(token)
            logits = self._go_on(self.model.get_input_embeddings()(torch.tensor([[token]])), cache)
        return str(self.tokenizer.decode(ids))


def boxes_in(text: str) -> list[Box]:
    """Boxes an answer states, as fractions to four digits."""
    return [box.xyxy_fraction for box in parse_boxes(text, _UNIT, _UNIT)]


def yes_no_figures(leanings: list[float], truths: list[bool]) -> dict[str, float]:
    """Counts, balanced accuracy at the model's own threshold, and area under the ROC curve."""
    said, true = np.array(leanings), np.array(truths)
    figures: dict[str, float] = {
        "present": int(true.sum()),
        "absent": int((~true).sum()),
        "yes_when_present": int((said[true] > 0).sum()),
        "yes_when_absent": int((said[~true] > 0).sum()),
    }
    if true.any() and not true.all():
        figures["balanced_accuracy"] = round(balanced_accuracy(true, (said > 0) == true) or 0.0, 3)
        figures["auc"] = round(auroc(said, true), 3)
    return figures


def _score_boxes(examinee: Examinee, labels: Labels, scores: dict[str, list[float]]) -> None:
    for name in ("right lung", "left lung", "cardiac silhouette"):
        if labels.regions and name in labels.regions:
            boxes = boxes_in(examinee.ask(f"Where is the {name} located in this Chest X-ray?"))
            scores.setdefault(name, []).append(iou(boxes[0], labels.regions[name]) if boxes else 0.0)
    for name in sorted(labels.present):
        true = labels.boxes(name)
        boxes = boxes_in(examinee.ask(f"Where is the {name} located in this Chest X-ray?"))
        best = [max((iou(box, one) for one in boxes), default=0.0) for box in true]
        scores.setdefault(name, []).append(float(np.mean(best)))


def evaluate(
    model: Any,
    tokenizer: Any,
    geometry: Geometry,
    short_px: tuple[int, int],
    phantoms: int,
    real: RealSet | None,
) -> dict[str, Any]:
    """Figures for metrics.json: yes/no on all held-out films, boxes and classification on every fifth."""
    model.cpu().eval()
    held_out = draw_phantoms(FIRST_HELD_OUT, phantoms, short_px, geometry)
    leanings: dict[str, list[float]] = {name: [] for name in FINDINGS}
    scores: dict[str, list[float]] = {}
    exact = []
    with torch.no_grad():
        for index, labels in enumerate(held_out.labels):
            height, width = held_out.sizes[index]
            examinee = Examinee(model, tokenizer, held_out.crops[index], (int(height), int(width)))
            for name in FINDINGS:
                leanings[name].append(examinee.leaning(f"any {SPOKEN[name][0]}?"))
            if index % 5 == 0:
                _score_boxes(examinee, labels, scores)
                text = examinee.ask("Are there any abnormalities on this Chest X-ray?")
                exact.append({name for name in FINDINGS if name in text} == set(labels.present))
        click.echo(f"evaluated {phantoms} held-out phantoms", err=True)
        figures: dict[str, Any] = {
            "phantoms": phantoms,
            "yes_no": {
                name: yes_no_figures(leanings[name], [name in one.present for one in held_out.labels])
                for name in FINDINGS
            },
            "mean_iou": {name: round(float(np.mean(values)), 3) for name, values in scores.items()},
            "iou_counts": {name: len(values) for name, values in scores.items()},
            "classification_exact": round(float(np.mean(exact)), 3),
        }
        if real:
            figures["nih_val"] = _real_figures(model, tokenizer, geometry, real)
    return figures


def _real_figures(model: Any, tokenizer: Any, geometry: Geometry, real: RealSet) -> dict[str, Any]:
    leanings: dict[str, list[float]] = {name: [] for name in FINDINGS}
    for film in real.films:
        crops, layout = cut(film.pixels, geometry)
        examinee = Examinee(model, tokenizer, crops[:, 0], (layout.height, layout.width))
        for name in FINDINGS:
            leanings[name].append(examinee.leaning(f"any {SPOKEN[name][0]}?"))
    yes_no = {
        name: yes_no_figures(leanings[name], [name in film.present for film in real.films])
        for name in FINDINGS
    }
    note = "text-mined labels; far too few positives for a verdict"
    return {"films": len(real.films), "yes_no": yes_no, "note": note}
