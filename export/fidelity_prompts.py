"""What a bundle and its checkpoint are both asked about every film: the same prompts for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from radvlm_edge.runtime.answers import LABELS

YES_NO = (
    *(f"Is there {name}?" for name in LABELS),
    "Is there a left pleural effusion?",
    "Is there a right pleural effusion?",
    "Is there a left pneumothorax?",
    "Is there a right pneumothorax?",
    "any effusion?",
    "Is the heart enlarged?",
    "Is this chest X-ray free of pneumothorax?",
)
OPEN = (
    "Provide a radiology report for this Chest X-Ray.",
    "Are there any abnormalities on this Chest X-ray?",
    "Are abnormalities present on this Chest X-ray? Where exactly can they be found?",
    "Where is the right lung located in this Chest X-ray?",
    "Where is the cardiac silhouette located in this Chest X-ray?",
    "Please locate the following sentence: There is a left pleural effusion.",
)


@dataclass(frozen=True)
class Question:
    """One question every film is asked."""

    text: str
    yes_no: bool


QUESTIONS = (*(Question(text, True) for text in YES_NO), *(Question(text, False) for text in OPEN))
ANSWER_TOKENS = 96
"""Answers are compared up to this length."""
FIRST_SEED = 50_000_000
"""Of the phantoms asked about: apart from training's, evaluation's and calibration's."""
FILMS = 24


def described(films: dict[str, Any], rounds: int, unsettled: int) -> dict[str, Any]:
    """What fidelity.json says was asked; no text of films or answers."""
    return {
        "films": films,
        "questions_per_film": len(QUESTIONS),
        "yes_no_per_film": len(YES_NO),
        "answer_tokens": ANSWER_TOKENS,
        "reference_passes": rounds,
        "unsettled": unsettled,
    }
