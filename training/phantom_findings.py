"""Findings added to a drawn chest: what they do to the lungs, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radvlm_edge.training.phantom_anatomy import Anatomy, Field, band, clouds, step

FINDINGS = ("pleural effusion", "pneumothorax", "cardiomegaly", "consolidation")
SIDED = ("pleural effusion", "pneumothorax", "consolidation")


@dataclass(frozen=True)
class Effect:
    """What one finding does: `air` replaces that lung's air, `density` is added; `area` is 0 to 1."""

    air: Field
    density: Field
    area: Field


def effusion(rng: np.random.Generator, anatomy: Anatomy, side: str, air: Field, x: Field, y: Field) -> Effect:
    """Fluid in the pleural space: a blunted angle with a meniscus, up to most of one side."""
    lung = anatomy.lungs[side]
    height = 0.10 + 0.85 * rng.beta(1.2, 2.6)
    across = (x * lung.sign - lung.centre) / lung.half_width
    rise = rng.uniform(0.10, 0.25) * np.clip(across + 0.3, 0, 1.4) ** 2
    level = lung.base + 0.5 * lung.dome - height - rise + 0.06
    below = step(y - level, rng.uniform(0.05, 0.14))
    area = below * step(1.02 - lung.radius(x, y), 0.2) * step(lung.floor(x) + 0.02 - y, 0.05)
    strength = rng.uniform(0.75, 1.0)
    return Effect(air * (1 - strength * below), strength * 0.10 * area, area)


def pneumothorax(
    rng: np.random.Generator, anatomy: Anatomy, side: str, air: Field, x: Field, y: Field
) -> Effect:
    """Air around a collapsed lung: lucent, without vessels, inside a thin pleural line."""
    lung = anatomy.lungs[side]
    collapse = rng.uniform(0.10, 0.50)
    drop, inwards = collapse * rng.uniform(0.7, 1.1), collapse * rng.uniform(0.35, 0.9)
    shrunk = lung.radius(x + lung.sign * inwards * 0.55, y - drop)
    area = air * step(shrunk - 1, 0.08)
    line = band(shrunk - 1, 0.06, 0.06) * air
    return Effect(air, 0.10 * line + 0.09 * collapse * air * (1 - area) - 0.13 * area, area)


def consolidation(
    rng: np.random.Generator, anatomy: Anatomy, side: str, air: Field, x: Field, y: Field
) -> Effect:
    """A patch of airless lung with a ragged edge."""
    lung = anatomy.lungs[side]
    cx = lung.sign * (lung.centre + rng.uniform(-0.2, 0.2))
    cy = rng.uniform(lung.apex + 0.35, lung.base - 0.05)
    rx, ry = rng.uniform(0.14, 0.36), rng.uniform(0.14, 0.38)
    ragged = 0.45 * clouds(rng, x.shape, 12)
    inside = 1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2 + ragged
    area = step(inside, 1.1) * air
    strength = rng.uniform(0.4, 0.8)
    streaks = np.clip(1 + 0.12 * clouds(rng, x.shape, 40), 0, 1.15)
    return Effect(air * (1 - strength * area * streaks), np.zeros_like(air), area)


EFFECTS = {"pleural effusion": effusion, "pneumothorax": pneumothorax, "consolidation": consolidation}


def draw_findings(rng: np.random.Generator) -> list[tuple[str, str]]:
    """(name, side) of what this person has; side is empty for the heart. An eighth has nothing on purpose."""
    if rng.random() < 0.125:
        return []
    found: list[tuple[str, str]] = []
    both = ["right", "left"]
    if rng.random() < 0.48:
        sides = both if rng.random() < 0.25 else [both[rng.integers(2)]]
        found += [("pleural effusion", side) for side in sides]
    if rng.random() < 0.44:
        found.append(("pneumothorax", both[rng.integers(2)]))
    if rng.random() < 0.48:
        found.append(("cardiomegaly", ""))
    if rng.random() < 0.48:
        found.append(("consolidation", both[rng.integers(2)]))
    return found
