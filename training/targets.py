"""A phantom's masks and boxes → what the tower is taught at every patch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import plan
from radvlm_edge.training.phantom import Phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS, SIDED
from radvlm_edge.training.phantom_regions import REGIONS, Box

PRESENCES = (
    *(f"{side} {name}" for name in SIDED for side in ("right", "left")),
    *(name for name in FINDINGS if name not in SIDED),
)
"""What the tower's presence head says, in order."""
BOXES = (*PRESENCES, *REGIONS)
"""What the tower says of every patch, in order: whether it belongs to it, and where the whole of it lies."""
PEAK = 200
"""A finding's target in its best patch is at least this, of 255, however small it is."""
LEAST_APART = 0.01
"""Boxes that hardly differ between films are taken to differ by so much, in fractions of the film."""


def presences_of(name: str) -> list[int]:
    """Indices in PRESENCES that belong to a finding, whatever its side."""
    return [index for index, one in enumerate(PRESENCES) if one.endswith(name)]


@dataclass(frozen=True)
class Targets:
    """Arrays of one film, or of N with a leading axis."""

    areas: npt.NDArray[np.uint8]
    """`[V, P, len(BOXES)]`: 255 times the share of each patch of each crop that each covers, regions
    without a mask by their box; small findings are raised to PEAK."""
    presence: npt.NDArray[np.bool_]
    """`[len(PRESENCES)]`."""
    boxes: npt.NDArray[np.float32]
    """`[len(BOXES), 4]` fractions; NaN where there is none."""

    @classmethod
    def stack(cls, films: list[Targets]) -> Targets:
        return cls(
            np.stack([one.areas for one in films]),
            np.stack([one.presence for one in films]),
            np.stack([one.boxes for one in films]),
        )


@dataclass(frozen=True)
class BoxSpread:
    """How far boxes lie apart from film to film; one figure for each of BOXES."""

    apart: npt.NDArray[np.float32]
    """Mean absolute distance of an edge from its median over films, in fractions: what an answer that does
    not look at the film costs."""

    @classmethod
    def of(cls, boxes: npt.NDArray[np.float32]) -> BoxSpread:
        """From `[N, len(BOXES), 4]`, NaN where there is none; LEAST_APART where too few are there to tell."""
        apart = np.full(boxes.shape[1], LEAST_APART, np.float32)
        for index in range(boxes.shape[1]):
            own = boxes[np.isfinite(boxes[:, index]).all(-1), index]
            if len(own) > 1:
                apart[index] = max(LEAST_APART, float(np.abs(own - np.median(own, 0)).mean()))
        return cls(apart)


def film_targets(phantom: Phantom, geometry: Geometry) -> Targets:
    """Everything the tower is taught about one phantom."""
    shape = phantom.pixels.shape
    layout = plan(shape[0], shape[1], geometry)
    views = 1 + layout.grid[0] * layout.grid[1]
    named: dict[str, Box] = dict(phantom.regions)
    for one in phantom.findings:
        name = f"{one.side} {one.name}".strip()
        named[name] = _union(named[name], one.box) if name in named else one.box
    areas = np.zeros((views, geometry.tokens_per_crop, len(BOXES)), np.uint8)
    boxes = np.full((len(BOXES), 4), np.nan, np.float32)
    for index, name in enumerate(BOXES):
        if name in named:
            boxes[index] = named[name]
            mask = phantom.masks.get(name)
            shares = _by_patch(_filled(named[name], shape) if mask is None else mask, geometry)
            if index < len(PRESENCES) and 0 < shares.max() < PEAK:
                # a few pixels are a small share of any patch, and must be seen all the same
                shares = np.minimum(shares.astype(np.float32) * (PEAK / shares.max()), 255).astype(np.uint8)
            areas[:, :, index] = shares
    presence = np.array([f"{name}" in named for name in PRESENCES])
    return Targets(areas, presence, boxes)


def _filled(box: Box, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A box as a mask `[H, W]`."""
    height, width = shape[:2]
    mask = np.zeros((height, width), bool)
    x1, y1, x2, y2 = box
    mask[int(y1 * height) : math.ceil(y2 * height), int(x1 * width) : math.ceil(x2 * width)] = True
    return mask


def _union(one: Box, other: Box) -> Box:
    """The box around two: several devices are taught as one area."""
    low, high = map(min, zip(one, other, strict=True)), map(max, zip(one, other, strict=True))
    x1, y1, _, _ = low
    _, _, x2, y2 = high
    return x1, y1, x2, y2


def _by_patch(mask: npt.NDArray[np.bool_], geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Share of each patch that a mask `[H, W]` covers, times 255: `[V, P]`, crops as `cut` cuts them."""
    height, width = mask.shape
    layout = plan(height, width, geometry)
    side = geometry.side
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    base = np.asarray(image.resize((side, side), Image.Resampling.BOX))
    scale = min(layout.canvas[1] / width, layout.canvas[0] / height)
    fitted = (
        min(math.ceil(height * scale), layout.canvas[0]),
        min(math.ceil(width * scale), layout.canvas[1]),
    )
    canvas = Image.new("L", (layout.canvas[1], layout.canvas[0]))
    corner = ((layout.canvas[1] - fitted[1]) // 2, (layout.canvas[0] - fitted[0]) // 2)
    canvas.paste(image.resize((fitted[1], fitted[0]), Image.Resampling.NEAREST), corner)
    rows, columns = layout.grid
    patches = np.asarray(canvas.resize((columns * side, rows * side), Image.Resampling.BOX))
    tiles = patches.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, side * side)
    return np.concatenate([base.reshape(1, -1), tiles])
