"""RadVLM's own scoring of boxes and answers, quirks included; corrected figures are in metrics_boxes.py.

Source: uzh-dqbm-cmi/RadVLM, radvlm/evaluation, compute_metrics_tasks.py and models_loading_inference.py.
Quirks:

* an answer is cut to what follows its last `user` or `assistant` (the prompt is split off that way);
* coordinates are taken as written: neither clamped nor ordered, none with a sign, none behind a space;
* each predicted box is held against the true box it overlaps most, taken or not: a second box for a true
  one is wrong even if it also fits a free one;
* a film without a predicted or without a true box scores 0, also where neither is right;
* the mean IoU is over every pair of a predicted and a true box of a film.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from radvlm_edge.training.scores import Box

MIN_IOU = 0.5
_BOX = re.compile(r"\[([\d.]+),\s*([\d.]+),\s*([\d.]+),\s*([\d.]+)\]")
_ROLE = re.compile(r"user|assistant")


def paper_answer(text: str) -> str:
    """What is left of an answer where prompt and answer are decoded together and split at role names."""
    return _ROLE.split(text)[-1].strip()


def paper_boxes(text: str) -> list[Box]:
    """Boxes as the authors' pattern finds them, in the text's order.

    A coordinate such as `1.2.3`, at which their code stops with an error, makes no box here.
    """
    found = []
    for numbers in _BOX.findall(text):
        try:
            left, top, right, bottom = map(float, numbers)
        except ValueError:
            continue
        found.append((left, top, right, bottom))
    return found


def paper_iou(one: Box, other: Box) -> float:
    """Intersection over union without any check of the boxes; 0 where theirs divides by 0."""
    wide = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    tall = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = areas - wide * tall
    return wide * tall / union if union else 0.0


def paper_average_precision(predicted: Sequence[Box], true: Sequence[Box], min_iou: float = MIN_IOU) -> float:
    """Average precision of one film as the authors match boxes; 0 where there is none on either side."""
    if not predicted or not true:
        return 0.0
    taken: set[int] = set()
    points: list[tuple[float, float]] = []
    for number, box in enumerate(predicted, 1):
        overlaps = [paper_iou(box, one) for one in true]
        best = max(range(len(true)), key=overlaps.__getitem__)
        if overlaps[best] >= min_iou:
            taken.add(best)
        points.append((len(taken) / len(true), len(taken) / number))
    return envelope_area(points)


def envelope_area(points: Sequence[tuple[float, float]]) -> float:
    """Area under the monotone envelope of precision over recall; points `(recall, precision)` in order."""
    area, recall = 0.0, 0.0
    for index, (reached, _) in enumerate(points):
        area += (reached - recall) * max(precision for _, precision in points[index:])
        recall = reached
    return area


def paper_pairs(predicted: Sequence[Box], true: Sequence[Box]) -> tuple[float, int]:
    """Sum of the IoUs of every predicted with every true box of a film, and the number of those pairs."""
    return sum(paper_iou(box, one) for box in predicted for one in true), len(predicted) * len(true)
