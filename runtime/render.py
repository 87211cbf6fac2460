"""Stored pixel values → 8-bit grey. One function a step, in the order DICOM prescribes (PS3.4 N.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

RENDERS = ("voi", "minmax", "mimic")
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def window(values: Floats, center: float, width: float, function: str = "LINEAR") -> Floats:
    """Apply a VOI window; the result is 0 to 255, not rounded.

    PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.2 (LINEAR_EXACT), C.11.2.1.3.1 (SIGMOID). Raises
    ValueError for a width the function does not allow, or an unknown function.
    """
    if function == "LINEAR":
        if width < 1:
            raise ValueError(f"window width {width:g} is below 1")
        if width == 1:
            return np.where(values <= center - 0.5, 0.0, 255.0)
        scaled = (values - (center - 0.5)) / (width - 1) + 0.5
    elif function in ("LINEAR_EXACT", "SIGMOID"):
        if width <= 0:
            raise ValueError(f"window width {width:g} is not positive")
        if function == "SIGMOID":
            out: Floats = 255.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700)))
            return out
        scaled = (values - center) / width + 0.5
    else:
        raise ValueError("the VOI LUT function is none of LINEAR, LINEAR_EXACT, SIGMOID")
    return np.clip(scaled, 0.0, 1.0) * 255.0


def lookup(values: Floats, first: int, table: npt.NDArray[Any]) -> Floats:
    """Look values up; those below `first` take the first entry, those beyond the table the last.

    PS3.3 C.11.1.1 (modality) and C.11.2.1.1 (VOI).
    """
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index].astype(np.float64)


def stretch(values: Floats, valid: Mask | None = None) -> Floats:
    """Minimum to 0, maximum to 255, over the valid values; a flat film becomes 0."""
    inside = values if valid is None or not valid.any() else values[valid]
    low, high = float(inside.min()), float(inside.max())
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0


def equalise(pixels: Bytes) -> Bytes:
    """Histogram equalisation as OpenCV's `equalizeHist`, which MIMIC-CXR-JPG was made with.

    Source: Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042, and OpenCV's formula
    `round((cdf(v) - cdf_min) / (n - cdf_min) * 255)`.
    """
    counts = np.bincount(pixels.ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    rest = pixels.size - int(counts[first])
    if rest == 0:
        return pixels.copy()
    scale = np.float32(255.0) / np.float32(rest)
    above = np.cumsum(counts) - counts[first]
    above[: first + 1] = 0
    table: Bytes = np.clip(np.rint(above.astype(np.float32) * scale), 0, 255).astype(np.uint8)
    out: Bytes = table[pixels]
    return out


def to_bytes(values: Floats) -> Bytes:
    """0 to 255 rounded to the nearest whole."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def render_minmax(stored: npt.NDArray[Any]) -> Bytes:
    """RadVLM's own preparation of VinDr films: stored values stretched and cut off, nothing else.

    No rescale, window, inversion or padding is applied, 8-bit values stay as they are. Source:
    uzh-dqbm-cmi/RadVLM, radvlm/data/preprocess_scripts/dicom2jpg_vindrcxr.py.
    """
    if stored.dtype == np.uint8:
        return stored.copy()
    return stretch(stored.astype(np.float64)).astype(np.uint8)


def render_mimic(values: Floats, valid: Mask, inverted: bool) -> Bytes:
    """MIMIC-CXR-JPG's preparation: stretch, invert MONOCHROME1, equalise the histogram."""
    grey = stretch(values, valid)
    grey = 255.0 - grey if inverted else grey
    grey[~valid] = 0.0
    return equalise(grey.astype(np.uint8))


def render_voi(values: Floats, valid: Mask, inverted: bool, voi: Callable[[Floats], Floats] | None) -> Bytes:
    """The file's own presentation: its window or LUT (else min to max), then inversion."""
    grey = voi(values) if voi else stretch(values, valid)
    grey = 255.0 - grey if inverted else grey
    grey[~valid] = 0.0
    return to_bytes(grey)
