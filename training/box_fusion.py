"""Several readers' boxes of one finding → one box: weighted-boxes fusion.

Solovyev, Wang, Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection
models", Image and Vision Computing 107 (2021), section 3, with one list of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from radvlm_edge.training.scores import Box, iou


@dataclass
class Fused:
    """A cluster of boxes and the box that stands for it."""

    box: Box
    """Coordinates averaged, weighted by the confidences."""
    confidence: float
    """Mean of the confidences."""
    members: list[tuple[Box, float]] = field(default_factory=list)

    def add(self, box: Box, confidence: float) -> None:
        self.members.append((box, confidence))
        total = sum(weight for _, weight in self.members)
        x1, y1, x2, y2 = (
            sum(one[corner] * weight for one, weight in self.members) / total for corner in range(4)
        )
        self.box, self.confidence = (x1, y1, x2, y2), total / len(self.members)


def fuse(boxes: Sequence[tuple[Box, float]], min_iou: float) -> list[Fused]:
    """Clusters of boxes (corners, confidence > 0), the most confident first.

    In descending order of confidence each box joins the cluster whose fused box it overlaps most, if
    by more than `min_iou`, or begins its own; the cluster's box is averaged anew at once. Among
    equal confidences the last comes first, as in the authors' package: with readers of equal weight
    the outcome may depend on it.
    """
    clusters: list[Fused] = []
    ordered = list(reversed(boxes))
    ordered.sort(key=lambda one: -one[1])
    for box, confidence in ordered:
        best, at = min_iou, None
        for cluster in clusters:
            overlap = iou(cluster.box, box)
            if overlap > best:
                best, at = overlap, cluster
        if at is None:
            at = Fused(box, confidence)
            clusters.append(at)
        at.add(box, confidence)
    clusters.reverse()
    clusters.sort(key=lambda one: -one.confidence)
    return clusters
