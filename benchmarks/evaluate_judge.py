"""How good a conversation was, 0 to 10: by rules, by a local language model, or by a service the user names.

The paper's judge is GPT-4o. Scores of different judges are not comparable: a result names its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from radvlm_edge.benchmarks.evaluate_items import Item
from radvlm_edge.benchmarks.metrics_boxes import matches
from radvlm_edge.benchmarks.metrics_text import rouge_l
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.answers import parse_boxes, parse_labels
from radvlm_edge.training.conversation_check import denied_labels
from radvlm_edge.training.conversation_models import Complete, Replies, endpoint, gguf
from radvlm_edge.training.dataset_shards import file_digest
from radvlm_edge.training.instructions import boxes_text

_SCORE = re.compile(r"overall score:\**\s*(\d+(?:\.\d+)?)", re.IGNORECASE)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_UNIT = 10_000
BEST = 10.0
INSTRUCTIONS = """You compare the answers of a model that saw only a chest X-ray with those expected of it.
You are given what is known of the film, then a conversation: each question with the expected answer and the
model's answer. Judge how correct, complete and to the point the model's answers are. A wrong side, a finding
that is not there, a missed finding or a box in another place weigh more than wording. End with one line:
Overall score: N
where N is a number from 0 (all wrong) to 10 (as good as expected)."""


@dataclass(frozen=True)
class Verdict:
    """One conversation's score; None where the judge gave none."""

    score: float | None


class Judge(Protocol):
    """Scores conversations."""

    name: str
    """Goes into the result: which rules, or which weights."""

    def score(self, item: Item, answers: Sequence[str]) -> Verdict:
        """Compare a model's answers with the item's own. Raises BackendError where a service is silent."""
        ...


class RuleJudge:
    """Deterministic and offline: each turn's mean of what can be judged, the mean of the turns times 10.

    Judged are: the yes or no it begins with, findings affirmed and denied (F1), boxes (mean IoU of the true
    ones), each where the expected answer has it; else how close the words are (ROUGE-L).
    """

    name = "rules 1"

    def score(self, item: Item, answers: Sequence[str]) -> Verdict:
        turns = [turn_score(answer, true) for answer, true in zip(answers, item.texts, strict=True)]
        return Verdict(BEST * sum(turns) / len(turns) if turns else None)


def turn_score(answer: str, true: str) -> float:
    """0 to 1."""
    parts = []
    wanted, got = _YES_NO.match(true), _YES_NO.match(answer)
    if wanted:
        parts.append(float(got is not None and got[1].lower() == wanted[1].lower()))
    known, own = _claims(true), _claims(answer)
    if known:
        parts.append(2 * len(known & own) / (len(known) + len(own)))
    boxes, found = ([box.xyxy_fraction for box in parse_boxes(text, _UNIT, _UNIT)] for text in (true, answer))
    if boxes:
        overlap = sum(pair[2] for pair in matches(found, boxes))
        parts.append(overlap / max(len(boxes), len(found)))
    return sum(parts) / len(parts) if parts else rouge_l(answer, true)


def _claims(text: str) -> set[tuple[str, bool]]:
    return {(label, True) for label in parse_labels(text)} | {(label, False) for label in denied_labels(text)}


class ModelJudge:
    """Asks a language model; its last `Overall score: N` counts, out of range it does not."""

    def __init__(self, name: str, complete: Complete) -> None:
        self.name, self._complete = name, complete

    def score(self, item: Item, answers: Sequence[str]) -> Verdict:
        try:
            said = self._complete(INSTRUCTIONS, told(item, answers), 0)
        except BackendError as error:
            raise BackendError(f"the judge {self.name} did not answer: {error.__cause__ or error}") from error
        found = _SCORE.findall(said)
        score = float(found[-1]) if found else None
        return Verdict(score if score is not None and score <= BEST else None)


def told(item: Item, answers: Sequence[str]) -> str:
    """What a language model is given about one conversation."""
    lines = []
    if item.labels is not None:
        lines.append(f"Findings present: {', '.join(sorted(item.labels)) or 'none'}")
    if item.boxes:
        names = item.names or ("",) * len(item.boxes)
        lines += [
            f"{name or 'A place'}: {boxes_text([box])}" for name, box in zip(names, item.boxes, strict=True)
        ]
    lines.append("Conversation:")
    for question, true, answer in zip(item.questions, item.texts, answers, strict=True):
        lines.append(f"Question: {question}\nExpected answer: {true}\nModel's answer: {answer}\n")
    return "\n".join(lines)


def open_judge(kind: str, model: str | None, url: str | None, replies: Path) -> Judge:
    """`rules`, `gguf` (model: a file) or `openai` (url, and the model's name); replies are kept on disk.

    Nothing is sent anywhere but to that url. Raises BackendError for what is missing.
    """
    if kind == "rules":
        return RuleJudge()
    if model is None or (kind == "openai" and url is None):
        needed = "--judge-model FILE" if kind == "gguf" else "--judge-url URL and --judge-model NAME"
        raise BackendError(f"judge {kind}: pass {needed}")
    if kind == "gguf":
        complete, name = gguf(Path(model)), f"gguf {file_digest(Path(model))}"
    else:
        complete, name = endpoint(str(url), model), f"openai {model}"
    replies.parent.mkdir(parents=True, exist_ok=True)
    replies.touch(mode=0o600)
    return ModelJudge(name, Replies(replies, complete, name))
