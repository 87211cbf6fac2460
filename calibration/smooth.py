"""How hard to smooth, and which threshold to take, by the error each choice makes in a layer's own output.

SmoothQuant (Xiao et al. 2022, eq. 4): s_c = max|X_c|^alpha / max|W_c|^(1-alpha), here rounded to a power of
two. Only groups behind a LayerNorm are smoothed: there it costs nothing when the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from radvlm_edge.calibration.histograms import ChannelHistograms
from radvlm_edge.calibration.thresholds import thresholds
from radvlm_edge.export.int8_graph import quantise_weight
from radvlm_edge.export.int8_table import LEVELS, METHODS, Group, half_steps

Floats = npt.NDArray[np.float32]

ALPHAS = (0.35, 0.5, 0.65, 0.8)
"""Tried beside no smoothing; SmoothQuant's authors use 0.5 to 0.9."""
LARGEST_SHIFT = 8
"""Channels are divided or multiplied by 256 at most: half precision must hold what comes out."""


def shifts_for(inputs: Floats, weights: Floats, alpha: float) -> tuple[int, ...]:
    """Exponents of the channels' divisors, around a geometric mean of 1.

    `inputs` and `weights` are the largest magnitudes of every channel, `[channels]`.
    """
    live = (inputs > 0) & (weights > 0)
    if not live.any():
        return tuple(0 for _ in inputs)
    logs = np.zeros(len(inputs))
    logs[live] = alpha * np.log2(inputs[live]) - (1 - alpha) * np.log2(weights[live])
    logs[live] -= logs[live].mean()
    return tuple(int(one) for one in np.clip(np.rint(logs), -LARGEST_SHIFT, LARGEST_SHIFT))


def choose(histogram: ChannelHistograms, rows: Floats, weight: Floats, *, smooth: bool) -> Group:
    """Choose alpha and threshold for a group of layers by the error in its output on sampled inputs.

    `rows` is `[n, in]`, `weight` `[in, out]` (the group's layers side by side).
    """
    exact = rows @ weight
    power = max(float(np.mean(exact * exact)), 1e-30)
    largest = np.abs(weight).max(axis=1)
    tried: Sequence[float | None] = (None, *ALPHAS) if smooth else (None,)
    best: Group | None = None
    for alpha in tried:
        shifts = () if alpha is None else shifts_for(histogram.largest, largest, alpha)
        codes, steps = quantise_weight(weight, shifts)
        dequantised = codes * steps
        smoothed = np.ldexp(rows, -np.array(shifts, np.int32)) if shifts else rows
        found = thresholds(histogram.merged(shifts))
        for method in METHODS:
            difference = fake_quantised(smoothed, found[method]) @ dequantised - exact
            error = float(np.mean(difference * difference)) / power
            if best is None or error < best.error:
                best = Group(found, method, alpha, shifts, error)
    assert best is not None
    return best


def fake_quantised(values: Floats, threshold: float) -> Floats:
    """Values as the quantised graph sees them."""
    step = half_steps(np.array(threshold))
    out: Floats = np.clip(np.rint(values / step), -LEVELS - 1, LEVELS).astype(np.float32) * step
    return out
