"""Margins between Yes and No, and what was right → a temperature, and how far confidence is from accuracy.

Guo et al. 2017, "On calibration of modern neural networks", sections 3 and 4.2. Numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = 15
"""Equal widths over 0 to 1. The likelier of two answers has 0.5 or more, so the upper 8 are used."""
RESAMPLES = 2000
LIMIT = 20.0
"""Temperatures are sought between its reciprocal and it."""
STEPS = 80
"""Of golden-section search: 0.618^80 of the interval is far below a float's last bit."""


def softplus(values: Floats) -> Floats:
    """log(1 + exp(x)) without overflow."""
    out: Floats = np.logaddexp(0.0, values)
    return out


def negative_log_likelihood(margins: Floats, truths: Bools, temperature: float) -> float:
    """Mean of -log p(right answer) in nats; `margins`: logit of Yes minus logit of No."""
    towards = np.where(truths, margins, -margins) / temperature
    return float(softplus(-towards).mean())


def fit_temperature(margins: Floats, truths: Bools) -> float:
    """The temperature of least negative log-likelihood, between 1/LIMIT and LIMIT.

    In 1/temperature the likelihood is a logistic regression with one weight: convex, one minimum, so
    golden-section search finds it.
    """
    low, high = 1 / LIMIT, LIMIT
    ratio = (math.sqrt(5) - 1) / 2

    def cost(inverse: float) -> float:
        return negative_log_likelihood(margins, truths, 1 / inverse)

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return 2 / (low + high)


def confidences(margins: Floats, temperature: float) -> Floats:
    """Probability of the likelier answer, 0.5 to 1."""
    out: Floats = np.exp(-softplus(-np.abs(margins) / temperature))
    return out


@dataclass(frozen=True)
class Binned:
    """Sums over questions, group by group and bin by bin: `[groups, BINS]` each."""

    count: Floats
    confidence: Floats
    right: Floats

    def error(self, weights: Floats | None = None) -> Floats:
        """Expected calibration error `[n]` with groups taken as often as `weights` `[n, groups]` say.

        Sum over bins of the share of questions there times |mean confidence - share that was right|.
        """
        if weights is None:
            weights = np.ones((1, len(self.count)))
        gap = np.abs(weights @ self.confidence - weights @ self.right).sum(axis=1)
        out: Floats = gap / np.maximum((weights @ self.count).sum(axis=1), 1)
        return out


def binned(margins: Floats, truths: Bools, groups: npt.NDArray[np.int64], temperature: float) -> Binned:
    """Confidence and correctness of each question in its group's bins; a margin of 0 means Yes."""
    sure = confidences(margins, temperature)
    right = (margins >= 0) == truths
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    shape = (int(groups.max()) + 1, BINS)
    count, confidence, correct = (np.zeros(shape) for _ in range(3))
    np.add.at(count, (groups, bins), 1.0)
    np.add.at(confidence, (groups, bins), sure)
    np.add.at(correct, (groups, bins), right.astype(np.float64))
    return Binned(count, confidence, correct)


def compare(
    margins: Floats, truths: Bools, groups: npt.NDArray[np.int64], temperature: float
) -> dict[str, object]:
    """ECE and likelihood with temperature 1 and with the one given, on questions it was not fitted on.

    Intervals are percentiles (2.5, 97.5) over RESAMPLES bootstrap samples of whole groups, since questions
    about one film (or patient) go together.
    """
    before, after = (binned(margins, truths, groups, t) for t in (1.0, temperature))
    many = len(before.count)
    weights = (
        np.random.default_rng(0).multinomial(many, np.full(many, 1 / many), RESAMPLES).astype(np.float64)
    )
    spread = before.error(weights), after.error(weights)
    found: dict[str, object] = {"bins": BINS, "resamples": RESAMPLES}
    rows = ("before", before, spread[0], 1.0), ("after", after, spread[1], temperature)
    for name, one, errors, used in rows:
        found[name] = {
            "ece": float(one.error()[0]),
            "interval_95": _interval(errors),
            "nll": negative_log_likelihood(margins, truths, used),
        }
    found["ece_change_interval_95"] = _interval(spread[1] - spread[0])
    return found


def _interval(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.025, 0.975))]
