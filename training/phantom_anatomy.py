"""A chest drawn from a random generator: where its soft structures lie and how much they attenuate.

Fields are coarse (`[h, w]`, see phantom_pose) and in units of one adult's midline soft tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radvlm_edge.training.phantom_difficulty import NORMAL_HEART, Grade
from radvlm_edge.training.phantom_pose import SIDES, Field, Points, band, ellipse, step

SHOULDER = 1.0
"""Height of the rounded part of a lung, from its apex down."""
TAPER = 0.10
"""How much wider and further out a lung is one body unit lower."""


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
    peak: float
    """Where across the lung the dome's top lies, -1 medial to 1 lateral."""

    def radius(self, x: Field, y: Field) -> Field:
        """Below 1 inside the chest wall, 1 at it; the diaphragm is not part of this."""
        axis = self.centre + TAPER * y
        half = self.half_width * (1 + TAPER * y)
        across = (x * self.sign - axis) / half
        up = np.minimum(y - (self.apex + SHOULDER), 0) * np.float32(1 / SHOULDER)
        radius: Field = across * across + up * up * np.abs(up) ** np.float32(0.5)
        return radius

    def floor(self, x: Field) -> Field:
        """y of the hemidiaphragm at each x."""
        across = (x * self.sign - self.centre) / self.half_width - self.peak
        fall: Field = np.clip(across * across, 0, 2.2) * np.where(across < 0, 0.5, 1)
        return self.base + self.dome * fall

    def edge(self, y: Field, lateral: bool = True) -> Field:
        """Signed x of the chest wall (or of the medial border) at each y."""
        up = np.clip((y - (self.apex + SHOULDER)) / SHOULDER, -1, 0)
        half = self.half_width * (1 + TAPER * y) * np.sqrt(1 - np.abs(up) ** 2.5)
        x: Field = self.sign * (self.centre + TAPER * y + (half if lateral else -half))
        return x

    def edge_at(self, y: float, lateral: bool = True) -> float:
        """The same at one y."""
        return float(self.edge(np.array([y]), lateral)[0])

    @property
    def angle_y(self) -> float:
        """y of the costophrenic angle."""
        return self.base + self.dome * min(2.2, (1.1 - self.peak) ** 2)


@dataclass(frozen=True)
class Anatomy:
    """The proportions of one person on the day of the film."""

    lungs: dict[str, Lung]
    heart_ratio: float
    """Transverse diameter of the heart over the inner diameter of the thorax."""
    heart_y: float
    heart_height: float
    heart_tilt: float
    heart_left: float
    """Share of the heart's diameter on the patient's left of the midline."""
    shift: float
    """x of the mediastinum's middle: rotation, or pull by a collapsed lung."""
    knob: float
    """Size of the aortic knob: grows with age."""
    width: float
    """Half width of the mediastinum."""
    wall: float
    """Half width of the torso."""
    fat: float
    """Soft tissue in front of the lungs, 0 slim to 1 heavy."""
    female: bool
    portable: bool
    """AP film of a lying or sitting patient: haze, scapulae in front of the lungs, high clavicles."""
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    clavicle_y: float
    clavicle_slope: float
    arms: float
    """0 arms out of the film to 1 arms beside the body."""
    spine_curve: float

    @property
    def thorax(self) -> float:
        """Inner diameter of the thorax at the level of the diaphragm."""
        right, left = self.lungs["right"], self.lungs["left"]
        level = (right.base + left.base) / 2
        return left.edge_at(level) - right.edge_at(level)

    @property
    def heart_span(self) -> tuple[float, float]:
        """x of the heart's right and left borders."""
        diameter = self.heart_ratio * self.thorax
        return self.shift - (1 - self.heart_left) * diameter, self.shift + self.heart_left * diameter

    def midline(self, y: Field | float) -> Field:
        """x of the spine at each y."""
        curve: Field = np.asarray(self.spine_curve * np.sin(1.8 * np.asarray(y)), np.float32)
        return curve


