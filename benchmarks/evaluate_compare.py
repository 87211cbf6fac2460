"""A bundle and its checkpoint on the same questions: do they differ by more than the bundle's report claims?

The claims are those of fidelity.json for the artefacts in use, or, where nothing was measured, the limits
the bundle declares. A claim is contradicted where the evidence is beyond it: the lower end of the 95 %
interval of what was found, over the upper end of what is claimed. Counts are given: few questions
contradict nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.evaluate import Evaluation
from radvlm_edge.benchmarks.evaluate_figures import Case, formulas_of
from radvlm_edge.benchmarks.metrics_bootstrap import interval
from radvlm_edge.benchmarks.metrics_counts import Rows
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import ParityError
from radvlm_edge.export.fidelity_metrics import box_overlap, decision, negations, sides, wilson
from radvlm_edge.runtime.answers import parse_labels

REPORT = "fidelity.json"


@dataclass(frozen=True)
class Claim:
    """What a bundle says of one kind of difference."""

    most: float
    """Upper end: a share of answers, or a loss of box overlap."""
    source: str


def claims_of(bundle: Bundle, combination: str) -> dict[str, Claim]:
    """Of `flips`, `boxes`, and where they were measured `answers` and `labels` (shares that differ)."""
    limits = bundle.manifest.limits
    claims = {
        "flips": Claim(limits["flip_rate"], "declared limit"),
        "boxes": Claim(limits["box_iou_loss"], "declared limit"),
    }
    path = bundle.folder / REPORT
    if not path.exists():
        return claims
    measured = json.loads(path.read_text(encoding="utf-8"))["combinations"].get(combination)
    if measured is None:
        return claims
    source = f"{REPORT}, {combination}"
    asked = measured["answers"]["asked"]
    if measured["yes_no"]["decided"]:
        claims["flips"] = Claim(measured["yes_no"]["interval_95"][1], source)
    if measured["boxes"]["box_iou_loss"] is not None:
        claims["boxes"] = Claim(max(measured["boxes"]["box_iou_loss"], limits["box_iou_loss"]), source)
    for name in ("answers", "labels"):
        share = measured[name]["identical"]
        if share is not None:
            claims[name] = Claim(wilson(round((1 - share) * asked), asked)[1], source)
    return claims


def compare(
    ours: Evaluation, theirs: Evaluation, bundle: Bundle, combination: str, *, draws: int
) -> dict[str, Any]:
    """Differences of a bundle's answers (ours) from its checkpoint's, against the bundle's claims.

    `holds`: no claim is contradicted. Raises ParityError for answers to different questions.
    """
    pairs = _paired(ours.cases, theirs.cases)
    found = changes(pairs)
    claims = claims_of(bundle, combination)
    rows = {name: _judged(one, claims.get(name)) for name, one in found.items()}
    return {
        "combination": combination,
        "items": len(pairs),
        "changes": rows,
        "figures": _figures(pairs, str(ours.result["task"]), str(ours.result["metrics"]), draws),
        "holds": not any(row["beyond"] for row in rows.values()),
    }


def changes(pairs: Sequence[tuple[Case, Case]]) -> dict[str, dict[str, Any]]:
    """What differs between two models' answers: of how many, how much, with its 95 % interval."""
    texts = [
        (mine.text, reference.text)
        for our, their in pairs
        for mine, reference in zip(our.answered.said, their.answered.said, strict=True)
    ]
    decided = [(a, b) for a, b in ((decision(x), decision(y)) for x, y in texts) if b is not None]
    losses = [1 - overlap for mine, reference in texts for overlap in box_overlap(reference, mine)]
    low, high = interval(losses, lambda some: float(np.mean(some))) if losses else (0.0, 1.0)
    return {
        "answers": _share([a != b for a, b in texts]),
        "labels": _share([parse_labels(a) != parse_labels(b) for a, b in texts]),
        "flips": _share([a != b for a, b in decided]),
        "sides": _share([sides(a) != sides(b) for a, b in texts]),
        "negations": _share([negations(a) != negations(b) for a, b in texts]),
        "boxes": {
            "of": len(losses),
            "value": float(np.mean(losses)) if losses else None,
            "interval_95": [low, high],
        },
    }


def _share(differ: Sequence[bool]) -> dict[str, Any]:
    count = sum(differ)
    return {
        "of": len(differ),
        "value": count / len(differ) if differ else None,
        "interval_95": list(wilson(count, len(differ))),
    }


def _judged(found: dict[str, Any], claim: Claim | None) -> dict[str, Any]:
    if claim is None:
        return {**found, "claimed": None, "source": None, "beyond": False}
    beyond = found["value"] is not None and found["interval_95"][0] > claim.most
    return {**found, "claimed": claim.most, "source": claim.source, "beyond": beyond}


def _paired(ours: Sequence[Case], theirs: Sequence[Case]) -> list[tuple[Case, Case]]:
    known = {case.item.key: case for case in theirs}
    if not ours or [case.item.key for case in ours] != [case.item.key for case in theirs]:
        raise ParityError("the two models did not answer the same questions; nothing can be compared")
    return [(case, known[case.item.key]) for case in ours]


def _figures(pairs: Sequence[tuple[Case, Case]], task: str, mode: str, draws: int) -> dict[str, Any]:
    """Each figure's difference, bundle less checkpoint, resampled together."""
    ours, theirs = Rows(), Rows()
    for mine, reference in pairs:
        ours.add(mine.item.group, mine.row)
        theirs.add(reference.item.group, reference.row)
    found = ours.differences(theirs, formulas_of(task, mode), draws=draws)
    return {name: one.as_json() for name, one in found.items()}
