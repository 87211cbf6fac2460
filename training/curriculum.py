"""Which exchanges a film gets: a seeded mix of RadVLM's tasks with as many Yes as No."""

from __future__ import annotations

import numpy as np

from radvlm_edge.training.conversations import conversation
from radvlm_edge.training.instructions import (
    Exchange,
    Labels,
    classify,
    detect,
    locate_finding,
    locate_phrase,
    locate_region,
    locate_several,
    out_of_scope,
    report,
    yes_no,
)
from radvlm_edge.training.phantom_difficulty import FINDINGS, SIDED

YES_IF_ANY = 0.60
"""Share of yes among questions about films that have a finding: makes up for those that have none."""
YES_NO = 5
"""Yes/no questions in one pass over a film."""
CONVERSE, GROUNDED, SCOPED = 0.25, 0.25, 0.12
"""Chance of a conversation, of a grounded one, and of a question no film can answer."""
LISTED = 0.6
"""Chance of a list of all findings, half of these with boxes."""
MAIN = ("right lung", "left lung", "cardiac silhouette")


def ask_about_findings(rng: np.random.Generator, labels: Labels, count: int) -> list[Exchange]:
    """Yes/no questions, three in ten about one side; over many phantoms as many true as not."""
    return [yes_no(rng, labels, *balanced_atom(rng, labels, sided=0.3)) for _ in range(count)]


def balanced_atom(rng: np.random.Generator, labels: Labels, sided: float) -> tuple[str, str]:
    """A finding and a side (or none) to ask about: over many phantoms there as often as not."""
    atoms = [(name, "") for name in FINDINGS]
    if rng.random() < sided:
        atoms = [(name, side) for name in SIDED for side in ("right", "left")]
    wanted = bool(rng.random() < YES_IF_ANY)
    fitting = [atom for atom in atoms if labels.has(*atom) == wanted] or atoms
    return fitting[int(rng.integers(len(fitting)))]


def film_exchanges(rng: np.random.Generator, labels: Labels, yes_no_count: int = YES_NO) -> list[Exchange]:
    """What a phantom is asked in one pass over it: about nine questions, each on its own."""
    exchanges = ask_about_findings(rng, labels, yes_no_count)
    regions = labels.regions or {}
    for pool in ([name for name in MAIN if name in regions], list(regions)):
        if pool:
            exchanges.append(locate_region(rng, labels, pool[int(rng.integers(len(pool)))]))
    exchanges.append(_grounding(rng, labels))
    draw = rng.random()
    exchanges.append(report(rng, labels))
    if draw < LISTED:
        exchanges.append(classify(rng, labels) if draw < LISTED / 2 else detect(rng, labels))
    if rng.random() < SCOPED:
        exchanges.append(out_of_scope(rng))
    return exchanges


def _grounding(rng: np.random.Generator, labels: Labels) -> Exchange:
    """One question about where findings are; one in five about one that is not there."""
    names = sorted({one.name for one in labels.found})
    if not names or rng.random() < 0.2:
        return locate_finding(rng, labels, FINDINGS[int(rng.integers(len(FINDINGS)))])
    draw = rng.random()
    if draw < 0.35:
        return locate_phrase(rng, labels, labels.found[int(rng.integers(len(labels.found)))])
    if draw < 0.55 and len(names) > 1:
        few = rng.permutation(len(names))[: 2 if len(names) == 2 or rng.random() < 0.7 else 3]
        return locate_several(rng, labels, [names[int(index)] for index in sorted(few)])
    return locate_finding(rng, labels, names[int(rng.integers(len(names)))])


def film_conversations(rng: np.random.Generator, labels: Labels) -> list[list[Exchange]]:
    """Multi-turn conversations a phantom gets in one pass: none, a standard or a grounded one."""
    draw = rng.random()
    if draw < CONVERSE:
        return [conversation(rng, labels, grounded=False)]
    return [conversation(rng, labels, grounded=True)] if draw < CONVERSE + GROUNDED else []


def real_exchanges(rng: np.random.Generator, labels: Labels, name: str) -> list[Exchange]:
    """What a film of which only presence is known is asked; boxes only where a radiologist drew them."""
    exchanges = [yes_no(rng, labels, name) for _ in range(3)]
    if labels.boxes(name) and rng.random() < 0.7:
        exchanges.append(locate_finding(rng, labels, name))
    return [*exchanges, classify(rng, labels)] if rng.random() < 0.3 else exchanges
