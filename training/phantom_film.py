"""Attenuation → the film: scatter, window, tone, grain, grid lines, collimation, burnt-in marks.

None of this depends on what is wrong with the patient.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from radvlm_edge.training.phantom_pose import Field, Mask, Pose, blurred, clouds

_STROKES: dict[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "L": (((0, 0), (0, 4), (2, 4)),),
    "R": (((0, 4), (0, 0), (2, 0), (2, 2), (0, 2)), ((1, 2), (2, 4))),
    "A": (((0, 4), (0, 1), (1, 0), (2, 1), (2, 4)), ((0, 2), (2, 2))),
    "P": (((0, 4), (0, 0), (2, 0), (2, 2), (0, 2)),),
    "O": (((0, 0), (2, 0), (2, 4), (0, 4), (0, 0)),),
    "T": (((0, 0), (2, 0)), ((1, 0), (1, 4))),
    "B": (((0, 0), (0, 4), (2, 4), (2, 2), (0, 2)), ((0, 0), (2, 0), (2, 2))),
    "E": (((2, 0), (0, 0), (0, 4), (2, 4)), ((0, 2), (2, 2))),
    "S": (((2, 0), (0, 0), (0, 2), (2, 2), (2, 4), (0, 4)),),
    "C": (((2, 0), (0, 0), (0, 4), (2, 4)),),
    "U": (((0, 0), (0, 4), (2, 4), (2, 0)),),
    "I": (((1, 0), (1, 4)),),
    "N": (((0, 4), (0, 0), (2, 4), (2, 0)),),
}
"""Letters as strokes on a 2 by 4 grid: no font, hence the same film on every machine."""


def scatter(rng: np.random.Generator, total: Field, portable: bool) -> tuple[Field, float]:
    """Add what scattered rays and a thick patient do to contrast; returns also the share that is left."""
    share = float(rng.uniform(0.10, 0.40) if portable else rng.uniform(0.0, 0.28))
    veil = share * blurred(total, 22)
    uneven = rng.uniform(0.0, 0.09) * clouds(rng, total.shape, 3)
    return (1 - share) * total + veil + uneven, 1 - share


def collimation(rng: np.random.Generator, pose: Pose) -> Mask | None:
    """The part of the film that was exposed, `[H, W]`; None for all of it."""
    if rng.random() < 0.5:
        return None
    width, height = pose.width, pose.height
    inset = np.where(rng.random(4) < 0.45, rng.uniform(0.005, 0.055, 4), -0.02)
    turn = float(rng.normal(0, 0.015)) + (pose.angle if rng.random() < 0.5 else 0)
    turn = float(np.clip(turn, -0.05, 0.05))
    left, top, right, bottom = inset * [width, height, width, height]
    middle = np.array([width / 2, height / 2])
    corners = np.array(
        [(left, top), (width - right, top), (width - right, height - bottom), (left, height - bottom)]
    )
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon((middle + (corners - middle) @ spin.T).ravel().tolist(), fill=255)
    return np.asarray(image) > 0


def _text(pen: ImageDraw.ImageDraw, words: str, at: tuple[float, float], size: float, grey: int) -> None:
    """Write letters whose height is 4 times `size` pixels."""
    x, y = at
    for letter in words:
        for stroke in _STROKES.get(letter, ()):
            flat = [value for sx, sy in stroke for value in (x + sx * size, y + sy * size)]
            pen.line(flat, fill=grey, width=max(1, round(size * 0.7)))
        x += 3.2 * size


def _marks(rng: np.random.Generator, film: Image.Image, portable: bool) -> None:
    """Side marker and view, as technicians place and machines burn them."""
    pen, (width, height) = ImageDraw.Draw(film), film.size
    grey, size = int(rng.integers(190, 256)), rng.uniform(0.006, 0.010) * width
    if rng.random() < 0.85:
        left = bool(rng.random() < 0.6)
        at = (
            width * (rng.uniform(0.86, 0.93) if left else rng.uniform(0.04, 0.10)),
            height * rng.uniform(0.03, 0.2),
        )
        _text(pen, "L" if left else "R", at, size * rng.uniform(0.9, 1.4), grey)
        if rng.random() < 0.3:
            r = 3.6 * size * 1.4
            pen.ellipse(
                (
                    at[0] - r + 1.4 * size,
                    at[1] - r + 2.8 * size,
                    at[0] + r + 1.4 * size,
                    at[1] + r + 2.8 * size,
                ),
                outline=grey,
            )
    if rng.random() < (0.6 if portable else 0.15):
        at = (width * rng.uniform(0.05, 0.7), height * rng.uniform(0.02, 0.06))
        words = ("PORTABLE", "AP", "AP ERECT", "SUPINE", "AP PORTABLE") if portable else ("PA", "PA ERECT")
        _text(pen, str(rng.choice(words)), at, size * 0.8, grey)


def expose(
    rng: np.random.Generator, attenuation: Field, exposed: Mask | None, portable: bool
) -> npt.NDArray[np.uint8]:
    """Attenuation `[H, W]` → grey levels `[H, W]`, bone bright."""
    height, width = attenuation.shape
    inner = attenuation[height // 10 : -height // 10 : 5, width // 10 : -width // 10 : 5]
    low, high = np.percentile(inner, (rng.uniform(0.5, 6), rng.uniform(93, 99.8)))
    spread = max(float(high - low), 0.15)
    low, high = low - rng.uniform(0, 0.35) * spread, high + rng.uniform(-0.05, 0.25) * spread
    grain = rng.standard_normal((height, width), np.float32)
    if rng.random() < 0.5:
        grain[1:] += grain[:-1]  # neighbouring pixels share their grain
        grain[:, 1:] += grain[:, :-1]
        grain *= np.float32(0.6)
    level = (attenuation - np.float32(low)) * np.float32(1 / (high - low))
    level += grain * np.float32(rng.uniform(0.004, 0.016) * (1.2 if portable else 1.0))
    if rng.random() < 0.2:
        period, size = rng.uniform(2.1, 5.5), rng.uniform(0.004, 0.012)
        lines = np.sin(2 * np.pi * np.arange(width, dtype=np.float32) / np.float32(period))
        level += np.float32(size) * lines[None]
    np.clip(level, 0, 1.08, out=level)
    gamma = np.float32(np.exp(rng.normal(0.0, 0.22)))
    curve = np.linspace(0, 1.08, 1081, dtype=np.float32) ** gamma
    bend = float(rng.uniform(0, 0.8))  # towards an S, as films answer
    curve = (1 - bend) * curve + bend * (curve * curve * (3 - 2 * np.minimum(curve, 1.0)))
    top, black = rng.uniform(190, 250), rng.uniform(2, 45 if rng.random() < 0.3 else 18)
    table = np.clip(black + (top - black) * curve, 0, 255).astype(np.uint8)
    grey = table[(level * np.float32(1000)).astype(np.int16)]
    if exposed is not None:
        border = int(rng.integers(0, 12)) if rng.random() < 0.95 else int(rng.integers(225, 255))
        grey = np.where(exposed, grey, np.uint8(border))
    film = Image.fromarray(grey)
    _marks(rng, film, portable)
    return np.asarray(film)
