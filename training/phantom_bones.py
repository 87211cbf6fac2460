"""Ribs, collar bones, shoulder blades, spine: drawn on the film's own pixels, broken where told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ImageChops, ImageFilter

from radvlm_edge.training.phantom_anatomy import Anatomy, Lung
from radvlm_edge.training.phantom_pose import SIDES, Canvas, Field, Points, Pose

RIBS = 11
_BACK, _FRONT, _BLADE = 62, 34, 40
"""Grey values of a rib's body: behind, in front, and of a shoulder blade."""


@dataclass(frozen=True)
class Break:
    """A fracture: rib `rib` of `side`, at the fraction `at` of its length, its ends `step_off` apart."""

    side: str
    rib: int
    at: float
    step_off: float
    """Body units; positive lowers the outer end."""


def rib_lines(anatomy: Anatomy, lung: Lung, points: int = 22) -> Points:
    """Centre lines of all posterior ribs `[RIBS, points, 2]`, from the spine to the side of the chest."""
    rib = np.arange(RIBS)[:, None]
    t = np.linspace(0, 1, points)[None]
    y0 = lung.apex + 0.10 + (rib - 0.5 + 0.5 * anatomy.rib_phase) * anatomy.rib_spacing
    drop = anatomy.rib_slope * (0.5 + 0.10 * rib) * np.minimum(1.0, 0.45 + 0.2 * rib)
    y = y0 - 0.06 * np.sin(np.pi * np.clip(t * 1.3, 0, 1)) + drop * t**2.2
    end = lung.sign * lung.edge(np.clip(y[:, -1:], lung.apex + 0.06, None)) + 0.02
    start = 0.10 + lung.sign * anatomy.midline(y0)
    x = start + (end - start) * np.sin(0.5 * np.pi * t) ** 0.92
    return np.stack([lung.sign * x, y], 2)


def front_lines(lung: Lung, backs: Points, points: int = 16) -> Points:
    """Anterior parts of ribs `[k, n, 2]`: from the side of the chest down and inwards."""
    x0, y0 = np.abs(backs[:, -1:, 0]), backs[:, -1:, 1]
    t = np.linspace(0, 1, points)[None]
    inner = 0.36 + 0.03 * np.arange(1, len(backs) + 1)[:, None]
    x = x0 - (x0 - inner) * t**1.25
    y = y0 + (0.16 + 0.55 * (x0 - inner)) * (1.15 * t - 0.35 * t * t) + 0.01
    return np.stack([lung.sign * x, y], 2)


def _ribbons(canvas: Canvas, lines: Points, half: float, body: float, edge: float) -> None:
    """Bands along lines `[k, n, 2]` with brighter borders, the lower one brightest."""
    along = np.gradient(lines, axis=1)
    length = np.hypot(along[..., 0], along[..., 1]) + 1e-9
    across = np.stack([-along[..., 1], along[..., 0]], -1) * (half / length)[..., None]
    across *= np.where(across[..., 1:] < 0, -1, 1)
    wide = max(1, round(canvas.pose.unit * 0.008))
    upper, lower = (canvas.pose.pixels(one).reshape(lines.shape) for one in (lines - across, lines + across))
    outlines = np.concatenate([upper, lower[:, ::-1]], 1).reshape(len(lines), -1).tolist()
    flat = lines.shape[1] * 2
    for outline, low in zip(outlines, lower.reshape(len(lines), -1).tolist(), strict=True):
        canvas.pen.polygon(outline, fill=int(body))
        canvas.pen.line(outline[:flat], fill=int(edge * 0.85), width=wide)
        canvas.pen.line(low, fill=int(edge), width=wide)


def _cut(where: Break, points: int) -> int:
    return max(2, min(points - 3, round(where.at * (points - 1))))


def _broken(line: Points, where: Break) -> tuple[Points, Points]:
    """Both ends of a rib that is broken: the outer one is shifted and a little turned."""
    cut = _cut(where, len(line))
    inner, outer = line[: cut + 1], line[cut:].copy()
    turn = np.linspace(1, 0, len(outer))[:, None]
    along = outer[0] - inner[-2]
    gap = 0.055 * along / np.hypot(*along) + np.array([0, where.step_off])
    return inner, outer + gap * turn


def break_point(anatomy: Anatomy, where: Break) -> tuple[float, float]:
    """Body coordinates of a fracture."""
    line = rib_lines(anatomy, anatomy.lungs[where.side])[where.rib]
    cut = _cut(where, len(line))
    return float(line[cut, 0]), float(line[cut, 1] + where.step_off / 2)


