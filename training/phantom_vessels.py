"""Vascular markings: trees from both hila, drawn on the film's own pixels."""

from __future__ import annotations

import numpy as np
from PIL import ImageFilter

from radvlm_edge.training.phantom_anatomy import Anatomy
from radvlm_edge.training.phantom_pose import SIDES, Canvas, Field, Pose, clouds

_LEVELS = 6


def _tree(rng: np.random.Generator, canvas: Canvas, sign: float, x0: float, y0: float, swell: float) -> None:
    """Arteries and veins of one lung: they fork, thin out and end before the chest wall."""
    trunks = 13
    angle = np.linspace(-1.35, 1.42, trunks) + rng.normal(0, 0.16, trunks)
    x = np.full(trunks, x0) + sign * rng.uniform(0, 0.10, trunks)
    y = np.full(trunks, y0) + 0.12 * angle + rng.normal(0, 0.05, trunks)
    wide = rng.uniform(0.010, 0.026, trunks) * np.where(angle > 0, 1.2, 0.85) * swell
    for level in range(_LEVELS):
        length = rng.uniform(0.10, 0.19, len(x)) * (1.05 - 0.06 * level)
        bend = rng.normal(0, 0.24, len(x))
        mid_x, mid_y = x + sign * 0.5 * length * np.cos(angle), y + 0.5 * length * np.sin(angle)
        angle = angle + bend
        end_x, end_y = mid_x + sign * 0.5 * length * np.cos(angle), mid_y + 0.5 * length * np.sin(angle)
        path = np.stack([x, y, mid_x, mid_y, end_x, end_y], 1)
        pixels = canvas.pose.pixels(path.reshape(-1, 2)).reshape(-1, 6)
        widths = wide * canvas.pose.unit
        for flat, width in zip(pixels.tolist(), widths.tolist(), strict=True):
            canvas.pen.line(flat, fill=int(min(200, 26 + 40 * width)), width=max(1, round(width)))
        fork = rng.uniform(0.12, 0.42, len(x))
        lone = rng.random(len(x)) < 0.30
        keep = np.concatenate([np.ones(len(x), bool), ~lone])
        angle = np.concatenate([angle - fork * 0.6, angle + fork])[keep]
        x, y = (np.concatenate([end, end])[keep] for end in (end_x, end_y))
        wide = np.concatenate([wide * 0.84, wide * rng.uniform(0.5, 0.8, len(wide))])[keep]


def vessel_field(rng: np.random.Generator, anatomy: Anatomy, pose: Pose, swell: float) -> Field:
    """Markings of both lungs `[H, W]`, 0 to 1; `swell` widens them (congestion)."""
    canvas = Canvas(pose)
    for side, sign in SIDES.items():
        height = -0.12 if side == "right" else -0.17
        _tree(rng, canvas, sign, anatomy.shift + sign * (anatomy.width + 0.01), height, swell)
    soft = canvas.image.filter(ImageFilter.BoxBlur(max(0.5, pose.unit * 0.004)))
    return np.asarray(soft, np.float32) * np.float32(1 / 255)


def lung_texture(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Fine interstitial markings, `[h, w]` of unit spread: they hide what is only a few pixels wide."""
    fine = clouds(rng, shape, max(8, min(shape) // 3))
    middling = clouds(rng, shape, max(6, min(shape) // 7))
    return 0.75 * fine + 0.65 * middling
