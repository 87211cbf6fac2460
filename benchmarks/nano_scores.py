"""Answers → figures: balanced accuracy, doubt, AP at IoU 0.5, label F1, AUROC with intervals.

Plain numpy; what a definition comes from stands at the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radvlm_edge.training.scores import Bools, Box, Floats, auroc, balanced_accuracy, iou

DOUBT = (0.2, 0.8)
"""A probability of Yes in between counts as doubt."""


@dataclass(frozen=True)
class Decision:
    """One yes/no question and what the model made of it."""

    about: str
    """The finding asked about, without side."""
    truth: bool
    """Whether it is there."""
    yes_is_right: bool
    """Whether Yes is the right answer: not the truth where the question is negated."""
    probability: float
    """Of Yes, against No."""

    @property
    def right(self) -> bool:
        return (self.probability > 0.5) == self.yes_is_right


def yes_no_figures(decisions: Sequence[Decision]) -> dict[str, object]:
    """Balanced accuracy per finding and their mean, share of doubt, share right."""
    names = sorted({one.about for one in decisions})
    each: dict[str, float | None] = {}
    for name in names:
        own = [one for one in decisions if one.about == name]
        each[name] = balanced_accuracy([one.truth for one in own], [one.right for one in own])
    known = [value for value in each.values() if value is not None]
    doubts = [DOUBT[0] <= one.probability <= DOUBT[1] for one in decisions]
    return {
        "questions": len(decisions),
        "balanced_accuracy": {name: rounded(value) for name, value in each.items()},
        "mean_balanced_accuracy": rounded(float(np.mean(known)) if known else None),
        "doubtful": rounded(float(np.mean(doubts)) if doubts else None),
        "right": rounded(float(np.mean([one.right for one in decisions])) if decisions else None),
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def average_precision(stated: Sequence[Box], true: Sequence[Box], threshold: float = 0.5) -> float:
    """AP of one answer as RadVLM scores it: boxes in the order stated, each matched to the free true
    box it overlaps most, precision made monotone, area under precision over recall.

    Source: uzh-dqbm-cmi/RadVLM, compute_metrics_tasks.py. An answer without boxes scores 0.
    """
    if not true:
        raise ValueError("average precision needs at least one true box")
    free = list(range(len(true)))
    hits = np.zeros(len(stated), bool)
    for index, box in enumerate(stated):
        best = max(free, key=lambda k: iou(box, true[k]), default=None)
        if best is not None and iou(box, true[best]) >= threshold:
            hits[index] = True
            free.remove(best)
    if not hits.any():
        return 0.0
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(stated) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], found / len(true)])
    return float((np.diff(recall) * envelope).sum())


def box_figures(pairs: Sequence[tuple[Sequence[Box], Sequence[Box]]]) -> dict[str, object]:
    """(stated, true) boxes of each question → mAP at 0.5, mean IoU of true boxes with the best stated."""
    if not pairs:
        return {"questions": 0, "map50": None, "mean_iou": None}
    aps = [average_precision(stated, true) for stated, true in pairs]
    best = [max((iou(box, one) for box in stated), default=0.0) for stated, true in pairs for one in true]
    return {
        "questions": len(pairs),
        "map50": round(float(np.mean(aps)), 4),
        "mean_iou": round(float(np.mean(best)), 4),
    }


def label_figures(
    stated: Sequence[frozenset[str]], true: Sequence[frozenset[str]], names: Sequence[str]
) -> dict[str, object]:
    """F1 of each label over reports, their mean (macro) and the share of reports with exactly the right ones.

    A label that is neither stated nor true anywhere scores 0, as in scikit-learn's default.
    """
    each = {}
    for name in names:
        both = sum(name in s and name in t for s, t in zip(stated, true, strict=True))
        either = sum((name in s) + (name in t) for s, t in zip(stated, true, strict=True))
        each[name] = round(2 * both / either, 4) if either else 0.0
    exact = [
        s & set(names) == t & set(names) for s, t in zip(stated, true, strict=True)
    ]  # labels outside `names` are not counted against a report
    return {
        "reports": len(true),
        "f1": each,
        "macro_f1": round(float(np.mean(list(each.values()))), 4),
        "exact": round(float(np.mean(exact)), 4) if exact else None,
    }


def auroc_interval(
    scores: Floats,
    truth: Bools,
    patients: Sequence[str],
    groups: npt.NDArray[np.int64] | None = None,
    repeats: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUROC and its 95 % percentile interval, resampling whole patients.

    Films of one patient are alike, so resampling films would promise too much.
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(np.array(patients), return_inverse=True)
    films = [np.flatnonzero(index == one) for one in range(len(names))]
    drawn = []
    for _ in range(repeats):
        rows = np.concatenate([films[one] for one in rng.integers(len(names), size=len(names))])
        value = auroc(scores[rows], truth[rows], None if groups is None else groups[rows])
        if np.isfinite(value):
            drawn.append(value)
    if not drawn:
        return auroc(scores, truth, groups), float("nan"), float("nan")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return auroc(scores, truth, groups), float(low), float(high)
