"""Is a confidence what it says? Expected calibration error over answers that were right or wrong.

Guo et al. 2017, section 2: the mean over bins of |mean confidence - share right|, weighted by their counts.
What counts as right is the task's own rule (evaluate_figures.py), so figures of tasks are not comparable.
"""

from __future__ import annotations

import numpy as np

from radvlm_edge.benchmarks.metrics_counts import Floats, Formula, Sums, mean_of, ratio

BINS = 10


def calibration_row(confidence: float, right: float) -> dict[str, float]:
    """Counts of one answer; confidence from 0 to 1."""
    at = min(int(confidence * BINS), BINS - 1)
    return {
        "sure answers": 1,
        f"sure {at}": confidence,
        f"right {at}": right,
        f"count {at}": 1,
        "sure": confidence,
        "right": right,
    }


def calibration_error(sums: Sums) -> Floats:
    """ECE; NaN where no answer had a confidence."""
    gaps = sum(np.abs(sums[f"sure {at}"] - sums[f"right {at}"]) for at in range(BINS))
    return ratio(np.asarray(gaps, np.float64), sums["sure answers"])


def bin_formulas() -> dict[str, Formula]:
    """Of each bin: mean confidence, share right and number of answers; for the diagram."""
    formulas: dict[str, Formula] = {}
    for at in range(BINS):
        formulas[f"sure {at}"] = mean_of(f"sure {at}", f"count {at}")
        formulas[f"right {at}"] = mean_of(f"right {at}", f"count {at}")
        formulas[f"count {at}"] = _column(f"count {at}")
    return formulas


def _column(name: str) -> Formula:
    return lambda sums: sums[name]
