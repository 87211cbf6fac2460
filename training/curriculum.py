"""Which exchanges a film gets: a seeded mix with as many Yes as No."""

from __future__ import annotations

import numpy as np

from radvlm_edge.training.instructions import (
    Exchange,
    Labels,
    classify,
    detect,
    locate_finding,
    locate_phrase,
    locate_region,
    report,
    yes_no,
)
from radvlm_edge.training.phantom_findings import FINDINGS, SIDED

YES_IF_ANY = 0.64
"""Share of yes among questions about films that have a finding: makes up for those that have none."""


def ask_about_findings(rng: np.random.Generator, labels: Labels, count: int) -> list[Exchange]:
    """Yes/no questions, three in ten about one side; over many phantoms as many true as not."""
    exchanges = []
    for _ in range(count):
        atoms = [(name, "") for name in FINDINGS]
        if rng.random() < 0.3:
            atoms = [(name, side) for name in SIDED for side in ("right", "left")]
        wanted = bool(rng.random() < YES_IF_ANY)
        fitting = [atom for atom in atoms if _true(labels, *atom) == wanted] or atoms
        name, side = fitting[int(rng.integers(len(fitting)))]
        exchanges.append(yes_no(rng, labels, name, side))
    return exchanges


def _true(labels: Labels, name: str, side: str) -> bool:
    return side in labels.sides.get(name, ()) if side else name in labels.present


def film_exchanges(rng: np.random.Generator, labels: Labels, yes_no_count: int = 5) -> list[Exchange]:
    """What a phantom is asked in one pass over it, about nine questions."""
    exchanges = ask_about_findings(rng, labels, yes_no_count)
    names = list(labels.regions)
    main = [name for name in ("right lung", "left lung", "cardiac silhouette") if name in names]
    for pool in (main, names):
        if pool:
            exchanges.append(locate_region(rng, labels, pool[int(rng.integers(len(pool)))]))
    found = list(labels.finding_boxes)
    if found and rng.random() < 0.8:
        name, side = found[int(rng.integers(len(found)))]
        if rng.random() < 0.35:
            exchanges.append(locate_phrase(rng, labels, name, side))
        else:
            exchanges.append(locate_finding(rng, labels, name))
    else:
        exchanges.append(locate_finding(rng, labels, FINDINGS[int(rng.integers(len(FINDINGS)))]))
    draw = rng.random()
    exchanges.append(
        classify(rng, labels) if draw < 0.4 else report(rng, labels) if draw < 0.8 else detect(rng, labels)
    )
    return exchanges


def real_exchanges(rng: np.random.Generator, labels: Labels, name: str) -> list[Exchange]:
    """What a film of which only presence is known is asked: no sides, no boxes."""
    exchanges = [yes_no(rng, labels, name) for _ in range(3)]
    return [*exchanges, classify(rng, labels)] if rng.random() < 0.3 else exchanges