def draw_grade(rng: np.random.Generator, grades: tuple[Grade, ...]) -> tuple[Grade, float]:
    """A grade by its share, and a size within it."""
    shares = np.cumsum([grade.share for grade in grades])
    grade = grades[min(int(np.searchsorted(shares, rng.random() * shares[-1])), len(grades) - 1)]
    return grade, float(rng.uniform(grade.low, grade.high))


def draw_anatomy(rng: np.random.Generator, heart_ratio: float | None, collapsed: dict[str, float]) -> Anatomy:
    """Proportions at random; `heart_ratio` is given for an enlarged heart.

    `collapsed` names sides that lost volume, and how much: their hemidiaphragm is higher and the
    mediastinum is drawn towards them, on top of what is natural.
    """
    _, normal = draw_grade(rng, NORMAL_HEART)
    portable = bool(rng.random() < 0.5)
    inspiration = float(np.clip(rng.normal(-0.03 if portable else 0.02, 0.10), -0.24, 0.18))
    half = rng.uniform(0.41, 0.465)
    lungs = {}
    for side, sign in SIDES.items():
        lost = collapsed.get(side, 0.0)
        lungs[side] = Lung(
            sign=sign,
            centre=rng.uniform(0.50, 0.55),
            half_width=half * rng.uniform(0.96, 1.04),
            apex=float(np.clip(rng.normal(-1.0, 0.035), -1.08, -0.92)),
            base=0.53 - (0.05 if side == "right" else 0) + inspiration + rng.normal(0, 0.035) - 0.5 * lost,
            dome=rng.uniform(0.11, 0.21),
            peak=rng.uniform(-0.35, 0.05),
        )
    pull = 0.25 * (collapsed.get("left", 0.0) - collapsed.get("right", 0.0))
    return Anatomy(
        lungs=lungs,
        heart_ratio=normal if heart_ratio is None else heart_ratio,
        heart_y=0.24 + inspiration + rng.normal(0, 0.03),
        heart_height=rng.uniform(0.42, 0.52),
        heart_tilt=rng.uniform(0.30, 0.62),
        heart_left=rng.uniform(0.64, 0.74),
        shift=float(np.clip(rng.normal(0, 0.03), -0.07, 0.07)) + pull,
        knob=rng.uniform(0.6, 1.25),
        width=rng.uniform(0.15, 0.21) + (0.03 if portable else 0.0),
        wall=rng.uniform(1.10, 1.32),
        fat=float(rng.beta(1.3, 1.8)),
        female=bool(rng.random() < 0.45),
        portable=portable,
        rib_spacing=rng.uniform(0.175, 0.21),
        rib_phase=rng.random(),
        rib_slope=rng.uniform(0.10, 0.30),
        clavicle_y=-0.80 + rng.normal(0, 0.05) - (0.05 if portable else 0),
        clavicle_slope=rng.uniform(0.02, 0.28),
        arms=float(rng.random() < (0.6 if portable else 0.2)),
        spine_curve=float(rng.normal(0, 0.02)),
    )


def lung_field(lung: Lung, x: Field, y: Field) -> Field:
    """Air-filled area of one side, 0 to 1, heart not yet in front of it."""
    return step(1 - lung.radius(x, y), 0.10) * step(lung.floor(x) - y, 0.035)


def depth_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """How much air an X-ray crosses in a healthy lung: most in the middle of the lung."""
    depth = np.zeros_like(x)
    for lung in anatomy.lungs.values():
        inside = np.clip(1 - lung.radius(x, y), 0, 1)
        depth = np.maximum(depth, np.sqrt(inside) * (x * lung.sign > -0.1))
    total: Field = 0.30 + 0.32 * depth - 0.05 * np.clip(y + 0.2, -0.8, 0.8)
    return total


