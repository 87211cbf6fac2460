"""Projected crops → the film's image tokens, in the order the language model was trained on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from radvlm_edge.runtime.crops import Layout

Floats = npt.NDArray[np.float32]


def _taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Indices of the two source rows behind each target row, and the second one's weight.

    torch computes the source coordinate in float32 with one rounding (a fused multiply-add), hence
    the product in float64 and one cast.
    """
    scale = np.float32(source) / np.float32(target)
    exact = (np.arange(target, dtype=np.float64) + 0.5) * np.float64(scale) - 0.5
    where = np.maximum(exact, 0.0).astype(np.float32)
    low = where.astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    return low, high, where - low.astype(np.float32)


def bilinear(features: Floats, rows: int, columns: int) -> Floats:
    """Resize `[h, w, d]` to `[rows, columns, d]` as torch's `interpolate(mode="bilinear")` does.

    Source: torch.nn.functional.interpolate, align_corners=False, antialias=False.
    """
    low, high, weight = _taps(features.shape[1], columns)
    weight = weight[None, :, None]
    wide = features[:, low] * (np.float32(1) - weight) + features[:, high] * weight
    low, high, weight = _taps(features.shape[0], rows)
    weight = weight[:, None, None]
    out: Floats = wide[low] * (np.float32(1) - weight) + wide[high] * weight
    return out


def pack(features: Floats, layout: Layout, newline: Floats) -> Floats:
    """Pack projected crops `[n, tokens, d]` into image tokens `[layout.image_tokens, d]` float32.

    The base view's tokens come first, then the tiles' feature map row by row, padding removed,
    interpolated down if it is larger than `max_crops` crops, `newline` `[d]` after each row.
    Source: `pack_image_features` in transformers' modeling_llava_onevision.
    """
    grid_rows, grid_columns = layout.grid
    side = round(layout.tokens_per_crop**0.5)
    dim = features.shape[-1]
    tiles = features[1:].reshape(grid_rows, grid_columns, side, side, dim)
    canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(grid_rows * side, grid_columns * side, dim)
    film = canvas[layout.unpadded]
    if film.shape[:2] != layout.features:
        film = bilinear(film, *layout.features)
    ends = np.broadcast_to(newline.astype(np.float32), (film.shape[0], 1, dim))
    lines = np.concatenate([film, ends], axis=1).reshape(-1, dim)
    return np.ascontiguousarray(np.concatenate([features[0], lines]), dtype=np.float32)
