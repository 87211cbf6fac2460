"""Procedural frontal chest films with findings and boxes: everything known, nothing borrowed.

They look like chest films from a distance and teach a small model where things are; they are no
substitute for films. numpy and Pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from radvlm_edge.training import phantom_anatomy as anatomy_of
from radvlm_edge.training.phantom_anatomy import SIDES, Anatomy, Field, clouds, draw_anatomy, step
from radvlm_edge.training.phantom_findings import EFFECTS, FINDINGS, draw_findings

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the film's width and height."""


@dataclass(frozen=True)
class Finding:
    """One abnormality; `side` is the patient's (`right`, `left`) or empty for the heart."""

    name: str
    side: str
    box: Box


@dataclass(frozen=True)
class Phantom:
    """A film and all there is to know about it."""

    pixels: npt.NDArray[np.uint8]
    """`[H, W]`, bone bright."""
    findings: tuple[Finding, ...]
    regions: dict[str, Box]
    """Anatomical regions by their Chest ImaGenome names; those outside the film are missing."""
    masks: dict[str, npt.NDArray[np.bool_]]
    """`[H, W]` areas of main regions and findings; a sided finding also as `"left pneumothorax"`."""

    def has(self, name: str, side: str = "") -> bool:
        """Whether the finding is there, on this side if one is given."""
        return any(one.name == name and side in ("", one.side) for one in self.findings)


