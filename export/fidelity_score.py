"""One combination of artefacts against the checkpoint's answers: counts first, figures at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.export import fidelity_metrics as metrics
from radvlm_edge.runtime.answers import parse_labels

Floats = npt.NDArray[np.float32]


@dataclass
class Score:
    """Counts over all prompts of one combination."""

    divergences: list[float] = field(default_factory=list)
    same_choice: int = 0
    answers: int = 0
    same_answer: int = 0
    decided: int = 0
    flips: int = 0
    undecided: int = 0
    """Of the flips: the checkpoint said yes or no, the bundle neither."""
    same_labels: int = 0
    side_changes: int = 0
    negation_changes: int = 0
    overlaps: list[float] = field(default_factory=list)

    def add_logits(self, expected: Floats, given: Floats) -> None:
        """Next-token distributions over the checkpoint's own answer, logits `[t, vocab]`."""
        self.divergences += metrics.divergence(expected, given).tolist()
        self.same_choice += int((expected.argmax(axis=1) == given.argmax(axis=1)).sum())

    def add_answer(self, expected: str, given: str, *, yes_no: bool) -> None:
        """Greedy answers of checkpoint and bundle to the same prompt."""
        self.answers += 1
        self.same_answer += expected == given
        self.same_labels += parse_labels(expected) == parse_labels(given)
        self.side_changes += metrics.sides(expected) != metrics.sides(given)
        self.negation_changes += metrics.negations(expected) != metrics.negations(given)
        self.overlaps += metrics.box_overlap(expected, given)
        wanted = metrics.decision(expected)
        if yes_no and wanted is not None:
            got = metrics.decision(given)
            self.decided += 1
            self.flips += got != wanted
            self.undecided += got is None

    def figures(self) -> dict[str, Any]:
        """What fidelity.json holds of one combination; a figure of nothing is null."""
        low, high = metrics.wilson(self.flips, self.decided)
        kld = np.array(self.divergences)
        return {
            "next_token": {
                "tokens": len(kld),
                "kld_mean": float(kld.mean()) if len(kld) else None,
                "kld_p99": float(np.quantile(kld, 0.99)) if len(kld) else None,
                "top1": _share(self.same_choice, len(kld)),
            },
            "answers": {"asked": self.answers, "identical": _share(self.same_answer, self.answers)},
            "yes_no": {
                "decided": self.decided,
                "flips": self.flips,
                "undecided": self.undecided,
                "flip_rate": _share(self.flips, self.decided),
                "interval_95": [low, high],
            },
            "labels": {"identical": _share(self.same_labels, self.answers)},
            "laterality_changes": self.side_changes,
            "negation_changes": self.negation_changes,
            "boxes": {
                "compared": len(self.overlaps),
                "mean_iou": float(np.mean(self.overlaps)) if self.overlaps else None,
                "box_iou_loss": 1 - float(np.mean(self.overlaps)) if self.overlaps else None,
            },
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def judged(figures: dict[str, Any]) -> bool:
    """True if anything a limit is about was compared at all."""
    return bool(figures["yes_no"]["decided"] or figures["boxes"]["compared"])


def beyond(figures: dict[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Which limits a combination is beyond, one phrase each; the measured value counts, not its interval."""
    found = []
    flips, loss = figures["yes_no"]["flip_rate"], figures["boxes"]["box_iou_loss"]
    if flips is not None and flips > limits["flip_rate"]:
        found.append(
            f"{figures['yes_no']['flips']} of {figures['yes_no']['decided']} yes/no answers turn round "
            f"({flips:.1%}, limit {limits['flip_rate']:.1%})"
        )
    if loss is not None and loss > limits["box_iou_loss"]:
        found.append(f"boxes lose {loss:.3f} of their overlap (limit {limits['box_iou_loss']:g})")
    return found
