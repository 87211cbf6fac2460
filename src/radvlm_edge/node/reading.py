"""Film → findings, answers and boxes; or the reason why there are none."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom

from radvlm_edge.errors import DetailError, FilmError, QuestionError
from radvlm_edge.node.questions import Questions
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.answers import LABELS, Box
from radvlm_edge.runtime.confidence import UNCALIBRATED, Confidence
from radvlm_edge.runtime.dicom import CHEST, DAMAGE, LATERAL
from radvlm_edge.runtime.reader import Reader, Study

log = logging.getLogger("radvlm_edge.node")

PRESENT, ABSENT, UNDETERMINED = "present", "absent", "undetermined"


@dataclass(frozen=True)
class Finding:
    """What was said of one finding."""

    label: str
    """One of `answers.LABELS`."""
    presence: str
    """`present`, `absent`, or `undetermined` where the answer is neither yes nor no."""
    question: str
    confidence: Confidence | None = None
    """Only where it was calibrated: an uncalibrated number has no place in a report."""


@dataclass(frozen=True)
class Spoken:
    """A question of no finding's own, and its answer."""

    question: str
    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Reading:
    """What the model said of a film."""

    findings: tuple[Finding, ...]
    answers: tuple[Spoken, ...]
    notes: tuple[str, ...]
    """What was odd about the film, one line each."""
    pixels: npt.NDArray[np.uint8]
    """The film as the model saw it, `[H, W]` grey."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Every box of every answer, in their order."""
        return tuple(box for answer in self.answers for box in answer.boxes)


@dataclass(frozen=True)
class Failure:
    """Why a film has no reading."""

    reason: str
    """One line for people."""
    attempted: bool = True
    """False for a film that is not what the model knows: it was not shown to it."""


def read(
    reader: Reader,
    content: bytes,
    questions: Questions,
    *,
    any_view: bool = False,
    note: Callable[[Study, Answer], object] | None = None,
) -> Reading | Failure:
    """Look at a film once and ask it everything; every answer goes to `note` before any is given.

    A film that cannot be read, or is none the model knows, is a `Failure`; faults of the engines are raised.
    """
    if not any_view and (reason := unfit(content)) is not None:
        return Failure(reason, attempted=False)
    try:
        study = reader.look(content)
        checklist = questions.checklist
        asked = [*checklist.values(), *questions.others]
        answers = study.ask_many(asked)
        for said in study.notes:
            log.warning("the study cache: %s", said)
    except (FilmError, QuestionError, DetailError) as error:
        return Failure(str(error).removeprefix("-: "))
    if note is not None:
        for answer in answers:
            note(study, answer)
    listed = tuple(
        Finding(label, presence(answer.text), answer.question, _calibrated(answer))
        for label, answer in zip(checklist, answers, strict=False)
    )
    others = answers[len(checklist) :]
    spoken = tuple(Spoken(answer.question, answer.text, answer.boxes) for answer in others)
    named = {
        label: Finding(label, PRESENT, answer.question)
        for answer in reversed(others)
        for label in answer.labels
        if label not in checklist  # asked for itself, it was answered for itself
    }
    film = study.film
    return Reading(
        (*listed, *(named[label] for label in LABELS if label in named)),
        spoken,
        film.warnings,
        film.pixels,
    )


def unfit(content: bytes) -> str | None:
    """Why a film is none the model knows, by its own header; `None` where nothing speaks against it."""
    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        body = str(header.get("BodyPartExamined") or "").strip().upper()
        view = str(header.get("ViewPosition") or "").strip().upper()
    except DAMAGE:
        return None  # the reader says what is wrong with it
    if body and not any(part in body for part in CHEST):
        return f"body part {body[:16]}: the model knows chest films only"
    if view in LATERAL:
        return f"view {view}: the model knows frontal films only"
    return None


def presence(text: str) -> str:
    """What a checklist's answer says, by its first word."""
    words = text.split()
    first = words[0].strip(",.;:!").lower() if words else ""
    return {"yes": PRESENT, "no": ABSENT}.get(first, UNDETERMINED)


def _calibrated(answer: Answer) -> Confidence | None:
    confidence = answer.confidence
    return None if confidence.calibrated_on == UNCALIBRATED else confidence
