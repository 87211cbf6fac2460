"""What is on one film while it is being drawn, and what each finding is asked to be."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from radvlm_edge.training.phantom_anatomy import Anatomy, draw_grade, heart_field, lung_field
from radvlm_edge.training.phantom_bones import Break
from radvlm_edge.training.phantom_difficulty import (
    BOTH_SIDES,
    DEVICES,
    FINDINGS,
    GRADES,
    HEALTHY,
    PREVALENCE,
    SIDED,
)
from radvlm_edge.training.phantom_pose import Canvas, Field, Mask, Pose


@dataclass(frozen=True)
class Case:
    """A finding to be drawn."""

    name: str
    side: str
    """The patient's, or empty."""
    severity: str
    """Name of its grade."""
    size: float
    """In the units of phantom_difficulty's table."""
    kind: str = ""
    """`plate` or `collapse` of an atelectasis; which support device."""


def draw_cases(rng: np.random.Generator) -> list[Case]:
    """What this person has: nothing in a tenth of all films, else each finding on its own."""
    if rng.random() < HEALTHY:
        return []
    wanted: list[tuple[str, str]] = []
    for name in FINDINGS:
        here, both, side = rng.random(3)
        if here >= PREVALENCE:
            continue
        if name not in SIDED:
            wanted.append((name, ""))
        elif both < BOTH_SIDES.get(name, 0.0):
            wanted += [(name, "right"), (name, "left")]
        else:
            wanted.append((name, "right" if side < 0.5 else "left"))
    return detail(rng, wanted)


def detail(rng: np.random.Generator, wanted: list[tuple[str, str]]) -> list[Case]:
    """Give every (name, side) its size; what a white lung would hide goes to the other side."""
    cases: list[Case] = []
    for name, side in wanted:
        if name == "support devices":
            kinds = _kinds(rng)
            cases += [_case(rng, name, "", kind) for kind in kinds]
        else:
            cases.append(_case(rng, name, side, ""))
    white = {one.side for one in cases if one.name == "pleural effusion" and one.size > 0.9}
    if not white:
        return cases
    kept = []
    for one in cases:
        hidden = one.side in white and one.name not in ("pleural effusion", "fracture")
        if not hidden:
            kept.append(one)
        elif len(white) == 1 and not any(c.name == one.name and c.side not in white for c in cases):
            other = "left" if one.side == "right" else "right"
            kept.append(Case(one.name, other, one.severity, one.size, one.kind))
    return kept


def _case(rng: np.random.Generator, name: str, side: str, kind: str) -> Case:
    grade, size = draw_grade(rng, GRADES[name])
    if name == "atelectasis":
        kind = "plate" if grade.name == "minor" else "collapse"
    return Case(name, side, grade.name, size, kind)


def _kinds(rng: np.random.Generator) -> list[str]:
    """One to three kinds of device."""
    names, shares = list(DEVICES), np.array(list(DEVICES.values()))
    count = 1 + int(rng.random() < 0.35) + int(rng.random() < 0.12)
    return [str(one) for one in rng.choice(names, size=count, replace=False, p=shares / shares.sum())]


@dataclass
class Scene:
    """Coarse fields `[h, w]` that findings change, and canvases of the film's own size."""

    anatomy: Anatomy
    pose: Pose
    x: Field
    y: Field
    hull: dict[str, Field]
    """Each lung with all its air, 0 to 1."""
    air: dict[str, Field]
    """Share of that air that is left."""
    heart: Field
    """Positive inside the heart."""
    density: Field
    """Attenuation added by findings."""
    markings: Field
    """Factor on vessels and texture: 0 where a lung has drawn back."""
    bright: Canvas
    """Thin lines that add."""
    dark: Canvas
    """Thin lines that take away."""
    metal: Canvas
    """Devices, on top of all else."""
    swell: float = 1.0
    """Factor on the width of vessels."""
    patches: list[tuple[slice, slice, Field]] = field(default_factory=list)
    """Small densities on the film's own pixels: rows, columns, what is added."""
    breaks: list[Break] = field(default_factory=list)

    @classmethod
    def of(cls, anatomy: Anatomy, pose: Pose) -> Scene:
        """A healthy chest in this pose."""
        x, y = pose.grid()
        hull = {side: lung_field(lung, x, y) for side, lung in anatomy.lungs.items()}
        heart = heart_field(anatomy, x, y)
        lungs = anatomy.lungs
        floor = np.where(x < anatomy.shift, lungs["right"].floor(x), lungs["left"].floor(x))
        heart = np.where(y < floor + 0.16, heart, np.minimum(heart, 0.0))
        one, nothing = np.ones_like(x), np.zeros_like(x)
        air = dict.fromkeys(hull, one)
        canvases = (Canvas(pose), Canvas(pose), Canvas(pose))
        return cls(anatomy, pose, x, y, hull, air, heart, nothing, one, *canvases)

    def full(self, area: Field) -> Mask:
        """Where a coarse field is above one half, on the film's own pixels."""
        return self.pose.enlarge_mask(area > 0.5)
