"""Figures on real films: NIH validation films, radiologists' boxes, lungs of covid_cxr.

A model trained on NIH's train split is only judged on the val split here; nano_heads judges its tower
on all films.
covid_cxr is looked at here and nowhere else: nothing that ships is shaped by it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from radvlm_edge.benchmarks.nano_answerers import Answerer
from radvlm_edge.benchmarks.nano_heads import auroc_table
from radvlm_edge.benchmarks.nano_scores import box_figures
from radvlm_edge.training.films import RealFilm, RealSet, load_real
from radvlm_edge.training.nih_labels import PICK
from radvlm_edge.training.phrasings import LOCATE, PLAIN, SPOKEN
from radvlm_edge.training.scores import Bools, Box, Floats

MOST_TOKENS = 60


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
