"""What is known about a film → questions and answers in RadVLM's forms.

Where a wording is RadVLM's (uzh-dqbm-cmi/RadVLM, radvlm/data/create_instructions.py) it is kept,
because the runtime's task presets use it. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from radvlm_edge.training.phantom import Box, Phantom
from radvlm_edge.training.phantom_findings import FINDINGS, SIDED


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


SPOKEN = {
    "pleural effusion": ("effusion", "pleural effusion", "pleural fluid", "effusions", "pleural effusions"),
    "pneumothorax": ("pneumothorax",),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "heart enlargement"),
    "consolidation": ("consolidation", "airspace consolidation", "lung consolidation"),
}
"""How people say a finding; the first is the shortest."""

PLAIN = (
    "any {}?",
    "Any {}?",
    "{}?",
    "any {}",
    "any sign of {}?",
    "any signs of {}?",
    "any evidence of {}?",
    "Is there {}?",
    "is there {}?",
    "Is there any {}?",
    "is there any {}?",
    "Is there evidence of {}?",
    "Are there signs of {}?",
    "Do you see {}?",
    "Do you see any {}?",
    "Can you see {}?",
    "Does this film show {}?",
    "Does this chest X-ray show {}?",
    "Does this Chest X-ray show any {}?",
    "Does the patient have {}?",
    "Is {} present?",
    "Is {} visible on this image?",
    "{} present?",
    "{}, yes or no?",
    "Check for {}.",
    "Look for {}.",
)
ARTICLE = ("Is there {}?", "is there {}?", "Do you see {}?", "Does this film show {}?", "Is {} present?")
EFFUSION = ("a pleural effusion", "an effusion")
ENLARGED = (
    "Is the heart enlarged?",
    "is the heart enlarged?",
    "Is the heart too big?",
    "enlarged heart?",
    "any enlarged heart?",
    "Is the cardiac silhouette enlarged?",
    "Does this film show an enlarged heart?",
    "big heart?",
)
NEGATED = (
    "no {}?",
    "No {}?",
    "Is the film free of {}?",
    "is the film free of {}?",
    "Is this chest X-ray free of {}?",
    "Is {} absent?",
    "There is no {}, right?",
    "Can {} be excluded?",
)
SIDED_FORMS = (
    "{} {}?",
    "any {} {}?",
    "Is there a {} {}?",
    "Is there {} {}?",
    "is there a {} {}?",
    "Do you see a {} {}?",
    "Does this film show a {} {}?",
    "Any sign of a {} {}?",
)
ON_SIDE = (
    "Is there {1} on the {0}?",
    "any {1} on the {0} side?",
    "{1} on the {0}?",
    "Is there {1} on the {0} side?",
)

CLASSIFY = (
    "Are there any abnormalities on this Chest X-ray?",
    "Please identify abnormalities on this X-ray.",
    "Identify abnormalities on this image",
    "What abnormalities do you see?",
    "Which findings are present?",
    "List the findings.",
    "What is wrong on this film?",
    "any abnormality?",
    "any findings?",
)
SEVERAL = (
    "The following abnormalities are identified:",
    "The analysis reveals these abnormalities:",
    "The Chest X-ray includes the following abnormalities:",
)
ONE = ("The following abnormality is present:", "The Chest X-ray includes the following finding:")
NONE = (
    "No abnormalities or lesions are detected on this Chest X-ray.",
    "There are no findings on this Chest X-ray.",
)

LOCATE = (
    "Where is the {} located in this Chest X-ray?",
    "Can you point out the {}'s position on the image?",
    "Show me the {}'s location on this CXR.",
    "Indicate the position of the {} on this image.",
    "Where is the {}?",
    "where is the {}?",
    "Locate the {}.",
    "Where exactly is the {} on this film?",
)
LOCATED = (
    "The {} is located at the coordinates {} on the image.",
    "You'll find the {} at {} in the X-ray.",
    "For the {}, the coordinates are {} on the X-ray.",
)
PHRASE = (
    "Please locate the following sentence: {}",
    "Find the region corresponding to: {}",
    "Please indicate where this finding is located: {}",
)
PHRASED = (
    "This sentence is located at the coordinates {} on the image.",
    "The bounding box for this observation is {}.",
    "Its location is given by {}.",
)
DETECT = (
    "Are abnormalities present on this Chest X-ray? Where exactly can they be found?",
    "Which abnormalities are there, and where?",
)
DETECTED = ("Sure! I can find", "Upon examination, I detect", "The findings include")
REPORT = (
    "Provide a radiology report for this Chest X-Ray.",
    "Write a radiology report for this Chest X-ray.",
    "Analyze this image and provide a report.",
    "Please provide a brief radiology report.",
    "Describe this film.",
    "report",
)


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
