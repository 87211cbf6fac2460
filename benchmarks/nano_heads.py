"""What a frozen tower knows of real films: heads trained fold by fold, patients kept together.

    python -m radvlm_edge.benchmarks.nano_heads CHECKPOINT

Reads all films under RADVLM_EDGE_DATA's nih_cxr14/. Each film is scored by a head that never saw its
patient; the tower may have (the figures say so where the checkpoint's card lists the films).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.nano_answerers import CheckpointAnswerer
from radvlm_edge.benchmarks.nano_hardness import ridge_head
from radvlm_edge.benchmarks.nano_scores import auroc_interval
from radvlm_edge.errors import RadvlmError
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.films import RealFilm, load_real
from radvlm_edge.training.nih_labels import PICK
from radvlm_edge.training.scores import Bools, Floats

LEAST_POSITIVES = 15
"""Labels with fewer positive films get no AUROC: the interval would span almost everything."""


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


def tower_features(answerer: CheckpointAnswerer, films: Sequence[RealFilm]) -> Floats:
    """Mean and maximum over the patches of the base view and of all tiles, `[n, 4 d]`."""
    import torch

    from radvlm_edge.training.tower import features_of, pixels_of

    rows = []
    with torch.no_grad():
        for film in films:
            crops, _ = cut(film.pixels, answerer.geometry)
            hidden = features_of(answerer.model.model.vision_tower, pixels_of(crops[:, 0]))
            base, tiles = hidden[0], hidden[1:].flatten(0, 1)
            rows.append(torch.cat([base.mean(0), base.amax(0), tiles.mean(0), tiles.amax(0)]).numpy())
    return np.stack(rows).astype(np.float64)


def measure_heads(
    features: Floats, films: Sequence[RealFilm], seen: frozenset[str], folds: int = 5
) -> dict[str, Any]:
    """AUROC per label over all films; `seen` names the films the tower was trained on."""
    patients = [film.patient for film in films]
    fold_of = patient_folds(patients, folds)
    scores: dict[str, Floats] = {}
    truths = {name: np.array([name in film.present for film in films], bool) for name in PICK}
    for name in PICK:
        known = np.array([film.known(name) for film in films], bool)
        scores[name] = np.full(len(films), np.nan)
        if truths[name].sum() >= LEAST_POSITIVES:
            scores[name][known] = fold_heads(features[known], truths[name][known], fold_of[known])
    return {
        "films": len(films),
        "tower_was_trained_on": sum(film.name in seen for film in films),
        "folds": f"{folds}, by patient; films are compared within a fold",
        "auroc": auroc_table(scores, truths, patients, dict.fromkeys(PICK, fold_of)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="AUROC of linear heads on a frozen tower, fold by fold.")
    parser.add_argument("checkpoint", type=Path)
    options = parser.parse_args()
    data = os.environ.get("RADVLM_EDGE_DATA")
    if not data:
        sys.exit("RADVLM_EDGE_DATA is unset; it names the folder that holds nih_cxr14/")
    films = [film for split in ("train", "val") for film in load_real(Path(data), split).films]
    card = json.loads((options.checkpoint / "radvlm_edge.json").read_text())
    seen = frozenset((card["trained_on"]["real_films"] or {"ids": []})["ids"])
    answerer = CheckpointAnswerer(options.checkpoint)
    figures = measure_heads(tower_features(answerer, films), films, seen)
    json.dump({"model": answerer.describe(), **figures}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
