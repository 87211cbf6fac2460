"""Histogram → the largest magnitude int8 should still represent, by five rules.

minmax: the largest value seen. p99.9, p99.99: the value that fraction of magnitudes stays below. mse: least
mean square error of rounding and clipping. entropy: least information lost, as TensorRT's calibrator did
it (Migacz, 8-bit inference with TensorRT, GTC 2017).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from radvlm_edge.calibration.histograms import Histogram
from radvlm_edge.export.int8_table import LEVELS

Floats = npt.NDArray[np.float64]

ENTROPY_LEVELS = 128
"""Magnitudes an 8-bit histogram of |x| distinguishes, in Migacz's rule."""
ENTROPY_STEP = 8
"""Bins between thresholds tried: a hundredth of the range of 1024 bins."""
MSE_TRIED = 128
"""Thresholds tried by mse, evenly spread up to the largest value."""


def thresholds(histogram: Histogram) -> dict[str, float]:
    """All five, by the names of `int8_table.METHODS`; zeros for a tensor that was always zero."""
    if histogram.largest == 0:
        return dict.fromkeys(("minmax", "entropy", "p99.9", "p99.99", "mse"), 0.0)
    return {
        "minmax": histogram.largest,
        "entropy": entropy(histogram),
        "p99.9": percentile(histogram, 0.999),
        "p99.99": percentile(histogram, 0.9999),
        "mse": mean_square(histogram),
    }


def percentile(histogram: Histogram, fraction: float) -> float:
    """The magnitude `fraction` of all values stays below, interpolated inside its bin."""
    below = np.cumsum(histogram.counts)
    wanted = fraction * below[-1]
    index = int(np.searchsorted(below, wanted))
    before = below[index] - histogram.counts[index]
    part = (wanted - before) / max(histogram.counts[index], 1)
    return min((index + float(part)) * histogram.width, histogram.largest)


def mean_square(histogram: Histogram, tried: int = MSE_TRIED) -> float:
    """The threshold with the least mean square error, every value standing at the middle of its bin.

    The part of the error inside a step is not resolved by the bins where steps are narrower: it is
    step²/12 there.
    """
    centres: Floats = (np.arange(len(histogram.counts), dtype=np.float64) + 0.5) * histogram.width
    candidates = np.arange(1, tried + 1) * (histogram.largest / tried)
    errors = [_square_error(histogram, centres, float(one)) for one in candidates]
    return float(candidates[int(np.argmin(errors))])


def _square_error(histogram: Histogram, centres: Floats, threshold: float) -> float:
    step = threshold / LEVELS
    if step <= 2 * histogram.width:
        inside = np.full(len(centres), step * step / 12)
    else:
        inside = (centres - np.rint(centres / step) * step) ** 2 + histogram.width**2 / 12
    clipped = (centres - threshold) ** 2
    error = np.where(centres <= threshold, inside, clipped)
    return float(error @ histogram.counts)


def entropy(histogram: Histogram, step: int = ENTROPY_STEP) -> float:
    """The threshold whose 128-level histogram is nearest to the clipped one in Kullback-Leibler distance."""
    counts = histogram.counts.astype(np.float64)
    last = int(np.nonzero(counts)[0][-1]) + 1
    if last <= ENTROPY_LEVELS:
        return histogram.largest
    tried = [*range(ENTROPY_LEVELS, last, step), last]
    losses = [divergence(counts, bins) for bins in tried]
    best = tried[int(np.argmin(losses))]
    return float(min(best * histogram.width, histogram.largest))


def divergence(counts: Floats, bins: int) -> float:
    """KL distance of the first `bins` bins, the rest added to the last, to their 128-level version."""
    kept = counts[:bins]
    reference = kept.copy()
    reference[-1] += counts[bins:].sum()
    levels = np.arange(bins) * ENTROPY_LEVELS // bins
    filled = kept > 0
    sums = np.bincount(levels, kept, ENTROPY_LEVELS)
    members = np.bincount(levels, filled, ENTROPY_LEVELS)
    quantised = np.where(filled, (sums / np.maximum(members, 1))[levels], 0.0)
    p, q = reference / reference.sum(), quantised / quantised.sum()
    both = p > 0
    # A bin that holds only what was clipped has no quantised mass: Migacz gives it a little.
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))
