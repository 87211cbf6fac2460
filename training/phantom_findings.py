"""Findings of lungs, pleura and ribs: each changes the scene and says where it can be seen.

Every function takes (rng, scene, case) and returns the film-sized mask of what it drew, or None
where it found no place to be visible (then it changed nothing and the film does not have it).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radvlm_edge.training.phantom_anatomy import Lung
from radvlm_edge.training.phantom_bones import Break, break_point
from radvlm_edge.training.phantom_difficulty import FINDINGS, SIDED
from radvlm_edge.training.phantom_pose import Canvas, Field, Mask, clouds, ellipse, step
from radvlm_edge.training.phantom_scene import Case, Scene

__all__ = ["DRAW", "FINDINGS", "SIDED"]

Draw = Callable[[np.random.Generator, Scene, Case], "Mask | None"]
_LEAST = 0.004
"""Body units² of lung a finding must change to count as visible."""


def _seen(scene: Scene, area: Field) -> bool:
    per_unit = 4.0 / (scene.pose.unit_x * scene.pose.unit_y)
    return float((area > 0.5).sum()) * per_unit > _LEAST


def effusion(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """Fluid: a blunted angle with a meniscus, up to a white lung; lying patients show a veil."""
    lung, x, y = scene.anatomy.lungs[case.side], scene.x, scene.y
    across = (x * lung.sign - lung.centre) / lung.half_width
    climb = min(case.size, 0.35) * rng.uniform(0.7, 1.1)
    level = lung.angle_y - case.size + climb * np.clip(1.05 - across, 0, 2) ** 1.5 * 0.55
    veil = scene.anatomy.portable and 0.2 < case.size < 0.9 and rng.random() < 0.4
    below = step(y - level, rng.uniform(0.3, 0.5) if veil else rng.uniform(0.03, 0.08))
    strength = rng.uniform(0.6, 0.8) if veil else rng.uniform(0.82, 1.0)
    area = below * scene.hull[case.side]
    if not _seen(scene, area):
        return None
    scene.air[case.side] = scene.air[case.side] * (1 - strength * below)
    scene.markings = scene.markings * (1 - strength * area)
    scene.density = scene.density + 0.05 * strength * area
    return scene.full(area)


def _line_of(lung: Lung, inwards: float, drop: float) -> Field:
    """Edge of a lung that has drawn back, from medial over the apex to the side: `[n, 2]`.

    It meets the chest wall again the lower, the further the lung has drawn back.
    """
    ys = np.linspace(lung.apex + 0.002, lung.base + 0.1, 60)
    left = np.clip(1 - (ys - lung.apex) / (0.5 + 3.2 * drop), 0, 1)
    lateral = lung.edge(ys) - lung.sign * inwards * left**0.7
    top = lung.edge(ys[:14], lateral=False)[::-1]
    x = np.concatenate([top, lateral])
    y = np.concatenate([ys[:14][::-1], ys]) + drop * np.concatenate([np.ones(14), left])
    return np.stack([x, y], 1)


def pneumothorax(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """Air outside a lung that has drawn back: no markings, beyond a hair-thin pleural line."""
    lung, y = scene.anatomy.lungs[case.side], scene.y
    drop, inwards = case.size, case.size * rng.uniform(0.35, 0.85)
    line = _line_of(lung, inwards, drop)
    inside = Canvas(scene.pose)
    foot = [(lung.sign * 0.02, lung.base + 0.6), (lung.sign * 0.02, line[0, 1])]
    inside.polygon(np.concatenate([line, [(line[-1, 0], lung.base + 0.6)], foot]), 255)
    rows, columns = scene.x.shape
    shrunk = np.asarray(inside.image.resize((columns, rows)), np.float32) / 255
    area = (1 - shrunk) * scene.hull[case.side] * (y < lung.base + 0.1) * scene.air[case.side]
    if not _seen(scene, area):
        return None
    scene.markings = scene.markings * (1 - 0.95 * area)
    scene.density = scene.density - area * rng.uniform(0.08, 0.13)
    if case.size > 0.2:
        scene.density = scene.density + 0.22 * case.size * shrunk * scene.hull[case.side]
    scene.bright.line(line[8:-3], rng.uniform(190, 255), max(1.2, scene.pose.unit * 0.012))
    return scene.full(area)


def _place(rng: np.random.Generator, lung: Lung, margin: float) -> tuple[float, float]:
    """A point inside a lung, not nearer to its border than `margin` where that is possible."""
    y = float(rng.uniform(lung.apex + 0.15 + margin, lung.base - 0.02 - 0.5 * margin))
    lateral, medial = lung.sign * lung.edge_at(y), lung.sign * lung.edge_at(y, lateral=False)
    low, high = max(medial + margin, 0.24), lateral - 0.04 - margin
    return lung.sign * float(rng.uniform(min(low, high), max(low, high))), y


def consolidation(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """A patch of airless lung with a ragged edge and open bronchi in it."""
    lung, x, y = scene.anatomy.lungs[case.side], scene.x, scene.y
    cx, cy = _place(rng, lung, 0.3 * case.size)
    radii = (case.size * rng.uniform(0.8, 1.25), case.size * rng.uniform(0.8, 1.25))
    ragged = 0.5 * clouds(rng, x.shape, 11) + 0.25 * clouds(rng, x.shape, 28)
    near = ellipse(x, y, (cx, cy), radii)
    inside = near + ragged * (near > -3.8)  # ragged, but in one piece
    area = step(inside, rng.uniform(1.1, 2.2)) * scene.hull[case.side] * scene.air[case.side]
    area = area * np.where(scene.heart > 0.1, 0.5, 1)
    if not _seen(scene, area):
        return None
    strength = rng.uniform(0.42, 0.85)
    patchy = np.clip(1 + 0.16 * clouds(rng, x.shape, 34), 0.3, 1.3)
    scene.air[case.side] = scene.air[case.side] * (1 - np.clip(strength * area * patchy, 0, 0.97))
    scene.markings = scene.markings * (1 - 0.6 * area)
    for _ in range(int(rng.integers(1, 4))):
        angle, reach = rng.uniform(-0.6, 1.2), case.size * rng.uniform(0.5, 1.0)
        start = np.array([cx - lung.sign * 0.5 * reach, cy - 0.4 * reach]) + rng.normal(0, 0.03, 2)
        along = np.array([lung.sign * np.cos(angle), np.sin(angle)])
        scene.dark.line([tuple(start), tuple(start + reach * along)], 70, scene.pose.unit * 0.014)
    return scene.full(area)


def lesion(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """A rounded density, from a few pixels to a mass; drawn on the film's own pixels."""
    lung, pose = scene.anatomy.lungs[case.side], scene.pose
    radius = case.size * np.array([pose.unit_x, pose.unit_y]) * rng.uniform(0.85, 1.15, 2)
    radius = np.maximum(radius, 1.6)
    phases, lobes = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, 0.13, 3)
    contrast = 0.24 + 1.2 * min(case.size, 0.08) * rng.uniform(0.8, 1.3)
    softness = rng.uniform(0.2, 0.45)
    for _ in range(12):
        cx, cy = _place(rng, lung, case.size)
        px, py = pose.pixels([(cx, cy)])[0]
        row, column = int(py) // 2, int(px) // 2
        if not (0 <= row < scene.x.shape[0] and 0 <= column < scene.x.shape[1]):
            continue
        clear = scene.hull[case.side][row, column] * scene.air[case.side][row, column]
        if clear > 0.75 and scene.heart[row, column] < 0:
            break
    else:
        return None
    reach = np.ceil(radius * 1.6 + 2).astype(int)
    rows = slice(max(0, int(py) - reach[1]), min(pose.height, int(py) + reach[1] + 1))
    columns = slice(max(0, int(px) - reach[0]), min(pose.width, int(px) + reach[0] + 1))
    dx = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] + 0.5 - px) / radius[0]
    dy = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5 - py) / radius[1]
    distance, turn = np.sqrt(dx * dx + dy * dy), np.arctan2(dy, dx)
    wavy = 1 + sum(a * np.sin((k + 2) * turn + p) for k, (a, p) in enumerate(zip(lobes, phases, strict=True)))
    inside = step(wavy - distance, softness)
    scene.patches.append((rows, columns, np.float32(contrast) * inside))
    mask = np.zeros((pose.height, pose.width), bool)
    mask[rows, columns] = inside > 0.3
    return mask


