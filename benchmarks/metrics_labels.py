"""Which of the 13 findings an answer names: F1 as the authors score it, and with negations understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radvlm_edge.runtime.answers import LABELS, parse_labels

NO_FINDING = "no finding"
"""The 14th label: none of the others."""


@dataclass(frozen=True)
class LabelFigures:
    """Micro and macro averages, and each label's F1; all 0 to 1, 0 where undefined."""

    micro_f1: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    f1: dict[str, float]


def substring_labels(text: str) -> tuple[str, ...]:
    """Labels that occur in a text in any way: the authors' rule, for which `no edema` is edema."""
    return tuple(label for label in LABELS if label in text.lower())


def label_figures(
    answers: Sequence[str], true: Sequence[frozenset[str]], *, metrics: str, no_finding: bool = False
) -> LabelFigures:
    """Compare answers with the true labels of their films.

    metrics: `paper`, substring matches; `strict`, negations understood.
    no_finding: 14 labels instead of 13. Raises ValueError for other metrics or unequal numbers.
    """
    if metrics not in ("paper", "strict"):
        raise ValueError(f"metrics {metrics!r}; paper and strict are known")
    read = substring_labels if metrics == "paper" else parse_labels
    pairs = list(zip(answers, true, strict=True))
    said = _table([frozenset(read(answer)) for answer, _ in pairs], no_finding)
    real = _table([known for _, known in pairs], no_finding)
    hits, claimed, there = (said & real).sum(0), said.sum(0), real.sum(0)
    precision, recall = _ratio(hits, claimed), _ratio(hits, there)
    f1 = _ratio(2 * hits, claimed + there)
    names = (*LABELS, NO_FINDING) if no_finding else LABELS
    return LabelFigures(
        float(_ratio(2 * hits.sum(keepdims=True), claimed.sum(keepdims=True) + there.sum(keepdims=True))[0]),
        float(precision.mean()),
        float(recall.mean()),
        float(f1.mean()),
        dict(zip(names, f1.tolist(), strict=True)),
    )


def _table(labels: Sequence[frozenset[str]], no_finding: bool) -> npt.NDArray[np.bool_]:
    """`[films, 13 or 14]`."""
    table = np.array([[label in own for label in LABELS] for own in labels], np.bool_).reshape(
        -1, len(LABELS)
    )
    return np.column_stack([table, ~table.any(axis=1)]) if no_finding else table


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
