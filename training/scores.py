"""What a decision and a box are worth; plain numpy, for training's own figures and for the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2, any unit."""
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def balanced_accuracy(truth: Sequence[bool] | Bools, right: Sequence[bool] | Bools) -> float | None:
    """Mean of the shares answered rightly where the finding is there and where it is not.

    None where one of the two does not occur.
    """
    there, well = np.array(truth, bool), np.array(right, bool)
    if not there.any() or there.all():
        return None
    return float((well[there].mean() + well[~there].mean()) / 2)


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, wide) * max(0.0, tall)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both) if areas > both else 0.0


def auroc(scores: Floats, truth: Bools, groups: npt.NDArray[np.int64] | None = None) -> float:
    """Chance that a positive scores higher than a negative of the same group, ties counting half.

    One group gives the ordinary area under the ROC curve. Groups are for scores of differently
    trained models, which may not be compared with each other. NaN where no pair exists.
    """
    groups = np.zeros(len(scores), np.int64) if groups is None else groups
    won = pairs = 0.0
    for group in np.unique(groups):
        own = groups == group
        high, low = scores[own & truth], np.sort(scores[own & ~truth])
        below = np.searchsorted(low, high, "left")
        upto = np.searchsorted(low, high, "right")
        won += float((below + 0.5 * (upto - below)).sum())
        pairs += len(high) * len(low)
    return won / pairs if pairs else float("nan")
