"""What is known about a film → questions and answers in RadVLM's forms; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radvlm_edge.training.phantom import Box, Finding, Phantom
from radvlm_edge.training.phrasings import (
    ARTICLE,
    ASIDE,
    CLASSIFY,
    DETECT,
    DETECTED,
    LOCATE,
    LOCATE_SEVERAL,
    LOCATED,
    NEGATED,
    NONE,
    ON_SIDE,
    ONE,
    PHRASE,
    PHRASED,
    PLAIN,
    REPORT,
    SCOPE,
    SEVERAL,
    SIDED_FORMS,
    SIDED_NOUNS,
    SPOKEN,
    UNANSWERABLE,
    UNDETECTED,
    WITH_ARTICLE,
)
from radvlm_edge.training.reports import absent, describe, joined, report_text, sentence, there


def place_of(one: Finding) -> str:
    """A finding with its side, where it has one."""
    return f"{one.side} {one.name}".strip()


@dataclass(frozen=True)
class Labels:
    """What may be said about a film."""

    present: frozenset[str]
    found: tuple[Finding, ...] = ()
    """Where the findings are; of a real film only those a radiologist has drawn a box around."""
    regions: dict[str, Box] | None = None
    localised: bool = True
    """False for a film of which only presence is known."""

    def of(self, name: str, side: str = "") -> tuple[Finding, ...]:
        """The places a finding was found in (on one side)."""
        return tuple(one for one in self.found if one.name == name and side in ("", one.side))

    def has(self, name: str, side: str = "") -> bool:
        return bool(self.of(name, side)) if side else name in self.present

    def boxes(self, name: str) -> list[Box]:
        return [one.box for one in self.found if one.name == name]

    def places(self, *names: str) -> tuple[str, ...]:
        """What the boxes of these findings are the boxes of, in the order of `boxes`."""
        return tuple(place_of(one) for name in names for one in self.found if one.name == name)


@dataclass(frozen=True)
class Exchange:
    """One question and its answer."""

    task: str
    """`yesno`, `scope`, `classify`, `region`, `finding`, `several`, `phrase`, `detect`, `report`, `turn`
    (inside a conversation) or `grounded turn`."""
    question: str
    answer: str
    about: str = ""
    """The finding or region asked about."""
    truth: bool = False
    """Whether the finding asked about is there (the answer may still be "No": see negated forms)."""
    places: tuple[str, ...] = ()
    """What each box of the answer is the box of, in order: a region, or a finding with its side."""


def labels_of(phantom: Phantom) -> Labels:
    """Everything a phantom knows."""
    present = frozenset(one.name for one in phantom.findings)
    return Labels(present, phantom.findings, phantom.regions)


def box_text(box: Box) -> str:
    """RadVLM's box: fractions x1, y1, x2, y2 rounded to 2 digits, as Python writes them."""
    return str([round(float(value), 2) for value in box])


def boxes_text(boxes: Sequence[Box]) -> str:
    """Several boxes: `[..], [..] and [..]`."""
    return joined([box_text(box) for box in boxes])


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def fact(labels: Labels, name: str, side: str = "") -> str:
    """`there is a right pleural effusion` or `there is no pleural effusion`, as it is."""
    if not labels.has(name, side):
        return there(absent(name, side))
    return there(describe(name, labels.of(name, side)))


def yes_no(rng: np.random.Generator, labels: Labels, name: str, side: str = "") -> Exchange:
    """Is this finding there (on this side)? One in ten unsided questions is put negatively."""
    here = labels.has(name, side)
    if side:
        nouns = SIDED_NOUNS.get(name)
        form = pick(rng, SIDED_FORMS + ON_SIDE if nouns else ON_SIDE)
        question = form.format(side, pick(rng, nouns or SPOKEN[name][:1]))
        answer = f"{'Yes' if here else 'No'}, {fact(labels, name, side)}."
        return Exchange("yesno", question, answer, f"{side} {name}", here)
    question, negated = _ask(rng, name)
    answer = f"{'Yes' if here != negated else 'No'}, {fact(labels, name)}."
    return Exchange("yesno", question, answer, name, here)