def edema(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """Fluid in the interstitium: haze spreading from both hila, swollen vessels, Kerley lines."""
    x, y, anatomy = scene.x, scene.y, scene.anatomy
    side = np.abs(x - np.float32(anatomy.shift))
    spread = 0.30 + 0.25 * case.size
    near = np.exp(-(((side - 0.30) / spread) ** 2) - ((y - 0.08) / (1.35 * spread)) ** 2)
    patchy = np.clip(1 + 0.28 * clouds(rng, x.shape, 9) + 0.2 * clouds(rng, x.shape, 26), 0.1, 1.7)
    lost = np.clip(case.size * near * patchy, 0, 0.9)
    aerated = scene.hull["right"] * scene.air["right"] + scene.hull["left"] * scene.air["left"]
    area = (lost > 0.35 * case.size) * aerated
    if not _seen(scene, area):
        return None
    for name in scene.air:
        scene.air[name] = scene.air[name] * (1 - lost)
    scene.swell = 1.15 + 0.7 * case.size
    for sign, lung in ((one.sign, one) for one in anatomy.lungs.values()):
        for _ in range(int(rng.integers(2, 8))):
            ky = lung.base + rng.uniform(-0.45, 0.0)
            edge = lung.edge_at(float(ky)) - sign * 0.02
            tilt = rng.normal(0, 0.015)
            ends = [(edge, ky), (edge - sign * rng.uniform(0.05, 0.11), ky + tilt)]
            scene.bright.line(ends, rng.uniform(50, 95), 1)
    return scene.full(area)


def atelectasis(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """A thin plate of airless lung, or a collapsed wedge beside the heart (volume loss is anatomy's)."""
    return (_plate if case.kind == "plate" else _wedge)(rng, scene, case)


def _plate(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    lung, pose = scene.anatomy.lungs[case.side], scene.pose
    cy = lung.base - rng.uniform(0.04, 0.42)
    cx = lung.sign * rng.uniform(0.40, 0.72)
    tilt, bow = rng.normal(0, 0.22), rng.normal(0, 0.03)
    t = np.linspace(-1, 1, 12)
    line = np.stack([cx + t * case.size, cy + tilt * t * case.size + bow * (1 - t * t)], 1)
    middle = pose.pixels([(cx, cy)])[0] / 2
    row, column = int(middle[1]), int(middle[0])
    inside = 0 <= row < scene.x.shape[0] and 0 <= column < scene.x.shape[1]
    if not inside or scene.air[case.side][row, column] * scene.hull[case.side][row, column] < 0.6:
        return None
    width = max(1.6, pose.unit * rng.uniform(0.016, 0.030))
    own = Canvas(pose)
    for start, stop, share in ((0, 12, 0.55), (2, 10, 1.0)):
        own.line(line[start:stop], 255 * share, width * (0.6 + 0.4 * share))
    hull = pose.enlarge_mask(scene.hull[case.side] > 0.5)
    mask = own.mask() & hull
    value = rng.uniform(165, 240)
    for start, stop, share in ((0, 12, 0.55), (2, 10, 1.0)):
        scene.bright.line(line[start:stop], value * share, width * (0.6 + 0.4 * share))
    return mask


def _wedge(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    lung, x, y = scene.anatomy.lungs[case.side], scene.x, scene.y
    out = x * lung.sign
    low = bool(rng.random() < 0.65)
    if low:  # lower lobe: a triangle beside the spine, on the diaphragm
        edge = 0.16 + case.size * np.clip((y - (lung.base - 1.5 * case.size)) / (1.5 * case.size), 0, 1) * 1.1
        inside = (edge - out) * (y > lung.base - 1.5 * case.size)
    else:  # upper lobe: above an upwards drawn fissure
        fissure = lung.apex + 0.25 + 0.9 * case.size - 0.35 * np.clip(out - 0.2, 0, 1)
        inside = fissure - y
    area = step(inside, 0.05) * scene.hull[case.side] * scene.air[case.side]
    visible = area * (scene.heart < 0)
    if not _seen(scene, visible):
        return None
    strength = rng.uniform(0.55, 0.85)
    scene.air[case.side] = scene.air[case.side] * (1 - strength * area)
    scene.markings = scene.markings * (1 - 0.7 * area)
    return scene.full(visible)


def fracture(rng: np.random.Generator, scene: Scene, case: Case) -> Mask | None:
    """A broken rib with a step between its ends; the bones are drawn later."""
    pose = scene.pose
    for _ in range(8):
        where = Break(
            case.side,
            int(rng.integers(2, 8)),
            float(rng.uniform(0.22, 0.60)),
            case.size * float(rng.choice([-1, 1])),
        )
        taken = any((one.side, one.rib) == (where.side, where.rib) for one in scene.breaks)
        centre = break_point(scene.anatomy, where)
        px, py = pose.pixels([centre])[0]
        row, column = int(py) // 2, int(px) // 2
        if taken or not (4 < px < pose.width - 4 and 4 < py < pose.height - 4):
            continue
        if scene.hull[case.side][row, column] * scene.air[case.side][row, column] > 0.5:
            break
    else:
        return None
    scene.breaks.append(where)
    reach = (0.055 + 0.3 * case.size) * np.array([pose.unit_x, pose.unit_y])
    mask = np.zeros((pose.height, pose.width), bool)
    low = np.maximum(np.array([px, py]) - reach, 0).astype(int)
    high = np.ceil(np.array([px, py]) + reach).astype(int)
    mask[low[1] : high[1], low[0] : high[0]] = True
    return mask


DRAW: dict[str, Draw] = {
    "pleural effusion": effusion,
    "consolidation": consolidation,
    "atelectasis": atelectasis,
    "edema": edema,
    "pneumothorax": pneumothorax,
    "lung lesion": lesion,
    "fracture": fracture,
}
"""In the order they are drawn: what hides comes before what must be seen."""