def box_of(mask: npt.NDArray[np.bool_]) -> Box | None:
    """Tightest box around a mask `[H, W]`; None for an empty one or a sliver of a few pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


@dataclass(frozen=True)
class _Pose:
    """How body coordinates lie on the film."""

    height: int
    width: int
    unit: float
    """Pixels per body unit."""
    angle: float
    x0: float
    y0: float

    def grid(self) -> tuple[Field, Field]:
        """Body x and y of every pixel, `[H, W]` each."""
        px = (np.arange(self.width, dtype=np.float32)[None] + 0.5 - self.x0) / self.unit
        py = (np.arange(self.height, dtype=np.float32)[:, None] + 0.5 - self.y0) / self.unit
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return (cos * px + sin * py).astype(np.float32), (cos * py - sin * px).astype(np.float32)

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.x0 + self.unit * (cos * x - sin * y), self.y0 + self.unit * (sin * x + cos * y)


def _draw_pose(rng: np.random.Generator, short_px: tuple[int, int]) -> _Pose:
    short = int(rng.integers(short_px[0], short_px[1] + 1))
    long = short if rng.random() < 0.35 else int(short * rng.uniform(1.02, 1.25))
    height, width = (long, short) if rng.random() < 0.55 else (short, long)
    unit = min(width / (2 * rng.uniform(1.08, 1.55)), height / rng.uniform(2.05, 2.8))
    return _Pose(
        height,
        width,
        unit,
        float(np.clip(rng.normal(0, 0.05), -0.15, 0.15)),
        width / 2 + rng.normal(0, 0.05) * unit,
        height / 2 + (0.08 + rng.normal(0, 0.08)) * unit,
    )


def _regions(
    anatomy: Anatomy, x: Field, y: Field, masks: dict[str, npt.NDArray[np.bool_]], spine: Field
) -> dict[str, Box]:
    """Boxes of the anatomical regions that lie on the film."""
    areas = {name: masks[name] for name in ("cardiac silhouette", "mediastinum")}
    areas["spine"] = spine > 0.4
    areas["trachea"] = (np.abs(x) < 0.06) & (y > -1.1) & (y < -0.35)
    areas["aortic arch"] = (np.abs(x - 0.12) < 0.15) & (np.abs(y + 0.43) < 0.14)
    areas["carina"] = (np.abs(x) < 0.09) & (np.abs(y + 0.33) < 0.07)
    for side, sign in SIDES.items():
        lung, out, area = anatomy.lungs[side], x * sign, masks[f"{side} lung"]
        areas[f"{side} lung"] = area
        third = (lung.base + 0.5 * lung.dome - lung.apex) / 3
        for index, zone in enumerate(("upper", "mid", "lower")):
            top = lung.apex + index * third - (0.5 if index == 0 else 0)
            bottom = lung.apex + (index + 1) * third + (1 if index == 2 else 0)
            areas[f"{side} {zone} lung zone"] = area & (y >= top) & (y < bottom)
        floor = lung.floor(x)
        areas[f"{side} hemidiaphragm"] = (np.abs(y - floor - 0.03) < 0.07) & (
            np.abs(out - lung.centre) < lung.half_width
        )
        edge = lung.centre + lung.half_width
        areas[f"{side} costophrenic angle"] = (np.abs(out - edge + 0.05) < 0.12) & (
            np.abs(y - lung.base - lung.dome) < 0.12
        )
        areas[f"{side} hilar structures"] = (np.abs(out - 0.24) < 0.14) & (np.abs(y + 0.15) < 0.22)
        areas[f"{side} clavicle"] = anatomy_of.clavicle_field(anatomy, x, y, sign) > 0.5
    boxes = {name: box_of(area) for name, area in areas.items()}
    return {name: box for name, box in boxes.items() if box is not None and _visible(box)}


def _visible(box: Box) -> bool:
    return box[2] - box[0] >= 0.02 and box[3] - box[1] >= 0.02


def _expose(rng: np.random.Generator, attenuation: Field) -> npt.NDArray[np.uint8]:
    """Attenuation → grey levels: window, tone curve, grain, collimation, marks."""
    low, high = np.percentile(attenuation[::4, ::4], (rng.uniform(0, 6), rng.uniform(92, 100)))
    level = np.clip((attenuation - low) / max(high - low, 1e-3), 0, 1.15)
    level = level ** np.float32(np.exp(rng.normal(-0.05, 0.25)))
    grain = rng.standard_normal(level.shape, np.float32) * np.float32(rng.uniform(0.004, 0.03))
    top, black = rng.uniform(185, 252), rng.uniform(0, 22)
    grey = black + (top - black) * (level + grain)
    film = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    film = film.filter(ImageFilter.BoxBlur(float(rng.uniform(0, 0.9))))
    pen = ImageDraw.Draw(film)
    width, height = film.size
    for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.6 else 0):
        edge, depth = int(rng.integers(4)), rng.uniform(0.01, 0.07)
        corners = (
            (0, 0, width, height * depth),
            (0, height * (1 - depth), width, height),
            (0, 0, width * depth, height),
            (width * (1 - depth), 0, width, height),
        )
        pen.rectangle(corners[edge], fill=0 if rng.random() < 0.85 else 250)
    if rng.random() < 0.7:
        spot = (width * rng.choice([0.05, 0.9]), height * rng.uniform(0.03, 0.3))
        pen.text(spot, str(rng.choice(["L", "R", "AP", "PORTABLE"])), fill=int(rng.integers(200, 256)))
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.3 else 0):
        points = np.cumsum(rng.normal(0.04, 0.06, (6, 2)), 0) + rng.uniform(0.1, 0.9, 2)
        line = [(float(px * width), float(py * height)) for px, py in points]
        pen.line(line, fill=int(rng.integers(150, 240)), width=int(rng.integers(1, 3)), joint="curve")
    return np.asarray(film)


def make_phantom(
    seed: int,
    short_px: tuple[int, int] = (200, 300),
    findings: list[tuple[str, str]] | None = None,
) -> Phantom:
    """Draw the film that belongs to a seed: the same seed, the same pixels.

    `short_px` bounds the shorter side; `findings` as (name, side) replaces the random ones.
    """
    rng = np.random.default_rng(seed)
    drawn = draw_findings(rng)
    present = drawn if findings is None else findings
    anatomy = draw_anatomy(rng, ("cardiomegaly", "") in present)
    pose = _draw_pose(rng, short_px)
    x, y = pose.grid()
    airs = anatomy_of.lung_fields(anatomy, x, y)
    hulls = {side: air > 0.5 for side, air in airs.items()}
    heart = anatomy_of.heart_field(anatomy, x, y)
    floor = np.where(x < 0, anatomy.lungs["right"].floor(x), anatomy.lungs["left"].floor(x))
    heart = heart * step(floor + 0.10 - y, 0.15)
    central = anatomy_of.mediastinum_field(x, y, anatomy)
    masks = {f"{side} lung": hull for side, hull in hulls.items()}
    masks |= {"cardiac silhouette": heart > 0.5, "mediastinum": (central > 0.5) & (y > -1) & (y < 0.75)}

    density = np.zeros_like(x)
    found = []
    for name, side in present:
        if name == "cardiomegaly":
            area = masks["cardiac silhouette"]
        else:
            effect = EFFECTS[name](rng, anatomy, side, airs[side], x, y)
            airs[side] = effect.air
            density = density + effect.density
            area = (effect.area > 0.5) & ((heart < 0.6) | (name == "pleural effusion"))
        box = box_of(area)
        if box is None:
            continue
        found.append(Finding(name, side, box))
        masks[name] = masks.get(name, np.zeros_like(area)) | area
        masks[f"{side} {name}".strip()] = area

    attenuation, spine = _attenuate(rng, anatomy, pose, x, y, airs, heart, central, density)
    pixels = _expose(rng, attenuation)
    regions = _regions(anatomy, x, y, masks, spine)
    order = {name: index for index, name in enumerate(FINDINGS)}
    found.sort(key=lambda one: (order[one.name], one.side))
    return Phantom(pixels, tuple(found), regions, masks)


def _attenuate(
    rng: np.random.Generator,
    anatomy: Anatomy,
    pose: _Pose,
    x: Field,
    y: Field,
    airs: dict[str, Field],
    heart: Field,
    central: Field,
    density: Field,
) -> tuple[Field, Field]:
    """Sum what every structure attenuates; also returns the spine's field."""
    body = anatomy_of.body_field(anatomy, x, y)
    air = np.maximum(airs["right"], airs["left"])
    spine = anatomy_of.spine_field(anatomy, x, y)
    ribs = anatomy_of.rib_field(anatomy, x, y)
    aerated = air * (1 - 0.85 * np.maximum(heart, central))
    bones = sum(anatomy_of.clavicle_field(anatomy, x, y, sign) for sign in SIDES.values())
    vessels = np.zeros_like(x)
    for sign in SIDES.values():
        px, py = pose.pixel(sign * 0.18, -0.12)
        vessels = vessels + anatomy_of.vessel_field(rng, x.shape, px, py, pose.unit, sign)
    haze = rng.uniform(0, 0.12) * np.clip(1 + clouds(rng, x.shape, 5), 0, 2)
    haze = haze + 0.10 * np.clip(1 - np.abs(x) / 0.8, 0, 1) + rng.uniform(0, 0.10) * np.clip(y + 0.3, 0, 1)
    markings = 0.5 * clouds(rng, x.shape, 60) * rng.uniform(0.01, 0.05)
    belly = step(y - 0.6, 0.6)
    bubble = step(1 - ((x - 0.5) / 0.28) ** 2 - ((y - 0.85) / 0.16) ** 2, 0.3) * float(rng.random() < 0.4)
    trachea = anatomy_of.band(x, 0.06, 0.05) * step(-0.35 - y, 0.1)
    breast = anatomy_of.breast_field(anatomy, x, y) * rng.uniform(0.04, 0.14)
    total = (
        body * (0.62 + 0.16 * belly)
        - aerated * (0.46 - haze - markings)
        + heart * rng.uniform(0.06, 0.13)
        + central * rng.uniform(0.06, 0.13)
        + spine * 0.09
        + ribs * rng.uniform(0.025, 0.06)
        + bones * rng.uniform(0.05, 0.10)
        + vessels * aerated * rng.uniform(0.08, 0.20)
        + breast
        + density
        - 0.10 * bubble
        - 0.06 * trachea
        + 0.02 * clouds(rng, x.shape, 6)
    )
    return np.maximum(total * (body > 0.02), 0).astype(np.float32), spine
