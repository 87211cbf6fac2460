"""Multi-turn conversations about one film, standard and grounded: written from labels, by templates.

Later questions lean on earlier ones ("On which side?", "Where is it?"), so the answer has to be
looked up in the conversation as well as on the film.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radvlm_edge.training.instructions import (
    Exchange,
    Labels,
    boxes_text,
    classify,
    out_of_scope,
    pick,
    yes_no,
)
from radvlm_edge.training.phantom import Finding
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.reports import joined, report_text

_OPEN = ("What do you see on this film?", "Can you describe the main findings?", "What does this X-ray show?")
_SIDE = ("On which side?", "Which side is it on?")
_SIZE = ("How large is it?", "How severe is it?")
_SITE = ("In which part of the lung?", "Which lung zone is it in?")
_KIND = ("Which devices are there?", "What kind of device is it?")
_ELSE = ("Is there anything else?", "Anything else?")
_NORMAL = ("So is this film normal?", "Is the film normal?")
_WHERE = ("Where is it located on the image?", "Where is it?", "Can you show me where?")
_WHERE_IS = ("Where is the {} located on the image?", "And where is the {}?")


def conversation(rng: np.random.Generator, labels: Labels, grounded: bool) -> list[Exchange]:
    """Three to six turns; grounded ones ask for boxes."""
    names = sorted(labels.present)
    topic = names[int(rng.integers(len(names)))] if names else ""
    turns = [_opening(rng, labels) if rng.random() < 0.5 else classify(rng, labels)]
    if topic and rng.random() < 0.7:
        turns += [yes_no(rng, labels, topic), *_follow(rng, labels, topic, grounded)]
    else:
        turns.append(yes_no(rng, labels, FINDINGS[int(rng.integers(len(FINDINGS)))]))
    more: list[Callable[[], Exchange]] = [
        lambda: yes_no(rng, labels, FINDINGS[int(rng.integers(len(FINDINGS)))]),
        lambda: _anything_else(rng, labels, topic),
        lambda: out_of_scope(rng),
        lambda: _normal(rng, labels),
    ]
    if grounded and labels.regions:
        regions = list(labels.regions)
        more[2] = lambda: _where(rng, labels, regions[int(rng.integers(len(regions)))])
    for index in rng.permutation(len(more))[: int(rng.integers(1, 3))]:
        turns.append(more[int(index)]())
    return turns[:6]


def _turn(question: str, answer: str, about: str = "", places: tuple[str, ...] = ()) -> Exchange:
    return Exchange("grounded turn" if places else "turn", question, answer, about, places=places)


def _opening(rng: np.random.Generator, labels: Labels) -> Exchange:
    return _turn(pick(rng, _OPEN), report_text(labels.found))


def _follow(rng: np.random.Generator, labels: Labels, name: str, grounded: bool) -> list[Exchange]:
    """One or two questions that only make sense after the one before."""
    found = labels.of(name)
    asked = []
    if name == "support devices":
        asked.append(_turn(pick(rng, _KIND), f"{joined([one.kind for one in found]).capitalize()}.", name))
    elif len(found) == 1:
        asked.append(_about_one(rng, found[0]))
    else:
        asked.append(_turn(pick(rng, _SIDE), "On both sides.", name))
    if grounded:
        answer = f"It is located at {boxes_text(labels.boxes(name))}."
        where = _turn(pick(rng, _WHERE), answer, name, labels.places(name))
        asked = [where] if rng.random() < 0.5 else [*asked, where]
    return asked


def _about_one(rng: np.random.Generator, one: Finding) -> Exchange:
    ways = []
    if one.side:
        ways.append(_turn(pick(rng, _SIDE), f"On the {one.side}.", one.name))
    if one.severity and one.name not in ("atelectasis", "fracture"):
        ways.append(_turn(pick(rng, _SIZE), f"It is {one.severity}.", one.name))
    if one.site and one.name != "fracture":
        ways.append(_turn(pick(rng, _SITE), f"In the {one.side} {one.site} lung zone.", one.name))
    return ways[int(rng.integers(len(ways)))]


def _anything_else(rng: np.random.Generator, labels: Labels, topic: str) -> Exchange:
    rest = sorted(labels.present - {topic})
    answer = f"Yes: {joined(rest)}." if rest else "No, nothing else."
    return _turn(pick(rng, _ELSE), answer)


def _normal(rng: np.random.Generator, labels: Labels) -> Exchange:
    names = sorted(labels.present)
    answer = f"No, it shows {joined(names)}." if names else "Yes, the film is normal."
    return _turn(pick(rng, _NORMAL), answer)


def _where(rng: np.random.Generator, labels: Labels, region: str) -> Exchange:
    assert labels.regions is not None
    answer = f"It is located at {boxes_text([labels.regions[region]])}."
    return _turn(pick(rng, _WHERE_IS).format(region), answer, region, (region,))
