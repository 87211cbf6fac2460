"""Support devices, and the harmless things on a film that look like a finding."""

from __future__ import annotations

import numpy as np

from radvlm_edge.training.phantom_anatomy import trachea_points
from radvlm_edge.training.phantom_difficulty import MIMICS
from radvlm_edge.training.phantom_pose import SIDES, Canvas, Mask, Points, step
from radvlm_edge.training.phantom_scene import Case, Scene


def _smooth(points: Points, count: int = 40) -> Points:
    """A curve through a few points: Catmull-Rom, `[count, 2]`."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    at = np.linspace(0, len(points) - 1, count)
    index = np.minimum(at.astype(int), len(points) - 2)
    t = (at - index)[:, None]
    a, b, c, d = (padded[index + k] for k in range(4))
    curve: Points = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return curve


def _wobble(rng: np.random.Generator, points: list[tuple[float, float]], spread: float) -> Points:
    return np.array(points) + rng.normal(0, spread, (len(points), 2))


def _endotracheal(rng: np.random.Generator, scene: Scene) -> Points:
    line = trachea_points(scene.anatomy)["trachea"]
    tip = line[1] + (line[2] - line[1]) * rng.uniform(0.3, 0.8)
    return _smooth(np.array([line[0] + [rng.normal(0, 0.03), -0.2], line[1], tip]))


def _nasogastric(rng: np.random.Generator, scene: Scene) -> Points:
    lung, mid = scene.anatomy.lungs["left"], scene.anatomy.shift
    points = [(mid * 0.5, -1.6), (mid + 0.02, -0.8), (mid + 0.03, 0.0), (mid + 0.10, lung.base - 0.02)]
    points += [(0.34, lung.base + 0.24), (0.55, lung.base + 0.34)][: 1 + int(rng.random() < 0.7)]
    return _smooth(_wobble(rng, points, 0.012))


def _central_line(rng: np.random.Generator, scene: Scene) -> Points:
    cava = scene.anatomy.shift - 0.75 * scene.anatomy.width
    tip = (cava, rng.uniform(-0.32, 0.12))
    way = rng.random()
    if way < 0.4:  # jugular
        points = [(-0.30, -1.55), (-0.24, -1.15), (cava - 0.03, -0.75), tip]
    elif way < 0.7:  # subclavian or arm, right
        points = [(-1.15, -0.62), (-0.75, -0.82), (-0.36, -0.83), (cava, -0.62), tip]
    else:  # left side, across the midline
        points = [(1.15, -0.62), (0.72, -0.84), (0.30, -0.80), (-0.02, -0.66), (cava, -0.45), tip]
    return _smooth(_wobble(rng, points, 0.015))


def _chest_tube(rng: np.random.Generator, scene: Scene) -> Points:
    lung = scene.anatomy.lungs["right" if rng.random() < 0.5 else "left"]
    y0 = rng.uniform(0.1, 0.4)
    wall = lung.edge_at(float(y0)) + lung.sign * 0.35
    inner = lung.sign * rng.uniform(0.35, 0.5)
    points = [(wall, y0 + 0.25), (wall - lung.sign * 0.38, y0), (lung.sign * 0.72, y0 - 0.35), (inner, -0.6)]
    return _smooth(_wobble(rng, points, 0.02))


def _pacemaker(rng: np.random.Generator, scene: Scene, own: Canvas, value: float) -> Points:
    sign = 1.0 if rng.random() < 0.75 else -1.0
    cx, cy = sign * rng.uniform(0.62, 0.82), -0.62 + rng.normal(0, 0.06)
    t = np.linspace(0, 2 * np.pi, 24)
    wide, tall = rng.uniform(0.11, 0.15), rng.uniform(0.09, 0.13)
    shell = np.stack([np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.6 * wide + cx,
                      np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.6 * tall + cy], 1)  # fmt: skip
    own.polygon(shell, value * 0.8)
    own.line(np.concatenate([shell, shell[:1]]), value, 1.5)
    right, left = scene.anatomy.heart_span
    tip = (left - 0.25 * (left - right), scene.anatomy.heart_y + 0.2)
    cava = scene.anatomy.shift - 0.6 * scene.anatomy.width
    points = [
        (cx, cy),
        (sign * 0.35, -0.84),
        (cava if sign < 0 else 0.0, -0.7),
        (cava, -0.3),
        (cava, 0.05),
        tip,
    ]
    return _smooth(_wobble(rng, points, 0.012), 60)


def device(rng: np.random.Generator, scene: Scene, case: Case) -> Mask:
    """Draw one device; its mask is everything of it that lies on the film."""
    own, unit = Canvas(scene.pose), scene.pose.unit
    value = 105 * case.size
    if case.kind == "pacemaker":
        own.line(_pacemaker(rng, scene, own, min(250.0, value * 1.7)), value * 1.1, max(1.2, unit * 0.010))
    elif case.kind in ("endotracheal tube", "chest tube"):
        path = (_endotracheal if case.kind == "endotracheal tube" else _chest_tube)(rng, scene)
        wide = 0.028 if case.kind == "endotracheal tube" else 0.034
        own.line(path, value * 0.35, unit * wide)
        own.line(path + np.array([wide * 0.5, 0]), value, max(1.4, unit * 0.010))
        own.line(path - np.array([wide * 0.5, 0]), value * 0.7, max(1.2, unit * 0.009))
    else:
        path = (_nasogastric if case.kind == "nasogastric tube" else _central_line)(rng, scene)
        own.line(path, value, max(1.4, unit * (0.016 if case.kind == "nasogastric tube" else 0.012)))
    scene.metal.image.paste(own.image, mask=own.image.point(lambda level: 255 * (level > 0)))
    return own.mask()


def mimics(rng: np.random.Generator, scene: Scene) -> None:
    """Skin folds, nipples, buttons, calcified nodes: on any film, never a finding."""
    draws = {name: rng.random() < share for name, share in MIMICS.items()}
    anatomy, unit = scene.anatomy, scene.pose.unit
    side = "right" if rng.random() < 0.5 else "left"
    lung, sign = anatomy.lungs[side], SIDES[side]
    if draws["skin fold"]:
        # an edge with lung markings on both sides, fading to one side: not a pleural line
        lean, at = rng.normal(0.1, 0.12), rng.uniform(0.45, 0.8)
        distance = scene.x * sign - at - lean * (scene.y + 0.2)
        fold = step(distance, 0.02) * np.exp(-np.clip(distance, 0, None) / 0.16)
        scene.density = scene.density + 0.06 * fold * (scene.y > -0.75) * (scene.y < lung.base + 0.2)
    if draws["nipples"]:
        low, out, radius = rng.uniform(0.28, 0.5), rng.uniform(0.55, 0.72), rng.uniform(0.035, 0.05)
        for one in SIDES.values():
            dx, dy = scene.x - one * out, scene.y - low
            spot = np.exp(-(((dx * dx + dy * dy) / (radius * radius)) ** 2))
            scene.density = scene.density + rng.uniform(0.04, 0.08) * spot
    if draws["button"]:
        for _ in range(int(rng.integers(1, 4))):
            centre = (float(rng.uniform(-0.9, 0.9)), float(rng.uniform(-0.7, 0.9)))
            scene.metal.disc(centre, unit * 0.036, 230)
            scene.metal.disc(centre, unit * 0.016, 150)
    if draws["calcified hilum"]:
        for _ in range(int(rng.integers(1, 4))):
            place = (anatomy.shift + sign * (anatomy.width + rng.uniform(0, 0.10)), rng.uniform(-0.25, 0.0))
            scene.bright.disc(place, unit * rng.uniform(0.008, 0.016), 170)
