"""What is known about a film → questions and answers in RadVLM's forms; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from radvlm_edge.training.phantom import Box, Phantom
from radvlm_edge.training.phantom_findings import FINDINGS, SIDED
from radvlm_edge.training.phrasings import (
    ARTICLE,
    CLASSIFY,
    DETECT,
    DETECTED,
    EFFUSION,
    ENLARGED,
    LOCATE,
    LOCATED,
    NEGATED,
    NONE,
    ON_SIDE,
    ONE,
    PHRASE,
    PHRASED,
    PLAIN,
    REPORT,
    SEVERAL,
    SIDED_FORMS,
    SPOKEN,
)


@dataclass(frozen=True)
class Labels:
    """What may be said about a film; a real film's sides and boxes are unknown and stay empty."""

    present: frozenset[str]
    sides: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Finding → the patient's sides that have it; missing where sides are unknown."""
    finding_boxes: dict[tuple[str, str], Box] = field(default_factory=dict)
    """(finding, side) → box."""
    regions: dict[str, Box] = field(default_factory=dict)
    localised: bool = True
    """False for a film of which only presence is known."""


@dataclass(frozen=True)
class Exchange:
    """One question and its answer."""

    task: str
    """`yesno`, `classify`, `region`, `finding`, `phrase`, `detect` or `report`."""
    question: str
    answer: str
    about: str = ""
    """The finding or region asked about."""
    truth: bool = False
    """Whether the finding asked about is there (the answer may still be "No": see negated forms)."""


def labels_of(phantom: Phantom) -> Labels:
    """Everything a phantom knows."""
    sides: dict[str, tuple[str, ...]] = {}
    for name in SIDED:
        sides[name] = tuple(one.side for one in phantom.findings if one.name == name)
    return Labels(
        present=frozenset(one.name for one in phantom.findings),
        sides=sides,
        finding_boxes={(one.name, one.side): one.box for one in phantom.findings},
        regions=phantom.regions,
    )


def box_text(box: Box) -> str:
    """RadVLM's box: fractions x1, y1, x2, y2 rounded to 2 digits, as Python writes them."""
    return str([round(float(value), 2) for value in box])


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def describe(name: str, sides: Sequence[str]) -> str:
    """A finding as an answer names it: `a right pleural effusion`, `consolidation in the left lung`."""
    if name == "cardiomegaly" or (name == "consolidation" and not sides):
        return name
    if name == "consolidation":
        return f"consolidation in the {sides[0]} lung" if len(sides) == 1 else "consolidation in both lungs"
    if len(sides) == 2:
        return "bilateral pleural effusions" if name == "pleural effusion" else "bilateral pneumothoraces"
    return f"a {sides[0]} {name}" if sides else f"a {name}"


def _there(what: str) -> str:
    return f"there are {what}" if what.startswith("bilateral") else f"there is {what}"


def yes_no(rng: np.random.Generator, labels: Labels, name: str, side: str = "") -> Exchange:
    """Is this finding there (on this side)? One in ten unsided questions is put negatively."""
    said = _pick(rng, SPOKEN[name][:1] * 2 + SPOKEN[name])
    if side:
        here = side in labels.sides.get(name, ())
        form = _pick(rng, SIDED_FORMS + ON_SIDE)
        noun = SPOKEN[name][int(rng.integers(2))] if name == "pleural effusion" else name
        question = form.format(side, noun)
        sided = describe(name, (side,))
        missing = f"consolidation in the {side} lung" if name == "consolidation" else f"{side} {name}"
        answer = f"Yes, there is {sided}." if here else f"No, there is no {missing}."
        return Exchange("yesno", question, answer, f"{side} {name}", here)
    here = name in labels.present
    fact = _there(describe(name, labels.sides.get(name, ()))) if here else f"there is no {name}"
    negated = rng.random() < 0.1
    if negated:
        question = _pick(rng, NEGATED).format(said)
    elif name == "cardiomegaly" and rng.random() < 0.35:
        question = _pick(rng, ENLARGED)
    elif name in ("pleural effusion", "pneumothorax") and rng.random() < 0.25:
        question = _pick(rng, ARTICLE).format(
            "a pneumothorax" if name == "pneumothorax" else _pick(rng, EFFUSION)
        )
    else:
        question = _pick(rng, PLAIN).format(said)
    if question[0] == said[0] and rng.random() < 0.3:
        question = question[0].upper() + question[1:]
    return Exchange("yesno", question, f"{'Yes' if here != negated else 'No'}, {fact}.", name, here)


def classify(rng: np.random.Generator, labels: Labels) -> Exchange:
    """Name every finding, in a fixed order, without sides."""
    names = [name for name in FINDINGS if name in labels.present]
    if not names:
        answer = _pick(rng, NONE)
    elif len(names) == 1:
        answer = f"{_pick(rng, ONE)} {names[0]}."
    else:
        answer = f"{_pick(rng, SEVERAL)} {', '.join(names[:-1])} and {names[-1]}."
    return Exchange("classify", _pick(rng, CLASSIFY), answer)


def locate_region(rng: np.random.Generator, labels: Labels, name: str) -> Exchange:
    """Where an anatomical region is."""
    answer = _pick(rng, LOCATED).format(name, box_text(labels.regions[name]))
    return Exchange("region", _pick(rng, LOCATE).format(name), answer, name)


def locate_finding(rng: np.random.Generator, labels: Labels, name: str) -> Exchange:
    """Where a finding is, all its boxes; or that it is not there."""
    question = _pick(rng, LOCATE).format(name)
    boxes = [box for (found, _), box in labels.finding_boxes.items() if found == name]
    if not boxes:
        return Exchange("finding", question, f"There is no {name} on the image.", name)
    text = " and ".join(box_text(box) for box in boxes)
    return Exchange("finding", question, _pick(rng, LOCATED).format(name, text), name, True)


def locate_phrase(rng: np.random.Generator, labels: Labels, name: str, side: str) -> Exchange:
    """Where a sentence of a report is to be seen."""
    said = describe(name, (side,) if side else ())
    sentence = _pick(rng, ("There is {}.", "{}.", "{}")).format(said)
    question = _pick(rng, PHRASE).format(sentence[0].upper() + sentence[1:])
    text = box_text(labels.finding_boxes[name, side])
    return Exchange("phrase", question, _pick(rng, PHRASED).format(text), name, True)


def detect(rng: np.random.Generator, labels: Labels) -> Exchange:
    """Name every finding with its boxes."""
    parts = []
    for name in FINDINGS:
        boxes = [box_text(box) for (found, _), box in labels.finding_boxes.items() if found == name]
        if boxes:
            parts.append(f"{describe(name, ())} located at the coordinates {' and '.join(boxes)}")
    answer = (
        f"{_pick(rng, DETECTED)} {'; '.join(parts)}." if parts else "I can't find any lesion on the image."
    )
    return Exchange("detect", _pick(rng, DETECT), answer)


def report(rng: np.random.Generator, labels: Labels) -> Exchange:
    """One sentence for each of heart, lungs and both pleural findings."""
    sentences = [
        "There is cardiomegaly." if "cardiomegaly" in labels.present else "The heart size is normal."
    ]
    for name in ("consolidation", "pleural effusion", "pneumothorax"):
        if name in labels.present:
            sentences.append(_there(describe(name, labels.sides.get(name, ()))).capitalize() + ".")
        else:
            sentences.append(f"No {name}.")
    return Exchange("report", _pick(rng, REPORT), " ".join(sentences))
