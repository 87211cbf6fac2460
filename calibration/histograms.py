"""Magnitudes of a tensor seen once, in bounded memory, a histogram for every channel.

The range of a histogram is a power of two. A value beyond it doubles the range as often as it takes, and
adjacent bins are added up: no count moves to a wrong bin, so the result is the one a histogram with the
final range would have had from the start, whatever the order of the values. Dividing a channel by a power
of two (SmoothQuant's factors are such) only relabels its range, so the histogram of the smoothed tensor
follows from the channels' exactly, for every factor tried afterwards: one pass serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import ParityError

BINS = 1024
"""A power of two; 4 to 8 bins a step of int8, the largest value lying in the upper half of the range."""
FIRST_EXPONENT = -40
"""A range no activation fits in: the first values set the real one."""


@dataclass(frozen=True)
class Histogram:
    """Counts of magnitudes of a whole tensor."""

    counts: npt.NDArray[np.int64]
    """`[bins]`: bin i holds i/bins to (i+1)/bins of the range."""
    range: float
    largest: float
    """The exact largest magnitude."""

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        return self.range / len(self.counts)


class ChannelHistograms:
    """Streaming histograms of `[rows, channels]` tensors, or of whole tensors as one channel."""

    def __init__(self, channels: int, bins: int = BINS) -> None:
        if bins & (bins - 1):
            raise ValueError(f"{bins} bins; a power of two is needed")
        self.counts = np.zeros((channels, bins), np.uint32)
        self.exponents = np.full(channels, FIRST_EXPONENT, np.int32)
        """Channel c's range is 2**exponents[c]."""
        self.largest = np.zeros(channels, np.float32)

    @property
    def channels(self) -> int:
        return len(self.exponents)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count `[..., channels]` values (any shape, if there is one channel).

        Raises ParityError for values that are infinite or NaN.
        """
        magnitudes = np.abs(values.reshape(-1, self.channels))
        largest = magnitudes.max(axis=0)
        if not np.isfinite(largest).all():
            raise ParityError("the vision graph gives values that are not finite; export the checkpoint anew")
        self.largest = np.maximum(self.largest, largest)
        self._grow(np.where(largest > 0, np.frexp(largest)[1], FIRST_EXPONENT))
        bins = self.counts.shape[1]
        index = np.ldexp(magnitudes, (bins.bit_length() - 1) - self.exponents).astype(np.int64)
        index += np.arange(self.channels) * bins
        found = np.bincount(index.reshape(-1), minlength=self.counts.size)
        self.counts += found.reshape(self.counts.shape).astype(np.uint32)

    def _grow(self, exponents: npt.NDArray[Any]) -> None:
        """Make every channel's range exceed its largest value: 2**exponent by frexp's definition."""
        doublings = np.maximum(exponents - self.exponents, 0)
        for times in np.unique(doublings[doublings > 0]):
            rows = doublings == times
            self.counts[rows] = coarsened(self.counts[rows], int(times))
        self.exponents += doublings.astype(np.int32)

    def merged(self, shifts: tuple[int, ...] = ()) -> Histogram:
        """The histogram of the whole tensor, channel c divided by 2**shifts[c]."""
        divided = np.array(shifts, np.int32) if shifts else np.zeros(self.channels, np.int32)
        exponents = self.exponents - divided
        used = self.largest > 0
        top = int(exponents[used].max()) if used.any() else FIRST_EXPONENT
        counts = np.zeros(self.counts.shape[1], np.int64)
        for exponent in np.unique(exponents):
            rows = self.counts[exponents == exponent].astype(np.int64).sum(axis=0)
            counts += coarsened(rows[None], max(top - int(exponent), 0))[0]
        largest = float(np.ldexp(self.largest, -divided).max())
        return Histogram(counts, 2.0**top, largest)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `restore` takes back."""
        return {"counts": self.counts, "exponents": self.exponents, "largest": self.largest}

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go on from another histogram's state. Raises ValueError if its shape differs."""
        if any(getattr(self, name).shape != array.shape for name, array in state.items()):
            raise ValueError("the state is of another tensor")
        self.counts, self.exponents, self.largest = (
            state[name].copy() for name in ("counts", "exponents", "largest")
        )


def coarsened(counts: npt.NDArray[Any], times: int) -> npt.NDArray[Any]:
    """`[rows, bins]` counts in a range doubled `times` times."""
    rows, bins = counts.shape
    factor = 1 << min(times, bins.bit_length() - 1)
    out = np.zeros_like(counts)
    out[:, : bins // factor] = counts.reshape(rows, bins // factor, factor).sum(axis=2)
    return out
