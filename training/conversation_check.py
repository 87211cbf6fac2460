"""Is a generated conversation fit to be learned from? Order, boxes and labels against what is known."""

from __future__ import annotations

import re
from collections.abc import Sequence

from radvlm_edge.runtime.answers import LABELS, parse_labels
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.conversation_facts import MAX_ROUNDS, MIN_ROUNDS, ConversationError, Facts
from radvlm_edge.training.report_filter import compares

MAX_CHARS = 1500
"""Longest question or answer."""
CONTROL = ("<image>", "<video>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
_BRACKET = re.compile(r"\[[^\]]*\d[^\]]*\]")
_BOX = re.compile(r"\[((?:\s*\d+(?:\.\d+)?\s*,){3}\s*\d+(?:\.\d+)?\s*)\]")
_PARTS = re.compile(r"(?<!\d)\.(?!\d)|[;!?\n]|,?\s+but\s+|,?\s+however,?\s+")
_YES_NO = re.compile(r"^(yes|no)\b", re.IGNORECASE)


def check(turns: Sequence[Turn], facts: Facts) -> None:
    """Raises ConversationError with the first reason found; passes a conversation that may be used."""
    _order(turns)
    _boxes(turns, facts)
    if facts.labels is not None:
        for turn in turns:
            _labels(turn, facts)


def _order(turns: Sequence[Turn]) -> None:
    if not MIN_ROUNDS <= len(turns) <= MAX_ROUNDS:
        raise ConversationError(f"not {MIN_ROUNDS} to {MAX_ROUNDS} questions")
    for turn in turns:
        texts = (turn.question, turn.answer or "")
        if not all(text.strip() for text in texts):
            raise ConversationError("an empty question or answer")
        if any(token in text for text in texts for token in CONTROL):
            raise ConversationError("a control token")
        if max(map(len, texts)) > MAX_CHARS:
            raise ConversationError(f"a turn longer than {MAX_CHARS} characters")
        if compares(texts[1]):
            raise ConversationError("an answer that compares with another film")


def _boxes(turns: Sequence[Turn], facts: Facts) -> None:
    """Every bracket with digits is a box, inside the film, and one of the source's to two digits."""
    known = {tuple(round(value, 2) for value in box) for one in facts.phrases for box in one.boxes}
    seen = 0
    for turn in turns:
        if _BRACKET.search(turn.question):
            raise ConversationError("a box in a question")
        for bracket in _BRACKET.findall(turn.answer or ""):
            match = _BOX.fullmatch(bracket)
            if match is None:
                raise ConversationError("a bracket that is no box")
            box = tuple(float(value) for value in match[1].split(","))
            if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                raise ConversationError("a box outside the film")
            if box not in known:
                raise ConversationError("a box the source does not have")
            seen += 1
    if facts.phrases and not seen:
        raise ConversationError("grounded, but no box")


def denied_labels(text: str) -> set[str]:
    """Findings a text names without affirming them in the same part of a sentence: `no effusion`."""
    denied: set[str] = set()
    for part in _PARTS.split(text.lower()):
        denied |= {label for label in LABELS if label in part} - set(parse_labels(part))
    return denied - set(parse_labels(text))


def _labels(turn: Turn, facts: Facts) -> None:
    """No answer affirms a finding labelled absent, or denies one labelled present."""
    assert facts.labels is not None
    answer = turn.answer or ""
    affirmed, denied = set(parse_labels(answer)), denied_labels(answer)
    said = _YES_NO.match(answer)
    if said and not affirmed | denied:
        # A bare "Yes." takes its meaning from the question, unless that asks for absence.
        asked = set(parse_labels(turn.question))
        affirmed, denied = (asked, set()) if said[1].lower() == "yes" else (set(), asked)
    for label in sorted(affirmed & facts.labels.absent):
        raise ConversationError(f"affirms {label}, which is labelled absent")
    for label in sorted(denied & facts.labels.present):
        raise ConversationError(f"denies {label}, which is labelled present")