def _ask(rng: np.random.Generator, name: str) -> tuple[str, bool]:
    """A question about one finding, and whether it asks for absence."""
    said = pick(rng, SPOKEN[name][:1] * 2 + SPOKEN[name])
    draw = rng.random()
    if draw < 0.1:
        return pick(rng, NEGATED).format(said), True
    if name in ASIDE and draw < 0.3:
        return pick(rng, ASIDE[name]), False
    if name in WITH_ARTICLE and draw > 0.75:
        return pick(rng, ARTICLE).format(pick(rng, WITH_ARTICLE[name])), False
    question = pick(rng, PLAIN).format(said)
    if question[0] == said[0] and rng.random() < 0.3:
        question = question[0].upper() + question[1:]
    return question, False


def out_of_scope(rng: np.random.Generator) -> Exchange:
    """A question no chest film can answer."""
    return Exchange("scope", pick(rng, SCOPE), UNANSWERABLE)


def classify(rng: np.random.Generator, labels: Labels) -> Exchange:
    """Name every finding, alphabetically as RadVLM's labels are, without sides."""
    names = sorted(labels.present)
    if not names:
        answer = pick(rng, NONE)
    else:
        answer = f"{pick(rng, ONE if len(names) == 1 else SEVERAL)} {joined(names)}."
    return Exchange("classify", pick(rng, CLASSIFY), answer)


def locate_region(rng: np.random.Generator, labels: Labels, name: str) -> Exchange:
    """Where an anatomical region is."""
    assert labels.regions is not None
    answer = pick(rng, LOCATED).format(name, box_text(labels.regions[name]))
    return Exchange("region", pick(rng, LOCATE).format(name), answer, name, places=(name,))


def locate_finding(rng: np.random.Generator, labels: Labels, name: str) -> Exchange:
    """Where a finding is, all its boxes; or that it is not there."""
    question = pick(rng, LOCATE).format(name)
    boxes = labels.boxes(name)
    if not boxes:
        return Exchange("finding", question, f"There is no {name} on the image.", name)
    answer = pick(rng, LOCATED).format(name, boxes_text(boxes))
    return Exchange("finding", question, answer, name, True, labels.places(name))


def locate_several(rng: np.random.Generator, labels: Labels, names: Sequence[str]) -> Exchange:
    """Where two or three findings are, each with all its boxes."""
    question = pick(rng, LOCATE_SEVERAL).format(joined(list(names)))
    parts = [f"the {name} is located at the coordinates {boxes_text(labels.boxes(name))}" for name in names]
    answer = sentence("; ".join(parts))
    return Exchange("several", question, answer, "; ".join(names), True, labels.places(*names))


def phrase_of(rng: np.random.Generator, one: Finding) -> str:
    """A report's sentence about one place of a finding."""
    said = one.kind if one.name == "support devices" else describe(one.name, [one], bool(rng.random() < 0.5))
    return pick(rng, (f"there is {said}", said))


def locate_phrase(rng: np.random.Generator, labels: Labels, one: Finding) -> Exchange:
    """Where a sentence of a report is to be seen."""
    question = pick(rng, PHRASE).format(sentence(phrase_of(rng, one)))
    answer = pick(rng, PHRASED).format(box_text(one.box))
    return Exchange("phrase", question, answer, one.name, True, (place_of(one),))


def detect(rng: np.random.Generator, labels: Labels) -> Exchange:
    """Name every finding with its boxes."""
    parts = [
        f"{describe(name)} located at the coordinates {boxes_text(labels.boxes(name))}"
        for name in sorted(labels.present)
    ]
    answer = f"{pick(rng, DETECTED)} {'; '.join(parts)}." if parts else UNDETECTED
    return Exchange("detect", pick(rng, DETECT), answer, places=labels.places(*sorted(labels.present)))


def report(rng: np.random.Generator, labels: Labels) -> Exchange:
    """A whole report."""
    return Exchange("report", pick(rng, REPORT), report_text(labels.found))
