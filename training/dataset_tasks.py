"""A candidate → its question and answer in RadVLM's forms; wordings come from phrasings.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.dataset_pairs import Candidate
from radvlm_edge.training.dataset_recipe import DataRecipe
from radvlm_edge.training.instructions import Labels, boxes_text, pick
from radvlm_edge.training.instructions import classify as classify_form
from radvlm_edge.training.phrasings import (
    DETECT,
    DETECTED,
    LOCATE,
    LOCATED,
    PHRASE,
    PHRASED,
    REPORT,
    UNDETECTED,
)
from radvlm_edge.training.source import Boxed, FilmRecord, LabelState


class Rejected(Exception):  # noqa: N818 - an outcome that is counted, never an error a user meets
    """A candidate that gives no pair, and why."""


def lower_label(text: str) -> str:
    """RadVLM's rule for names: `Pleural effusion` is lowered, `ILD` stays."""
    return text if text.isupper() else text.lower()


def lower_sentence(text: str) -> str:
    """The same for a sentence: its first letter, unless the first word is an abbreviation (`NG tube`)."""
    first = text.split(" ", 1)[0]
    return text if len(first) > 1 and first.isupper() else text[0].lower() + text[1:]


def resolved(record: FilmRecord, recipe: DataRecipe) -> LabelState:
    """A film's labels under the recipe's policy. Raises Rejected where there are none."""
    labels = record.labels and record.labels.resolved(recipe.uncertain)
    if labels is None:
        raise Rejected("no label")
    return labels


def report(rng: np.random.Generator, candidate: Candidate, recipe: DataRecipe) -> Turn:
    """A whole report, already filtered, as it is: no preamble."""
    if not candidate.record.report:
        raise Rejected("nothing left of the report")
    return Turn(pick(rng, REPORT), candidate.record.report)


def classify(rng: np.random.Generator, candidate: Candidate, recipe: DataRecipe) -> Turn:
    """The 13 findings, those that are there, alphabetically."""
    exchange = classify_form(rng, Labels(resolved(candidate.record, recipe).present))
    return Turn(exchange.question, exchange.answer)


def region(rng: np.random.Generator, candidate: Candidate, recipe: DataRecipe) -> Turn:
    """One region of the film, drawn at random."""
    regions = candidate.record.regions
    if not regions:
        raise Rejected("no region with a box")
    return _located(rng, regions[int(rng.integers(len(regions)))])


def abnormality(rng: np.random.Generator, candidate: Candidate, recipe: DataRecipe) -> Turn:
    """One class drawn on the film, all its boxes."""
    return _located(rng, (candidate.record.findings or ())[candidate.item])


def detect(rng: np.random.Generator, candidate: Candidate, recipe: DataRecipe) -> Turn:
    """Every class drawn on the film with its boxes."""
    parts = []
    for one in candidate.record.findings or ():
        name = lower_label(_whole(one).text)
        article = "an" if name[0].lower() in "aeiou" else "a"
        parts.append(f"{article} {name} located at the coordinates {boxes_text(one.boxes)}")
    return Turn(pick(rng, DETECT), f"{pick(rng, DETECTED)} {'; '.join(parts)}." if parts else UNDETECTED)


def phrase(rng: np.random.Generator, candidate: Candidate, recipe: DataRecipe) -> Turn:
    """One sentence of a report, all its boxes."""
    one = _whole(candidate.record.phrases[candidate.item])
    return Turn(
        pick(rng, PHRASE).format(lower_sentence(one.text)), pick(rng, PHRASED).format(boxes_text(one.boxes))
    )


def _located(rng: np.random.Generator, one: Boxed) -> Turn:
    name = lower_label(_whole(one).text)
    return Turn(pick(rng, LOCATE).format(name), pick(rng, LOCATED).format(name, boxes_text(one.boxes)))


def _whole(one: Boxed) -> Boxed:
    """Something whose boxes can be written. Raises Rejected for boxes that two digits make empty."""
    if one.in_pixels:
        raise RecipeError(f"{one.text}: boxes are still in pixels; its source did not complete the film")
    usable(one.boxes)
    return one


def usable(boxes: Sequence[tuple[float, float, float, float]]) -> None:
    """Raises Rejected unless there are boxes, all inside the film and not empty at two digits."""
    if not boxes:
        raise Rejected("no box")
    for box in boxes:
        left, top, right, bottom = (round(value, 2) for value in box)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise Rejected("a box that is empty or outside the film")


Form = Callable[[np.random.Generator, Candidate, DataRecipe], Turn]
SINGLE: dict[str, Form] = {
    "report": report,
    "classify": classify,
    "region": region,
    "abnormality": abnormality,
    "detect": detect,
    "phrase": phrase,
}
"""Tasks of one question and one answer."""
