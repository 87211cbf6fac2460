"""Figures on real films: NIH validation films, radiologists' boxes, lungs of covid_cxr.

A model trained on NIH's train split is only judged on the val split, or by heads of which each is
trained without the patients it is judged on (`fold_heads`); the figures say which it was.
covid_cxr is looked at here and nowhere else: nothing that ships is shaped by it.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.benchmarks.nano_answerers import Answerer
from radvlm_edge.benchmarks.nano_hardness import ridge_head
from radvlm_edge.benchmarks.nano_scores import Bools, Box, Floats, auroc_interval, box_figures
from radvlm_edge.errors import RadvlmError
from radvlm_edge.training.films import RealFilm, RealSet, load_real
from radvlm_edge.training.nih_labels import PICK
from radvlm_edge.training.phrasings import LOCATE, PLAIN, SPOKEN

LEAST_POSITIVES = 15
"""Labels with fewer positive films get no AUROC: the interval would span almost everything."""
MOST_TOKENS = 60


class TooFewError(RadvlmError):
    """Scores and labels that do not fit together."""


def patient_folds(patients: Sequence[str], folds: int = 5) -> npt.NDArray[np.int64]:
    """A fold for every film, the same for all films of one patient, independent of all else."""
    order = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    fold = {name: index % folds for index, name in enumerate(order)}
    return np.array([fold[name] for name in patients], np.int64)


def fold_heads(features: Floats, truth: Bools, folds: npt.NDArray[np.int64], ridge: float = 300.0) -> Floats:
    """Scores `[n]` of linear heads on frozen features `[n, d]`, each fold scored by a head that never saw it.

    Compare them within a fold only. Raises TooFewError where a fold's complement has one class.
    """
    scores = np.zeros(len(truth))
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        if truth[train].all() or not truth[train].any():
            raise TooFewError(f"fold {fold}: the other folds' films are all of one class; use fewer folds")
        middle, spread = features[train].mean(0), features[train].std(0) + 1e-6
        fitted, offset = ridge_head((features[train] - middle) / spread, truth[train], ridge)
        scores[test] = (features[test] - middle) / spread @ fitted + offset
    return scores


def auroc_table(
    scores: dict[str, Floats],
    truths: dict[str, Bools],
    patients: Sequence[str],
    folds: dict[str, npt.NDArray[np.int64]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Label → positives, films, AUROC and its 95 % interval over resampled patients.

    A score of NaN leaves the film out (its label is not known). `folds` names, for each label, the
    fold whose head gave a film's score: then only films of one fold are compared.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, score in scores.items():
        known = np.isfinite(score)
        truth = truths[name][known]
        row: dict[str, Any] = {"positives": int(truth.sum()), "films": int(known.sum())}
        if LEAST_POSITIVES <= truth.sum() < len(truth):
            groups = folds[name][known] if folds else None
            own = [patient for patient, here in zip(patients, known, strict=True) if here]
            value, low, high = auroc_interval(score[known], truth, own, groups)
            row |= {"auroc": round(value, 3), "interval95": [round(low, 3), round(high, 3)]}
        else:
            row["auroc"] = None
            row["why"] = f"fewer than {LEAST_POSITIVES} positive films, or none without it"
        table[name] = row
    return table


def question_scores(answerer: Answerer, films: Sequence[RealFilm]) -> dict[str, Floats]:
    """Label → log odds of Yes for every film, NaN where the label is not known."""
    scores = {name: np.full(len(films), np.nan) for name in PICK}
    for index, film in enumerate(films):
        looking = answerer.look(film.pixels)
        for name in PICK:
            if film.known(name):
                chance = looking.probability(PLAIN[0].format(SPOKEN[name][0]))
                chance = min(max(chance, 1e-9), 1 - 1e-9)
                scores[name][index] = np.log(chance / (1 - chance))
    return scores


def truths_of(films: Sequence[RealFilm]) -> dict[str, Bools]:
    return {name: np.array([name in film.present for film in films], bool) for name in PICK}


def drawn_boxes(answerer: Answerer, films: RealSet) -> dict[str, Any]:
    """Grounding against radiologists' boxes."""
    pairs: list[tuple[list[Box], list[Box]]] = []
    for film in films.films:
        if film.drawn:
            looking = answerer.look(film.pixels)
            for name in sorted({one.name for one in film.drawn}):
                text = looking.ask(LOCATE[0].format(name), MOST_TOKENS)
                pairs.append((_stated(text), [one.box for one in film.drawn if one.name == name]))
    return box_figures(pairs)


def lung_boxes(answerer: Answerer, folder: Path, most: int | None = None) -> dict[str, Any]:
    """Both lungs on covid_cxr's frontal films, for evaluation only."""
    true: dict[str, list[tuple[str, Box]]] = {}
    with (folder / "lung_boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            x1, y1, x2, y2 = (float(row[key]) for key in ("x0", "y0", "x1", "y1"))
            true.setdefault(row["image"], []).append((row["label"], (x1, y1, x2, y2)))
    pairs: list[tuple[list[Box], list[Box]]] = []
    for name, lungs in list(true.items())[:most]:
        looking = answerer.look(np.asarray(Image.open(folder / "images" / name).convert("L")))
        for label, box in lungs:
            pairs.append((_stated(looking.ask(LOCATE[0].format(label), MOST_TOKENS)), [box]))
    return box_figures(pairs)


def _stated(text: str) -> list[Box]:
    from radvlm_edge.benchmarks.nano_run import stated_boxes

    return stated_boxes(text)


def measure_real(answerer: Answerer, data: Path) -> dict[str, Any]:
    """All of it for a finished model, trained on NIH's train split or not: val films, boxes, lungs."""
    val, train = load_real(data, "val"), load_real(data, "train")
    scores = question_scores(answerer, val.films)
    return {
        "nih_val": {
            "note": "films of patients the model has not seen; text-mined labels",
            "films": len(val.films),
            "auroc": auroc_table(scores, truths_of(val.films), [film.patient for film in val.films]),
        },
        "nih_boxes": {
            "val": drawn_boxes(answerer, val),
            "train": drawn_boxes(answerer, train)
            | {"note": "seen in training if the model was trained on NIH"},
        },
        "covid_cxr_lungs": lung_boxes(answerer, data / "covid_cxr"),
    }
