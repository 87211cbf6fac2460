"""Figures that say how far two sets of answers, or two distributions, are apart; numpy only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from radvlm_edge.runtime.answers import parse_boxes

Floats = npt.NDArray[np.float32]

_SIDE = re.compile(r"\b(left|right|bilateral|both)\b")
_NEGATION = re.compile(
    r"\b(no|not|without|neither|nor|never|free of|clear of|absence of|absent|negative for|ruled out|normal|"
    r"unremarkable)\b|n't\b"
)
_DECISION = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def wilson(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927, without continuity correction); (0, 1) of nothing."""
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == count else centre + half)


def decision(answer: str) -> bool | None:
    """Whether an answer begins with yes or no; `None` if with neither."""
    found = _DECISION.match(answer)
    return None if found is None else found[1].lower() == "yes"


def sides(answer: str) -> list[str]:
    """Every side an answer names, in order; `both` counts as `bilateral`."""
    return [side.replace("both", "bilateral") for side in _SIDE.findall(answer.lower())]


def negations(answer: str) -> int:
    """How many negations an answer holds."""
    return len(_NEGATION.findall(answer.lower()))


def box_overlap(expected: str, given: str) -> list[float]:
    """For each box of one answer the overlap (IoU) with the other's box at the same place in the text.

    A box too many counts as one that overlaps with nothing.
    """
    ours, theirs = ([box.xyxy_fraction for box in parse_boxes(text, 1, 1)] for text in (expected, given))
    paired = [iou(a, b) for a, b in zip(ours, theirs, strict=False)]
    return paired + [0.0] * abs(len(ours) - len(theirs))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes left, top, right, bottom."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common
    return common / both if both > 0 else 0.0


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Natural logarithms of probabilities along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def divergence(expected: Floats, given: Floats) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence in nats of `given` from `expected`, row by row (logits `[t, vocab]`)."""
    p, q = log_softmax(expected), log_softmax(given)
    result: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1).clip(min=0.0)
    return result


def cosines(expected: Floats, given: Floats) -> npt.NDArray[np.float64]:
    """Cosine of each crop's projected tokens, `[n, tokens, d]` → `[n]`."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (expected, given))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: npt.NDArray[np.float64] = (a * b).sum(axis=1) / norms
    return result
