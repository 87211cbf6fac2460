"""How well boxes were found: the authors' figures with their quirks (metrics_paper.py), and corrected ones.

Both take the average precision of each film alone, predictions in the order of the text, then the mean over
films. The corrected one matches a predicted box with the best of the true boxes still free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from radvlm_edge.benchmarks.metrics_paper import envelope_area, paper_average_precision, paper_pairs
from radvlm_edge.training.scores import Box, iou

MIN_IOU = 0.5


@dataclass(frozen=True)
class BoxFigures:
    """Figures over films; all 0 to 1."""

    films: int
    map: float
    """Mean over films with a true box of each film's average precision at IoU 0.5."""
    map_paper: float
    """The authors': their matching, and films without a true box count 0."""
    mean_iou_paper: float
    """Sum of the IoUs of all predicted with all true boxes, over the number of those pairs."""
    precision: float
    """Predicted boxes matched one to one with a true box at IoU 0.5, over all predicted ones."""
    recall: float
    f1: float
    mean_iou: float
    """Over true boxes: the IoU with the predicted box each is matched with, 0 where it is missed."""


def average_precision(predicted: Sequence[Box], true: Sequence[Box], min_iou: float = MIN_IOU) -> float:
    """Average precision of one film: area under the monotone envelope of precision over recall.

    Each prediction, in order, takes the true box it overlaps most of those not taken; it is right if by
    at least `min_iou`. 0 where there is no prediction or no true box.
    """
    if not predicted or not true:
        return 0.0
    taken: set[int] = set()
    points: list[tuple[float, float]] = []
    for number, box in enumerate(predicted, 1):
        overlaps = [(iou(box, one), -at) for at, one in enumerate(true) if at not in taken]
        best, at = max(overlaps, default=(0.0, 0))
        if overlaps and best >= min_iou:
            taken.add(-at)
        points.append((len(taken) / len(true), len(taken) / number))
    return envelope_area(points)


def matches(predicted: Sequence[Box], true: Sequence[Box]) -> list[tuple[int, int, float]]:
    """(predicted, true, IoU) one to one, best overlaps first; overlaps of 0 are no match."""
    pairs = sorted(
        ((iou(box, one), i, j) for i, box in enumerate(predicted) for j, one in enumerate(true)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    used_i: set[int] = set()
    used_j: set[int] = set()
    found = []
    for overlap, i, j in pairs:
        if overlap > 0 and i not in used_i and j not in used_j:
            used_i.add(i)
            used_j.add(j)
            found.append((i, j, overlap))
    return found


def box_figures(predicted: Sequence[Sequence[Box]], true: Sequence[Sequence[Box]]) -> BoxFigures:
    """Figures of films, each with predicted and true boxes. Raises ValueError for unequal numbers."""
    films = list(zip(predicted, true, strict=True))
    pairs = [paper_pairs(found, known) for found, known in films]
    matched = [matches(found, known) for found, known in films]
    hits = sum(overlap >= MIN_IOU for film in matched for _, _, overlap in film)
    said, there = sum(map(len, predicted)), sum(map(len, true))
    return BoxFigures(
        len(films),
        _mean([average_precision(found, known) for found, known in films if known]),
        _mean([paper_average_precision(found, known) for found, known in films]),
        sum(overlap for overlap, _ in pairs) / max(sum(count for _, count in pairs), 1),
        hits / said if said else 0.0,
        hits / there if there else 0.0,
        2 * hits / (said + there) if said + there else 0.0,
        sum(overlap for film in matched for _, _, overlap in film) / there if there else 0.0,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
