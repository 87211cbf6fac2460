"""How hard the phantoms are: one table, fixed and published (docs/nano-task.md) before any training.

Sizes are in body units (half an adult thorax; about 170 px on a film of 450 px) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """One step of a finding's severity."""

    name: str
    """The adjective reports use; empty where reports use none."""
    share: float
    """Part of this finding's cases."""
    low: float
    high: float


FINDINGS = (
    "pleural effusion",
    "pneumothorax",
    "cardiomegaly",
    "consolidation",
    "lung lesion",
    "edema",
    "atelectasis",
    "support devices",
    "fracture",
)
"""Names are RadVLM's; the order is that of lists and reports."""
SIDED = ("pleural effusion", "pneumothorax", "consolidation", "lung lesion", "atelectasis", "fracture")

PREVALENCE = 0.29
"""Chance of each finding on a film that was not drawn healthy on purpose, each on its own."""
HEALTHY = 0.10
"""Share of films drawn without any finding on purpose."""
BOTH_SIDES = {"pleural effusion": 0.25, "consolidation": 0.2, "lung lesion": 0.2, "atelectasis": 0.15}
"""Chance that a sided finding is on both sides; 0 where not named."""

GRADES = {
    # height of the fluid above the costophrenic angle
    "pleural effusion": (
        Grade("small", 0.36, 0.09, 0.22),
        Grade("moderate", 0.39, 0.22, 0.60),
        Grade("large", 0.25, 0.60, 1.90),
    ),
    # depth of the air at the apex; 0.05 is a rim of about seven pixels
    "pneumothorax": (
        Grade("small", 0.20, 0.05, 0.10),
        Grade("moderate", 0.40, 0.10, 0.26),
        Grade("large", 0.40, 0.26, 0.60),
    ),
    # cardiothoracic ratio
    "cardiomegaly": (
        Grade("mild", 0.25, 0.50, 0.54),
        Grade("moderate", 0.45, 0.54, 0.62),
        Grade("severe", 0.30, 0.62, 0.72),
    ),
    # radius of the patch
    "consolidation": (
        Grade("small", 0.30, 0.09, 0.15),
        Grade("moderate", 0.42, 0.15, 0.26),
        Grade("large", 0.28, 0.26, 0.40),
    ),
    # radius; 0.022 is a disc of seven pixels across
    "lung lesion": (
        Grade("small", 0.25, 0.022, 0.036),
        Grade("medium", 0.45, 0.036, 0.08),
        Grade("large", 0.30, 0.08, 0.16),
    ),
    # share of air lost around the hila
    "edema": (
        Grade("mild", 0.32, 0.24, 0.36),
        Grade("moderate", 0.40, 0.36, 0.52),
        Grade("severe", 0.28, 0.52, 0.75),
    ),
    # half length of a plate, or of a collapsed wedge
    "atelectasis": (
        Grade("minor", 0.45, 0.16, 0.28),
        Grade("marked", 0.55, 0.30, 0.50),
    ),
    # how well a device shows, as a factor on its contrast
    "support devices": (
        Grade("faint", 0.20, 0.90, 1.30),
        Grade("clear", 0.80, 1.30, 2.20),
    ),
    # step-off between the two ends of the rib
    "fracture": (
        Grade("slight", 0.25, 0.040, 0.060),
        Grade("displaced", 0.75, 0.060, 0.120),
    ),
}
"""Finding → its grades; within a grade sizes are uniform."""

NORMAL_HEART = (Grade("borderline", 0.25, 0.46, 0.50), Grade("normal", 0.75, 0.36, 0.46))
"""Cardiothoracic ratios of hearts that are not enlarged: the label is the ratio, 0.50 the limit."""

DEVICES = {
    "endotracheal tube": 0.26,
    "nasogastric tube": 0.16,
    "central venous line": 0.34,
    "chest tube": 0.12,
    "pacemaker": 0.12,
}
"""Kinds of support device and their shares; a film with devices has one to three kinds."""

MIMICS = {"skin fold": 0.14, "nipples": 0.16, "button": 0.08, "calcified hilum": 0.10}
"""Chance of things that look like findings and are none, on any film."""
