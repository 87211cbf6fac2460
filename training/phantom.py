"""Procedural frontal chest films with findings and boxes: everything known, nothing borrowed.

They look like chest films and teach a small model where things are; they are no substitute for
films. numpy and Pillow only. How hard they are is fixed in phantom_difficulty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radvlm_edge.training.phantom_anatomy import (
    Anatomy,
    body_field,
    breast_field,
    depth_field,
    draw_anatomy,
    hilum_field,
    mediastinum_field,
    trachea_points,
)
from radvlm_edge.training.phantom_bones import bone_field
from radvlm_edge.training.phantom_devices import device, mimics
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.phantom_film import collimation, expose, scatter
from radvlm_edge.training.phantom_findings import DRAW
from radvlm_edge.training.phantom_pose import (
    Canvas,
    Field,
    Mask,
    Pose,
    blurred,
    clouds,
    draw_pose,
    ellipse,
    step,
)
from radvlm_edge.training.phantom_regions import Box, box_of, region_boxes, region_masks, zone_of
from radvlm_edge.training.phantom_scene import Case, Scene, detail, draw_cases
from radvlm_edge.training.phantom_vessels import lung_texture, vessel_field

__all__ = ["Box", "Finding", "Phantom", "box_of", "make_phantom"]


@dataclass(frozen=True)
class Finding:
    """One abnormality."""

    name: str
    """RadVLM's label."""
    side: str
    """The patient's (`right`, `left`), or empty."""
    box: Box
    severity: str = ""
    """Its grade in phantom_difficulty, e.g. `small`."""
    site: str = ""
    """`upper`, `mid` or `lower` zone of the lung; empty where that says nothing."""
    kind: str = ""
    """Which support device; `plate` or `collapse` of an atelectasis."""


@dataclass(frozen=True)
class Phantom:
    """A film and all there is to know about it."""

    pixels: npt.NDArray[np.uint8]
    """`[H, W]`, bone bright."""
    findings: tuple[Finding, ...]
    regions: dict[str, Box]
    """Anatomical regions by their Chest ImaGenome names; those outside the film are missing."""
    masks: dict[str, Mask]
    """`[H, W]` areas of main regions and findings; a sided finding also as `"left pneumothorax"`."""
    heart_ratio: float = 0.0
    """Cardiothoracic ratio; above 0.50 the heart is enlarged."""

    def has(self, name: str, side: str = "") -> bool:
        """Whether the finding is there, on this side if one is given."""
        return any(one.name == name and side in ("", one.side) for one in self.findings)


_SITED = ("consolidation", "lung lesion", "atelectasis", "fracture")
_MASKED = ("right lung", "left lung", "cardiac silhouette", "mediastinum")


def make_phantom(
    seed: int,
    short_px: tuple[int, int] = (380, 520),
    findings: list[tuple[str, str]] | None = None,
) -> Phantom:
    """Draw the film that belongs to a seed: the same seed, the same film.

    `short_px` bounds the shorter side; `findings` as (name, side) replaces the random ones and
    leaves all that has nothing to do with them as it was.
    """
    rngs = [np.random.default_rng([seed, part]) for part in range(7)]
    cases = draw_cases(rngs[0]) if findings is None else detail(rngs[0], findings)
    ratio = next((one.size for one in cases if one.name == "cardiomegaly"), None)
    collapsed = {one.side: one.size for one in cases if one.kind == "collapse"}
    pose = draw_pose(rngs[1], short_px)
    anatomy = draw_anatomy(rngs[2], ratio, {side: 0.35 * size for side, size in collapsed.items()})
    exposed = collimation(rngs[3], pose)
    scene = Scene.of(anatomy, pose)
    drawn = _draw_cases(seed, scene, cases)
    mimics(rngs[4], scene)
    attenuation = _attenuate(rngs[5], scene)
    pixels = expose(rngs[6], attenuation, exposed, anatomy.portable)
    return _describe(scene, drawn, pixels, exposed)


def _draw_cases(seed: int, scene: Scene, cases: list[Case]) -> list[tuple[Case, Mask]]:
    """Draw every case that finds a place."""
    drawn: list[tuple[Case, Mask]] = []
    for name, draw in DRAW.items():
        for index, case in enumerate(one for one in cases if one.name == name):
            rng = np.random.default_rng([seed, 20 + FINDINGS.index(name), index])
            mask = draw(rng, scene, case)
            if mask is not None:
                drawn.append((case, mask))
    for index, case in enumerate(one for one in cases if one.name == "support devices"):
        rng = np.random.default_rng([seed, 20 + FINDINGS.index(case.name), index])
        drawn.append((case, device(rng, scene, case)))
    if any(one.name == "cardiomegaly" for one in cases):
        case = next(one for one in cases if one.name == "cardiomegaly")
        drawn.append((case, scene.full(np.where(scene.heart > 0, 1.0, 0.0))))
    return drawn