def bone_field(rng: np.random.Generator, anatomy: Anatomy, pose: Pose, breaks: list[Break]) -> Field:
    """What all bones add, `[H, W]` float32."""
    back, front, other = Canvas(pose), Canvas(pose), Canvas(pose)
    half = rng.uniform(0.026, 0.034)
    broken = {(one.side, one.rib): one for one in breaks}
    for side, lung in anatomy.lungs.items():
        lines = rib_lines(anatomy, lung)
        whole = [rib for rib in range(RIBS) if (side, rib) not in broken]
        _ribbons(back, lines[whole], half, _BACK, _BACK + 45)
        for rib in set(range(RIBS)) - set(whole):
            inner, outer = _broken(lines[rib], broken[side, rib])
            for part, end in ((inner, inner[-1]), (outer, outer[0])):
                _ribbons(back, part[None], half, _BACK, _BACK + 45)
                cap = np.array([(end[0], end[1] - half), (end[0], end[1] + half)])
                back.line(cap, _BACK + 150, pose.unit * 0.018)  # the broken end, seen along its cortex
        _ribbons(front, front_lines(lung, lines[1:8]), half * 1.1, _FRONT, _FRONT + 22)
    for side, sign in SIDES.items():
        _shoulder(rng, other, anatomy, sign)
        _ribbons(other, clavicle_line(anatomy, side)[None], 0.034, 60, 105)
    _spine(other, anatomy)
    both = ImageChops.add(ImageChops.add(back.image, front.image), other.image)
    soft = both.filter(ImageFilter.BoxBlur(max(0.4, pose.unit * 0.0042)))
    return np.asarray(soft, np.float32) * np.float32(1 / 255)


def clavicle_line(anatomy: Anatomy, side: str, points: int = 16) -> Points:
    """A collar bone: an S from the sternum outwards and up."""
    sign, t = SIDES[side], np.linspace(0, 1, points)
    x = 0.09 + 0.86 * t
    y = anatomy.clavicle_y + 0.05 - anatomy.clavicle_slope * t + 0.045 * np.sin(2 * np.pi * t)
    return np.stack([sign * x + anatomy.shift * (1 - t), y], 1)


def _shoulder(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, sign: float) -> None:
    """Shoulder blade, head and shaft of the upper arm; the blade lies before the lung on a portable film."""
    inner = (0.62 if anatomy.portable else 0.86) + rng.normal(0, 0.05)
    top = anatomy.clavicle_y - anatomy.clavicle_slope * 0.6
    tip = np.array([inner + 0.10, 0.02 + rng.normal(0, 0.05)])
    blade = np.array(
        [(inner, top + 0.16), (inner + 0.16, top + 0.02), (1.10, top + 0.06), (1.14, top + 0.24), tip]
    )
    blade[:, 0] *= sign
    canvas.polygon(blade, _BLADE)
    canvas.line(blade[[0, 4]], _BLADE + 26, canvas.pose.unit * 0.012)
    canvas.line(blade[[3, 4]], _BLADE + 45, canvas.pose.unit * 0.016)
    canvas.line([(sign * (inner + 0.1), top + 0.1), (sign * 1.12, top + 0.0)], 78, canvas.pose.unit * 0.03)
    head = (sign * 1.26, top + 0.17)
    out = 0.10 if anatomy.arms else 0.55
    shaft = np.array([head, (sign * (1.30 + out * 0.6), top + 0.7), (sign * (1.30 + out), 1.0)])
    canvas.line(shaft, 58, canvas.pose.unit * 0.13)
    for edge in (-0.055, 0.055):
        canvas.line(shaft + np.array([edge, 0]), 96, canvas.pose.unit * 0.018)
    canvas.disc(head, canvas.pose.unit * 0.135, 88)
    canvas.disc(head, canvas.pose.unit * 0.115, 64)


def _spine(canvas: Canvas, anatomy: Anatomy) -> None:
    """Vertebrae: end plates, sides, pedicles and spinous processes, fading behind the heart."""
    unit = canvas.pose.unit
    for index, y in enumerate(np.arange(-1.55, 1.5, 0.172)):
        x, half = float(anatomy.midline(y)), 0.085 + 0.012 * index / 17
        fade = 1.0 if y < -0.25 else 0.62
        corners = [(x - half, y - 0.062), (x + half, y - 0.062), (x + half, y + 0.062), (x - half, y + 0.062)]
        canvas.polygon(corners, 30 * fade)
        canvas.line([*corners, corners[0]], 62 * fade, unit * 0.010)
        for sign in (-1, 1):
            canvas.disc((x + sign * 0.052, y - 0.018), unit * 0.020, 72 * fade)
        canvas.line([(x, y - 0.01), (x, y + 0.06)], 78 * fade, unit * 0.016)
