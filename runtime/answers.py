"""Answer text → boxes and labels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

LABELS = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "enlarged cardiomediastinum",
    "fracture",
    "lung lesion",
    "lung opacity",
    "pleural effusion",
    "pleural other",
    "pneumonia",
    "pneumothorax",
    "support devices",
)
"""The 13 findings RadVLM names (CheXpert's, without `No Finding`)."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]")
_NEGATION = re.compile(
    r"\b(no|not|without|neither|nor|never|free of|clear of|absence of|absent|negative for|rules? out|"
    r"ruled out|can't|cannot|isn't|aren't|unremarkable)\b"
)
_AFTERWARDS = re.compile(r"^\W*(?:(?:is|are|was|were|has been|have been)\s+)?(?:not\b|absent\b|ruled out\b)")
_CLAUSE = re.compile(
    r"[.;:!?\n]|\b(?:but|however|although|though|except|yet)\b|,\s*(?:there (?:is|are)|with)\b"
)
_LOCATED = re.compile(
    r"\b(?:an?|the)\s+(?!coordinates|bounding|location|position|findings|analysis)([a-z][a-z /-]{1,60}?)"
    r"(?:,|\s+(?:is|are|was|at|located|can be|lies)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Box:
    """A box named in an answer, in the film's own coordinates, origin at its top left."""

    label: str | None
    """What the answer says is there; `None` if the sentence does not say."""
    xyxy_fraction: tuple[float, float, float, float]
    """left, top, right, bottom as fractions of width and height, 0 to 1."""
    xyxy_pixels: tuple[int, int, int, int]
    """The same in pixels of the original film; right and bottom are exclusive."""


def parse_boxes(text: str, height: int, width: int) -> tuple[Box, ...]:
    """Boxes in an answer about a film of `height` by `width` pixels.

    Coordinates are clamped to the film; boxes that are then empty, or whose corners are in the
    wrong order, are left out: the model did not point anywhere.
    """
    boxes = []
    previous, label = 0, None
    for match in _BOX.finditer(text):
        left, top, right, bottom = (min(max(float(v), 0.0), 1.0) for v in match.groups())
        label = _label_before(text[previous : match.start()]) or label
        previous = match.end()
        if left < right and top < bottom:
            pixels = (
                math.floor(left * width),
                math.floor(top * height),
                math.ceil(right * width),
                math.ceil(bottom * height),
            )
            boxes.append(Box(label, (left, top, right, bottom), pixels))
    return tuple(boxes)


def _label_before(text: str) -> str | None:
    """The thing the words in front of a box speak of: `… the left lung is located at` → `left lung`."""
    found = _LOCATED.findall(text)
    if found:
        return str(found[-1]).strip().lower()
    named = [(text.lower().rfind(label), label) for label in LABELS if label in text.lower()]
    return max(named)[1] if named else None


def parse_labels(text: str) -> tuple[str, ...]:
    """The findings of `LABELS` an answer affirms, in that order.

    Within a clause, a finding behind a negation (`no`, `without`, `free of`, …) or before one
    (`pneumothorax is absent`) does not count. The authors' own scoring is a bare substring match,
    which counts `no pneumothorax` as a pneumothorax.
    """
    affirmed = set()
    for clause in _CLAUSE.split(text.lower()):
        negation = _NEGATION.search(clause)
        for label in LABELS:
            at = clause.find(label)
            if at < 0:
                continue
            behind = negation is not None and negation.start() < at
            if not behind and not _AFTERWARDS.match(clause[at + len(label) :]):
                affirmed.add(label)
    return tuple(label for label in LABELS if label in affirmed)
