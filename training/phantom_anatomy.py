"""A chest drawn from a random generator: where its structures lie and how much they attenuate.

Body coordinates: x grows to the image's right, the patient's left; y grows downwards; the thorax
is about 2 wide, its apices near y = -1. Every field is `[H, W]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Field = npt.NDArray[np.floating[Any]]

SIDES = {"right": -1.0, "left": 1.0}
"""The patient's sides, as signs of x: the patient's right is on the image's left."""


def step(distance: Field, width: float) -> Field:
    """0 to 1 across an edge of this width, smooth; `distance` is positive inside."""
    t = np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)
    smooth: Field = t * t * (3 - 2 * t)
    return smooth


def band(distance: Field, half_width: float | Field, softness: float) -> Field:
    """1 within `half_width` of a line, falling off over `softness`."""
    return step(half_width - np.abs(distance), softness)


def clouds(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Field:
    """Smooth noise of unit spread with about `cells` bumps along each side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float32)


@dataclass(frozen=True)
class Lung:
    """One lung before any finding: an ellipse-topped column cut by its hemidiaphragm."""

    sign: float
    centre: float
    """|x| of its axis at mid height."""
    half_width: float
    apex: float
    base: float
    """y of the dome's top."""
    dome: float
    """How far the costophrenic angle lies below the dome."""

    def radius(self, x: Field, y: Field) -> Field:
        """Below 1 inside the chest wall, 1 at it; the diaphragm is not part of this."""
        axis = self.centre + 0.10 * y
        half = self.half_width * (1 + 0.10 * y)
        across = (x * self.sign - axis) / half
        shoulder = self.apex + 0.95
        up = np.minimum(y - shoulder, 0) / np.float32(0.95)
        radius: Field = across * across + up * up
        return radius

    def floor(self, x: Field) -> Field:
        """y of the hemidiaphragm at each x."""
        across = (x * self.sign - self.centre * 0.92) / self.half_width
        return self.base + self.dome * np.clip(across * across, 0, 1.6)


@dataclass(frozen=True)
class Anatomy:
    """The proportions of one person."""

    lungs: dict[str, Lung]
    heart_ratio: float
    """Width of the heart over that of the thorax; above 0.55 is an enlarged heart."""
    heart_y: float
    heart_tilt: float
    wall: float
    """Half width of the torso."""
    female: bool
    rib_spacing: float
    rib_phase: float
    clavicle_y: float
    clavicle_slope: float
    arms_up: bool


def draw_anatomy(rng: np.random.Generator, enlarged_heart: bool) -> Anatomy:
    """Proportions at random; a heart ratio of 0.37 to 0.49, or 0.57 to 0.72 when enlarged."""
    inspiration = rng.normal(0, 0.09)
    half = rng.uniform(0.40, 0.47)
    lungs = {}
    for side, sign in SIDES.items():
        higher = 0.05 if side == "right" else 0.0
        lungs[side] = Lung(
            sign=sign,
            centre=rng.uniform(0.50, 0.56),
            half_width=half * rng.uniform(0.95, 1.05),
            apex=rng.normal(-1.0, 0.04),
            base=0.56 - higher + inspiration + rng.normal(0, 0.05),
            dome=rng.uniform(0.16, 0.30),
        )
    return Anatomy(
        lungs=lungs,
        heart_ratio=rng.uniform(0.57, 0.72) if enlarged_heart else rng.uniform(0.37, 0.49),
        heart_y=0.24 + inspiration + rng.normal(0, 0.04),
        heart_tilt=rng.uniform(0.3, 0.75),
        wall=rng.uniform(1.12, 1.45),
        female=rng.random() < 0.45,
        rib_spacing=rng.uniform(0.17, 0.21),
        rib_phase=rng.random(),
        clavicle_y=rng.normal(-0.80, 0.06),
        clavicle_slope=rng.uniform(0.0, 0.30),
        arms_up=rng.random() < 0.4,
    )


def lung_fields(anatomy: Anatomy, x: Field, y: Field) -> dict[str, Field]:
    """Air-filled area of each side, 0 to 1, heart not yet in front of it."""
    return {
        side: step(1 - lung.radius(x, y), 0.22) * step(lung.floor(x) - y, 0.05)
        for side, lung in anatomy.lungs.items()
    }


def heart_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Cardiac silhouette, 0 to 1: a tilted ellipse two thirds to the patient's left."""
    width = anatomy.heart_ratio * 0.97
    cx = np.float32(0.30 * width)
    tall = 0.40 + 0.20 * anatomy.heart_ratio
    dx, dy = x - cx, y - anatomy.heart_y
    lean = dx - anatomy.heart_tilt * 0.55 * dy
    inside = 1 - (lean / width) ** 2 - np.where(dy < 0, dy / tall, dy / (1.25 * tall)) ** 2
    return step(inside, 0.45)


def mediastinum_field(x: Field, y: Field, anatomy: Anatomy) -> Field:
    """Great vessels and spine's soft tissue; the aortic knob bulges to the patient's left."""
    half = 0.15 + 0.05 * np.clip(y + 0.5, 0, 1)
    column = band(x, half, 0.12) * step(y + 1.15, 0.2)
    knob = step(1 - ((x - 0.11) / 0.15) ** 2 - ((y + 0.43) / 0.19) ** 2, 0.9)
    both: Field = np.maximum(column, 0.9 * knob)
    return both


def spine_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Vertebral bodies with gaps at the discs."""
    discs: Field = 0.75 + 0.25 * np.cos(2 * np.pi * y / np.float32(0.17))
    return discs * band(x, 0.085, 0.05)


def rib_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Posterior ribs, and fainter anterior ones sloping the other way, brighter at their edges."""
    side = np.abs(x)
    inside = step(1.12 - side, 0.1) * step(side - 0.1, 0.05) * step(y + 1.15, 0.1) * step(1.0 - y, 0.4)
    drop = -0.22 * side + 0.42 * side * side
    phase = (y - drop) / anatomy.rib_spacing + anatomy.rib_phase
    wave = np.cos(2 * np.pi * phase)
    back = step(wave, 0.9) + 0.5 * np.exp(-((wave / 0.35) ** 2))
    front_phase = (y - 0.55 * (1 - side)) / (anatomy.rib_spacing * 1.25) + anatomy.rib_phase
    front = step(np.cos(2 * np.pi * front_phase), 1.0) * step(side - 0.35, 0.2)
    return inside * (back + 0.45 * front)


def clavicle_field(anatomy: Anatomy, x: Field, y: Field, sign: float) -> Field:
    """One collar bone, from the sternum outwards and up."""
    out = x * sign
    line = anatomy.clavicle_y - anatomy.clavicle_slope * (out - 0.15) + 0.05 * np.sin(4 * out)
    return band(y - line, 0.045, 0.03) * step(out - 0.12, 0.05) * step(1.0 - out, 0.1)


def body_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Soft tissue thickness: torso, shoulders, arms, neck; 0 in the air outside."""
    side = np.abs(x)
    wall = anatomy.wall + 0.10 * np.clip(y, 0, 2)
    torso = step(wall - side, 0.10)
    slope = -1.25 + 0.30 * np.clip(side - 0.35, 0, 2) ** 1.5
    shoulders = step(y - slope, 0.10)
    reach = 0.5 if anatomy.arms_up else 1.2
    arms = step(wall + reach - side, 0.15) * step(y - slope, 0.1) * step(reach * 1.6 - 1.1 - y, 0.3)
    neck = step(0.36 + 0.5 * np.clip(y + 1.45, 0, 1) - side, 0.14) * step(-0.9 - y, 0.3)
    outline = np.maximum(np.maximum(torso * shoulders, arms * 0.8), neck * 0.8)
    depth = 0.75 + 0.25 * np.sqrt(np.clip(1 - (x / (wall + 0.15)) ** 2, 0, 1))
    body: Field = outline * depth
    return body


def breast_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Breast shadows over the lower lungs."""
    if not anatomy.female:
        return np.zeros_like(x)
    dx, dy = (np.abs(x) - 0.68) / 0.48, (y - 0.42) / 0.42
    return step(1 - dx * dx - dy * dy, 0.35)


def vessel_field(
    rng: np.random.Generator, shape: tuple[int, int], x0: float, y0: float, unit: float, sign: float
) -> Field:
    """Branching lines from a hilum at pixel (x0, y0); `unit` is one body unit in pixels."""
    canvas = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    for _ in range(22):
        angle = rng.uniform(-1.45, 1.45)
        px, py, wide = x0, y0 + unit * rng.normal(0, 0.08), max(1.0, unit * 0.05)
        for _ in range(6):
            length = unit * rng.uniform(0.06, 0.16)
            qx, qy = px + sign * length * np.cos(angle), py + length * np.sin(angle)
            pen.line((px, py, qx, qy), fill=int(60 + 130 * min(1.0, wide / 4)), width=max(1, round(wide)))
            px, py, wide, angle = qx, qy, wide * 0.7, angle + rng.normal(0, 0.35)
    return np.asarray(canvas.filter(ImageFilter.BoxBlur(max(0.6, unit * 0.008))), np.float32) / 255
