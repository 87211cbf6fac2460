"""Streaming histograms and the thresholds read from them, against numpy on the data itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.calibration.histograms import ChannelHistograms, Histogram
from radvlm_edge.calibration.thresholds import entropy, mean_square, percentile, thresholds
from radvlm_edge.errors import ParityError

BINS = 1024


def streamed(values: np.ndarray, chunks: int = 7) -> Histogram:
    histogram = ChannelHistograms(1)
    for part in np.array_split(values, chunks):
        histogram.add(part)
    return histogram.merged()


def drawn(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    if kind == "normal":
        values = rng.standard_normal(50_000)
    elif kind == "laplace":
        values = rng.laplace(0, 0.02, 50_000)
    else:  # GELU-like: a spike at zero, a tail, and one channel of outliers
        values = np.concatenate([np.maximum(rng.standard_normal(50_000), -0.17), rng.normal(40, 1, 30)])
        rng.shuffle(values)
    return values.astype(np.float32)


KINDS = ("normal", "laplace", "outliers")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(-8, 8), min_size=5, max_size=5),
    st.permutations(range(6)),
)
def test_any_order_of_parts_gives_numpys_histogram_of_the_smoothed_tensor(
    seed: int, shifts: list[int], order: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((60, 5)) * 10.0 ** rng.uniform(-6, 4, (60, 1)) * [1, 0.01, 300, 0, 7]
    values = values.astype(np.float32)
    histogram = ChannelHistograms(5, 64)
    for index in order:
        histogram.add(values[index * 10 : index * 10 + 10])
    merged = histogram.merged(tuple(shifts))
    smoothed = np.abs(values) / np.float32(2.0) ** np.array(shifts, np.float32)
    assert merged.largest == smoothed.max() < merged.range <= 2 * smoothed.max()
    expected, _ = np.histogram(smoothed, bins=64, range=(0, merged.range))
    # An all-zero channel has a range of its own, and all of its counts in the first bin.
    np.testing.assert_array_equal(merged.counts, expected)


def test_memory_is_bounded_and_every_value_counted() -> None:
    histogram = ChannelHistograms(16)
    size = histogram.counts.nbytes
    rng = np.random.default_rng(0)
    for power in range(12):
        histogram.add((rng.standard_normal((3, 40, 16)) * 3.0**power).astype(np.float32))
    assert histogram.counts.nbytes == size
    assert histogram.merged().total == 12 * 3 * 40 * 16


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ParityError, match="not finite"):
        ChannelHistograms(2).add(np.array([[1, value]], np.float32))


def test_a_tensor_of_zeros_has_thresholds_of_zero() -> None:
    histogram = ChannelHistograms(2)
    histogram.add(np.zeros((4, 2), np.float32))
    assert set(thresholds(histogram.merged()).values()) == {0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_and_percentiles_are_numpys(kind: str) -> None:
    values = drawn(kind)
    histogram = streamed(values)
    assert thresholds(histogram)["minmax"] == np.abs(values).max()
    for fraction in (0.5, 0.999, 0.9999):
        expected = float(np.quantile(np.abs(values), fraction, method="inverted_cdf"))
        assert percentile(histogram, fraction) == pytest.approx(expected, abs=histogram.width)


def rounding_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / 127
    return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_mse_threshold_is_as_good_as_brute_force_on_the_data(kind: str) -> None:
    values = drawn(kind).astype(np.float64)
    ours = rounding_error(values, mean_square(streamed(values.astype(np.float32))))
    tried = np.abs(values).max() * np.arange(1, 601) / 600
    best = min(rounding_error(values, float(one)) for one in tried)
    assert ours <= 1.03 * best
    if kind == "normal":
        assert ours < 0.99 * rounding_error(values, float(np.abs(values).max()))


def reference_entropy(counts: list[int], step: int) -> int:
    """Number of bins kept, as the slides of Migacz (GTC 2017) write the loop out."""
    last = max(i for i, count in enumerate(counts) if count) + 1
    best, best_loss = 0, math.inf
    for kept in [*range(128, last, step), last]:
        reference = list(counts[:kept])
        reference[-1] += sum(counts[kept:])
        levels: list[list[int]] = [[] for _ in range(128)]
        for i in range(kept):
            levels[i * 128 // kept].append(i)
        expanded = [0.0] * kept
        for members in levels:
            filled = [i for i in members if counts[i] > 0]
            for i in filled:
                expanded[i] = sum(counts[j] for j in members) / len(filled)
        p_sum, q_sum = sum(reference), sum(expanded)
        loss = 0.0
        for p, q in zip(reference, expanded, strict=True):
            if p:
                loss += p / p_sum * math.log((p / p_sum) / max(q / q_sum, 1e-12))
        if loss < best_loss:
            best, best_loss = kept, loss
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_written_out_loops(kind: str) -> None:
    histogram = streamed(drawn(kind))
    kept = reference_entropy([int(count) for count in histogram.counts], 8)
    assert entropy(histogram) == min(kept * histogram.width, histogram.largest)
    if kind == "outliers":
        assert entropy(histogram) < 0.5 * histogram.largest