def _describe(
    scene: Scene, drawn: list[tuple[Case, Mask]], pixels: npt.NDArray[np.uint8], exposed: Mask | None
) -> Phantom:
    """Boxes and masks of what lies on the exposed part of the film."""
    coarse = region_masks(scene)
    masks = {name: scene.pose.enlarge_mask(coarse[name]) for name in _MASKED}
    found = []
    for case, mask in drawn:
        area = mask if exposed is None else mask & exposed
        box = box_of(area)
        if box is None or area.sum() < 0.25 * mask.sum():
            continue
        site = ""
        if case.name in _SITED:
            rows, columns = np.nonzero(area[::2, ::2])
            y = float(np.mean(scene.y[rows, columns])) if len(rows) else 0.0
            site = zone_of(scene, case.side, y)
        found.append(Finding(case.name, case.side, box, case.severity, site, case.kind))
        masks[case.name] = masks[case.name] | area if case.name in masks else area
        if case.side:
            masks[f"{case.side} {case.name}"] = area
    found.sort(key=lambda one: (FINDINGS.index(one.name), one.side != "right", one.box))
    regions = region_boxes(scene, coarse)
    return Phantom(pixels, tuple(found), regions, masks, scene.anatomy.heart_ratio)


def _attenuate(rng: np.random.Generator, scene: Scene) -> Field:
    """Sum what every structure takes from the beam, `[H, W]` float32."""
    anatomy, pose, x, y = scene.anatomy, scene.pose, scene.x, scene.y
    body = body_field(anatomy, x, y)
    central = mediastinum_field(anatomy, x, y)
    behind = np.clip(scene.heart, 0, 1) ** 0.45 * step(scene.heart, 0.05) * rng.uniform(0.66, 0.82)
    front = np.maximum(behind, central * rng.uniform(0.78, 0.92))
    air = np.maximum(scene.hull["right"] * scene.air["right"], scene.hull["left"] * scene.air["left"])
    aerated = air * (1 - front)
    texture = lung_texture(rng, x.shape) * np.float32(rng.uniform(0.006, 0.014))
    coarse = body * rng.uniform(0.92, 1.08) - aerated * depth_field(anatomy, x, y) + aerated * texture
    coarse += 0.07 * hilum_field(anatomy, x, y) * air + breast_field(anatomy, x, y) * rng.uniform(0.05, 0.16)
    coarse += (
        scene.density
        + 0.05 * central
        + 0.05 * step(0.13 - np.abs(x - anatomy.midline(y)), 0.06) * (body > 0.3)
    )
    coarse -= _airway(anatomy, pose, x.shape) * rng.uniform(0.09, 0.16)
    coarse -= _gas(rng, anatomy, x, y) + 0.015 * clouds(rng, x.shape, 7) * (body > 0.1)
    floor = np.where(x < anatomy.shift, anatomy.lungs["right"].floor(x), anatomy.lungs["left"].floor(x))
    coarse, left = scatter(rng, coarse, anatomy.portable)

    total = pose.enlarge(coarse).copy()
    marked = pose.enlarge_share(aerated * scene.markings)
    shown = pose.enlarge_share(step(floor + 0.02 - y, 0.06) * 0.75 + 0.25)
    vessels = vessel_field(rng, anatomy, pose, scene.swell)
    total += vessels * marked * np.float32(left * rng.uniform(0.20, 0.34))
    bones = bone_field(rng, anatomy, pose, scene.breaks)
    total += bones * shown * np.float32(left * rng.uniform(0.32, 0.48))
    blur = max(0.4, pose.unit * 0.003)
    for canvas, weight, blur_px in (
        (scene.bright, 0.26, blur),
        (scene.dark, -0.16, blur),
        (scene.metal, rng.uniform(0.32, 0.44), 0.4),
    ):
        if not canvas.empty:
            total += canvas.field(blur_px) * np.float32(left * weight)
    for rows, columns, patch in scene.patches:
        total[rows, columns] += patch * np.float32(left)
    return total


def _gas(rng: np.random.Generator, anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Gas in the stomach and colon, below the diaphragm."""
    floor = anatomy.lungs["left"].base
    gas = np.zeros_like(x)
    if rng.random() < 0.55:
        centre, radii = (
            (rng.uniform(0.35, 0.6), floor + rng.uniform(0.22, 0.34)),
            (rng.uniform(0.12, 0.28), 0.10),
        )
        gas = step(ellipse(x, y, centre, radii), 0.35) * rng.uniform(0.12, 0.3)
    for _ in range(int(rng.integers(0, 4))):
        centre = (float(rng.uniform(-0.7, 0.9)), floor + float(rng.uniform(0.4, 0.75)))
        radii = (float(rng.uniform(0.06, 0.2)), float(rng.uniform(0.05, 0.12)))
        gas = np.maximum(gas, step(ellipse(x, y, centre, radii), 0.5) * rng.uniform(0.08, 0.22))
    return gas * (y > floor + 0.08)


def _airway(anatomy: Anatomy, pose: Pose, shape: tuple[int, int]) -> Field:
    """Trachea and main bronchi, 0 to 1, coarse."""
    canvas = Canvas(pose)
    lines = trachea_points(anatomy)
    canvas.line(lines["trachea"], 255, pose.unit * 0.10)
    canvas.line(lines["right"], 190, pose.unit * 0.065)
    canvas.line(lines["left"], 150, pose.unit * 0.05)
    return blurred(np.asarray(canvas.image.resize((shape[1], shape[0])), np.float32) / 255, 2)
