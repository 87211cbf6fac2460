"""Projected crops → the film's image tokens, in the order the language model was trained on."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.crops import Layout

Floats = npt.NDArray[np.float32]


def _taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Indices of the two source rows behind each target row, and the second one's weight.

    Source: torch.nn.functional.interpolate, mode bilinear, align_corners=False, antialias=False. It computes
    the source coordinate in float32 with one rounding (a fused multiply-add), hence the product in float64
    and one cast.
    """
    scale = np.float32(source) / np.float32(target)
    exact = (np.arange(target, dtype=np.float64) + 0.5) * np.float64(scale) - 0.5
    where = np.maximum(exact, 0.0).astype(np.float32)
    low = where.astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    return low, high, where - low.astype(np.float32)


def _mix(features: Floats, low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], weight: Floats) -> Floats:
    """Rows `low` and `high` of `features`, weighted."""
    out: Floats = features[low] * (np.float32(1) - weight) + features[high] * weight
    return out


def _across(features: Floats, columns: int) -> Floats:
    """The interpolation's first half: `[h, w, d]` to `[h, columns, d]`; no row depends on another."""
    low, high, weight = _taps(features.shape[1], columns)
    weight = weight[None, :, None]
    out: Floats = features[:, low] * (np.float32(1) - weight) + features[:, high] * weight
    return out


class Packer:
    """Image tokens `[layout.image_tokens, d]` float32, complete from the front as crops are added in order.

    The base view's tokens come first, then the tiles' feature map row by row, padding removed, interpolated
    down if it is larger than `max_crops` crops, `newline` `[d]` after each row. A row is complete once all
    tiles are there that it shows or is interpolated from. Every number is computed from the same ones in the
    same way, whatever crops are added at once: the tokens are the same bit for bit.
    Source: `pack_image_features` in transformers' modeling_llava_onevision.
    """

    def __init__(self, layout: Layout, newline: Floats) -> None:
        self.tokens: Floats = np.empty((layout.image_tokens, len(newline)), np.float32)
        self.ready = 0
        """Tokens that are complete."""
        self._layout, self._side = layout, round(layout.tokens_per_crop**0.5)
        self._crops = self._bands = 0
        self._waiting: deque[Floats] = deque()
        rows, columns = layout.features
        shown_rows, shown_columns = (part.stop - part.start for part in layout.unpadded)
        self._resized = (shown_rows, shown_columns) != layout.features
        self._film: Floats = np.empty((shown_rows, columns, len(newline)), np.float32)
        self._shown = self._written = 0
        self._low, self._high, self._weight = _taps(shown_rows, rows)
        self._lines = self.tokens[layout.tokens_per_crop :].reshape(rows, columns + 1, len(newline))
        self._lines[:, columns] = newline

    def add(self, features: Floats) -> None:
        """Take the next crops' projected tokens `[n, tokens, d]`. Raises BackendError for too many crops."""
        self._crops += len(features)
        if self._crops > self._layout.crops:
            raise BackendError(
                f"the vision engine gave tokens of {self._crops} crops; the film has {self._layout.crops}"
            )
        if self.ready == 0 and len(features):
            self.ready = self._layout.tokens_per_crop
            self.tokens[: self.ready] = features[0]
            features = features[1:]
        self._waiting.extend(features)
        while len(self._waiting) >= self._layout.grid[1]:
            self._add_band([self._waiting.popleft() for _ in range(self._layout.grid[1])])
        self._write_lines()

    def _add_band(self, tiles: list[Floats]) -> None:
        """A row of tiles: what of its feature rows shows film."""
        side, start = self._side, self._bands * self._side
        self._bands += 1
        shown, columns = self._layout.unpadded
        part = slice(max(shown.start, start) - start, min(shown.stop, start + side) - start)
        if part.start >= part.stop:
            return
        squares = np.stack(tiles).reshape(len(tiles), side, side, -1)[:, part]
        band = squares.swapaxes(0, 1).reshape(part.stop - part.start, len(tiles) * side, -1)[:, columns]
        if self._resized:
            band = _across(band, self._layout.features[1])
        self._film[self._shown : self._shown + len(band)] = band
        self._shown += len(band)

    def _write_lines(self) -> None:
        """Lines of tokens whose feature rows are there."""
        done = self._written
        self._written = int(np.searchsorted(self._high, self._shown)) if self._resized else self._shown
        part, columns = slice(done, self._written), self._layout.features[1]
        if self._resized:
            weight = self._weight[part, None, None]
            self._lines[part, :columns] = _mix(self._film, self._low[part], self._high[part], weight)
        else:
            self._lines[part, :columns] = self._film[part]
        self.ready += (self._written - done) * (columns + 1)


def pack(features: Floats, layout: Layout, newline: Floats) -> Floats:
    """Pack projected crops `[n, tokens, d]` into image tokens `[layout.image_tokens, d]` float32 (`Packer`).

    Raises BackendError unless there are as many crops as the layout has.
    """
    packer = Packer(layout, newline)
    packer.add(features)
    if packer.ready != len(packer.tokens):
        raise BackendError(
            f"the vision engine gave tokens of {len(features)} crops; the film has {layout.crops}"
        )
    return packer.tokens
