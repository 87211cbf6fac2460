"""Where a body lies on a film, and the two ways to draw on it: coarse smooth fields, sharp lines.

Body coordinates: x grows to the image's right, the patient's left; y grows downwards; the thorax is
about 2 wide, its apices near y = -1. Smooth fields are computed on every second pixel and enlarged;
what is only a few pixels wide is drawn on the film's own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Field = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.floating[Any]]
"""`[n, 2]` x and y."""

SIDES = {"right": -1.0, "left": 1.0}
"""The patient's sides, as signs of x: the patient's right is on the image's left."""
COARSE = 2
"""Film pixels along one side of a coarse pixel."""


def step(distance: Field, width: float) -> Field:
    """0 to 1 across an edge of this width, smooth; `distance` is positive inside."""
    t = np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)
    smooth: Field = t * t * (3 - 2 * t)
    return smooth


def band(distance: Field, half_width: float | Field, softness: float) -> Field:
    """1 within `half_width` of a line, falling off over `softness`."""
    return step(half_width - np.abs(distance), softness)


def ellipse(x: Field, y: Field, centre: tuple[float, float], radii: tuple[float, float]) -> Field:
    """1 at the centre, 0 on the ellipse, negative outside."""
    inside: Field = 1 - ((x - centre[0]) / radii[0]) ** 2 - ((y - centre[1]) / radii[1]) ** 2
    return inside


def clouds(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Field:
    """Smooth noise of unit spread with about `cells` bumps along each side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float32)


def blurred(field: Field, factor: int) -> Field:
    """A field without anything finer than about `factor` of its pixels."""
    height, width = field.shape
    image = Image.fromarray(np.ascontiguousarray(field, np.float32))
    small = image.resize((max(2, width // factor), max(2, height // factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)


@dataclass(frozen=True)
class Pose:
    """How body coordinates lie on the film."""

    height: int
    """Film rows in pixels."""
    width: int
    unit_x: float
    """Pixels per body unit along the film's rows; films are often squeezed into another shape."""
    unit_y: float
    angle: float
    """Radians the patient leans."""
    x0: float
    """Pixel column of the body's origin."""
    y0: float

    @property
    def unit(self) -> float:
        """Pixels per body unit, the mean of both directions."""
        return (self.unit_x + self.unit_y) / 2

    @property
    def coarse_shape(self) -> tuple[int, int]:
        return -(-self.height // COARSE), -(-self.width // COARSE)

    def grid(self) -> tuple[Field, Field]:
        """Body x and y of every coarse pixel, `[h, w]` each."""
        rows, columns = self.coarse_shape
        px = ((np.arange(columns, dtype=np.float32)[None] + 0.5) * COARSE - self.x0) / self.unit_x
        py = ((np.arange(rows, dtype=np.float32)[:, None] + 0.5) * COARSE - self.y0) / self.unit_y
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return (cos * px + sin * py).astype(np.float32), (cos * py - sin * px).astype(np.float32)

    def pixels(self, points: Points | Sequence[tuple[float, float]]) -> Points:
        """Body points `[n, 2]` → film pixels `[n, 2]` (column, row)."""
        xy = np.asarray(points, np.float64).reshape(-1, 2)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turn = ((self.unit_x * cos, self.unit_y * sin), (-self.unit_x * sin, self.unit_y * cos))
        moved: Points = xy @ np.array(turn) + (self.x0, self.y0)
        return moved

    def enlarge(self, field: Field) -> Field:
        """A coarse field `[h, w]` → `[H, W]` float32."""
        image = Image.fromarray(np.ascontiguousarray(field, np.float32))
        covered = (0, 0, self.width / COARSE, self.height / COARSE)
        full = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=covered)
        return np.asarray(full, np.float32)

    def enlarge_share(self, field: Field) -> Field:
        """The same for a field between 0 and 1, in steps of 1/255, three times as fast."""
        image = Image.fromarray((np.clip(field, 0, 1) * np.float32(255)).astype(np.uint8))
        covered = (0, 0, self.width / COARSE, self.height / COARSE)
        full = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=covered)
        return np.asarray(full, np.float32) * np.float32(1 / 255)

    def enlarge_mask(self, mask: Mask) -> Mask:
        """A coarse mask `[h, w]` → `[H, W]`."""
        rows = np.repeat(mask, COARSE, 0)[: self.height]
        return np.repeat(rows, COARSE, 1)[:, : self.width]


def draw_pose(rng: np.random.Generator, short_px: tuple[int, int]) -> Pose:
    """A film size and a way to stand before it; the chest nearly fills the film, as films are taken."""
    short = int(rng.integers(short_px[0], short_px[1] + 1))
    long = short if rng.random() < 0.4 else int(short * rng.uniform(1.02, 1.25))
    height, width = (long, short) if rng.random() < 0.5 else (short, long)
    unit = min(width / (2 * rng.uniform(1.08, 1.38)), height / rng.uniform(2.1, 2.5))
    stretch = float(np.exp(rng.normal(0, 0.05)))
    unit_x = min(unit * stretch, width / 2.14)
    unit_y = min(unit / stretch, height / 2.08)
    return Pose(
        height,
        width,
        unit_x,
        unit_y,
        float(np.clip(rng.normal(0, 0.04), -0.12, 0.12)),
        width / 2 + float(np.clip(rng.normal(0, 0.035), -0.08, 0.08)) * unit_x,
        height / 2 + float(np.clip(rng.normal(0.09, 0.05), -0.02, 0.2)) * unit_y,
    )


class Canvas:
    """Lines and polygons in body coordinates on the film's own pixels, values 0 to 255."""

    def __init__(self, pose: Pose) -> None:
        self.pose = pose
        self.image = Image.new("L", (pose.width, pose.height))
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: Points | Sequence[tuple[float, float]], value: float, width_px: float) -> None:
        """A curve through body points."""
        flat = self.pose.pixels(points).ravel().tolist()
        self.pen.line(flat, fill=int(value), width=max(1, round(width_px)), joint="curve")

    def polygon(self, points: Points | Sequence[tuple[float, float]], value: float) -> None:
        self.pen.polygon(self.pose.pixels(points).ravel().tolist(), fill=int(value))

    def disc(self, centre: tuple[float, float], radius_px: float, value: float) -> None:
        px, py = self.pose.pixels([centre])[0]
        corners = (px - radius_px, py - radius_px, px + radius_px, py + radius_px)
        self.pen.ellipse(corners, fill=int(value))

    def mask(self) -> Mask:
        """Where anything was drawn, `[H, W]`."""
        return np.asarray(self.image) > 0

    @property
    def empty(self) -> bool:
        return self.image.getbbox() is None

    def field(self, blur_px: float = 0.0) -> Field:
        """`[H, W]` float32, 0 to 1."""
        image = self.image.filter(ImageFilter.BoxBlur(blur_px)) if blur_px else self.image
        return np.asarray(image, np.float32) * np.float32(1 / 255)
