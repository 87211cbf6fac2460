"""Film → crops: which canvas a film is fitted into, the crops cut from it, the tokens it will cost.

The rules are those of transformers' `LlavaOnevisionImageProcessor` (PIL backend) and of LLaVA-NeXT's
`process_anyres_image`; `export/parity.py` proves the crops equal bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.errors import FilmError
from radvlm_edge.geometry import Geometry


@dataclass(frozen=True)
class Layout:
    """Where a film's pixels end up: enough to pack its features and to say what it costs."""

    height: int
    """Height of the film in pixels."""
    width: int
    canvas: tuple[int, int]
    """(height, width) in pixels of the chosen pinpoint."""
    grid: tuple[int, int]
    """(rows, columns) of tiles cut from the canvas."""
    unpadded: tuple[slice, slice]
    """Rows and columns of the tiles' feature map that show film, not padding."""
    features: tuple[int, int]
    """(rows, columns) of the feature map after interpolation to `max_crops` crops' worth."""
    tokens_per_crop: int

    @property
    def crops(self) -> int:
        """Base view and tiles."""
        return 1 + self.grid[0] * self.grid[1]

    @property
    def image_tokens(self) -> int:
        """Base view, feature rows, and one newline token a row."""
        rows, columns = self.features
        return self.tokens_per_crop + rows * columns + rows


def best_canvas(height: int, width: int, pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Pick the pinpoint that keeps most of the film's pixels and wastes least padding.

    Source: `select_best_resolution` in transformers' image_processing_utils.
    """
    best, best_kept, best_waste = pinpoints[0], -1, math.inf
    for canvas_h, canvas_w in pinpoints:
        scale = min(canvas_w / width, canvas_h / height)
        kept = min(int(width * scale) * int(height * scale), height * width)
        waste = canvas_h * canvas_w - kept
        if kept > best_kept or (kept == best_kept and waste < best_waste):
            best, best_kept, best_waste = (canvas_h, canvas_w), kept, waste
    return best


def _fitted(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) in pixels of the film inside the canvas, aspect ratio kept."""
    canvas_h, canvas_w = canvas
    scale_w, scale_h = canvas_w / width, canvas_h / height
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas_h), canvas_w
    return canvas_h, min(math.ceil(width * scale_h), canvas_w)


def _unpadded(height: int, width: int, rows: int, columns: int) -> tuple[slice, slice]:
    """Feature rows and columns that show film.

    Source: `unpad_image`; rounding to 7 digits before truncation is transformers' since 4.47.
    """
    if width / height > columns / rows:
        pad = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(pad, rows - pad), slice(0, columns)
    pad = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(0, rows), slice(pad, columns - pad)


def plan(height: int, width: int, geometry: Geometry) -> Layout:
    """Say how a film of `height` by `width` pixels will be cut and what it will cost.

    Raises FilmError for a film with no pixels or so thin that no feature row would be left.
    """
    if height < 1 or width < 1:
        raise FilmError(f"film is {width}x{height} pixels; at least 1x1 is needed")
    canvas = best_canvas(height, width, geometry.pinpoints)
    grid = canvas[0] // geometry.crop_px, canvas[1] // geometry.crop_px
    rows, columns = grid[0] * geometry.side, grid[1] * geometry.side
    unpadded = _unpadded(height, width, rows, columns)
    rows, columns = (part.stop - part.start for part in unpadded)
    if rows > 0 and columns > 0:
        excess = math.sqrt(rows * columns / (geometry.max_crops * geometry.side**2))
        if excess > 1.1:
            rows, columns = int(rows // excess), int(columns // excess)
    if rows < 1 or columns < 1:
        raise FilmError(
            f"film is {width}x{height} pixels: too thin to show anything at this model's resolution; "
            "crop it to the chest"
        )
    return Layout(height, width, canvas, grid, unpadded, (rows, columns), geometry.tokens_per_crop)


def cut(pixels: npt.NDArray[np.uint8], geometry: Geometry) -> tuple[npt.NDArray[np.uint8], Layout]:
    """Cut a film `[H, W]` (or `[H, W, 3]`) uint8 into crops `[n, 3, S, S]` uint8 and its layout.

    Crop 0 is the whole film squashed to S by S (aspect ratio not kept); the tiles follow row by
    row, cut from the film fitted into its canvas on black. Resizing is Pillow's antialiased bicubic.
    """
    layout = plan(pixels.shape[0], pixels.shape[1], geometry)
    size = geometry.crop_px
    film = Image.fromarray(pixels)
    base = np.asarray(film.resize((size, size), Image.Resampling.BICUBIC))

    fitted_h, fitted_w = _fitted(layout.height, layout.width, layout.canvas)
    canvas = np.zeros((*layout.canvas, *pixels.shape[2:]), np.uint8)
    top, left = (layout.canvas[0] - fitted_h) // 2, (layout.canvas[1] - fitted_w) // 2
    fitted = film.resize((fitted_w, fitted_h), Image.Resampling.BICUBIC)
    canvas[top : top + fitted_h, left : left + fitted_w] = np.asarray(fitted)

    rows, columns = layout.grid
    tiles = canvas.reshape(rows, size, columns, size, *pixels.shape[2:]).swapaxes(1, 2)
    views = np.concatenate([base[None], tiles.reshape(rows * columns, size, size, *pixels.shape[2:])])
    if views.ndim == 3:
        return np.repeat(views[:, None], 3, axis=1), layout
    return np.ascontiguousarray(views.transpose(0, 3, 1, 2)), layout