def heart_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Positive inside the cardiac silhouette, 1 at its middle: a tilted ellipse whose greatest width
    is exactly the cardiothoracic ratio times the thorax."""
    right, left = anatomy.heart_span
    half, tall = (left - right) / 2, anatomy.heart_height
    lean = min(anatomy.heart_tilt, 0.85 * half / tall)
    narrow = np.sqrt(half * half - (lean * tall) ** 2)
    dx, dy = x - np.float32((left + right) / 2), y - np.float32(anatomy.heart_y)
    inside: Field = 1 - ((dx - lean * dy) / narrow) ** 2 - (dy / tall) ** 2
    return inside


def mediastinum_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Great vessels; the aortic knob bulges to the patient's left, the cava to the right."""
    out = x - anatomy.midline(y) - np.float32(anatomy.shift)
    half = anatomy.width - 0.05 * np.exp(-(((y + 0.75) / 0.2) ** 2)) - 0.05 * np.clip(y + 0.3, 0, 0.6)
    flare = 0.16 * np.clip((y - anatomy.heart_y + 0.55) / 0.5, 0, 1) ** 1.5 * (out > 0)
    column = band(out, half + flare, 0.06) * step(y + 1.2, 0.3)
    size = anatomy.knob
    knob = step(ellipse(out, y, (anatomy.width * 0.75, -0.46), (0.14 * size, 0.16 * size)), 0.45)
    trunk = step(ellipse(out, y, (anatomy.width * 0.85, -0.20), (0.11, 0.18)), 0.6)
    both: Field = np.maximum(np.maximum(column, knob), 0.9 * trunk)
    return both


def hilum_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Both hila: soft densities beside the mediastinum, the left one a little higher."""
    total = np.zeros_like(x)
    for side, sign in SIDES.items():
        centre = (anatomy.shift + sign * (anatomy.width + 0.09), -0.12 if side == "right" else -0.17)
        total = total + step(ellipse(x, y, centre, (0.13, 0.24)), 1.4)
    return total


def trachea_points(anatomy: Anatomy) -> dict[str, Points]:
    """Centre lines of the trachea and of both main bronchi; they end around the carina."""
    shift, lean = anatomy.shift, 0.02
    carina = (shift + lean, -0.36)
    top = (float(anatomy.midline(-1.3)), -1.4)
    return {
        "trachea": np.array([top, (0.6 * shift + lean, -0.8), carina]),
        "right": np.array([carina, (shift - 0.10, -0.24), (shift - 0.20, -0.15)]),
        "left": np.array([carina, (shift + 0.13, -0.25), (shift + 0.26, -0.18)]),
    }


def body_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Soft tissue thickness: torso, shoulders, arms, neck; 0 in the air outside."""
    side = np.abs(x)
    wall = anatomy.wall + 0.14 * anatomy.fat + 0.08 * np.clip(y, 0, 2)
    torso = step(wall - side, 0.08)
    slope = -1.22 + 0.34 * np.clip(side - 0.42, 0, 2) ** 1.3
    above = step(y - slope, 0.07)
    reach = wall + 0.42 - 0.10 * y
    gap = band(side - wall - 0.04 - 0.08 * np.clip(y, -0.6, 2), 0.02 + 0.05 * np.clip(y + 0.5, 0, 2), 0.06)
    arms = step(reach - side, 0.12) * (1 - 0.85 * anatomy.arms * gap * step(y + 0.30, 0.35))
    if not anatomy.arms:
        arms = step(wall + 0.7 - side, 0.2) * step(-0.25 - y + 0.4 * (side - wall), 0.25)
    neck = step(0.34 + 0.05 * anatomy.fat + 0.6 * np.clip(y + 1.35, 0, 1) - side, 0.09)
    outline = np.maximum(np.maximum(torso * above, arms * above * 0.75), neck * step(-0.9 - y, 0.3) * 0.8)
    round_off = np.sqrt(np.clip(1 - (x / (wall + 0.12)) ** 2, 0.02, 1))
    depth = (0.66 + 0.34 * round_off) * (1 + 0.25 * anatomy.fat * step(y - 0.2, 1.2))
    body: Field = outline * depth
    return body


def breast_field(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Breast shadows over the lower lungs, with a sharper lower border."""
    if not anatomy.female:
        return np.zeros_like(x)
    dx = (np.abs(x) - 0.62 - 0.06 * anatomy.fat) / 0.44
    dy = (y - 0.42 - 0.15 * anatomy.fat) / (0.36 + 0.1 * anatomy.fat)
    inside = 1 - dx * dx - np.where(dy < 0, 0.7 * dy, dy) ** 2
    shadow: Field = step(inside, 0.9) * np.clip(inside + 0.5, 0, 1)
    return shadow
