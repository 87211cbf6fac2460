"""What text and overlap scores do not see: wrong sides, turned negations, boxes that cannot be.

Rules over English clauses, the same as the runtime's label reading. They judge what they understand and say
how much that was: a figure without its count means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from radvlm_edge.runtime.answers import LABELS, parse_labels
from radvlm_edge.training.conversation_check import denied_labels
from radvlm_edge.training.scores import Box

_CLAUSE = re.compile(r"(?<!\d)\.(?!\d)|[;:!?\n]|\bbut\b|\bhowever\b|,?\s+and\s+(?:there (?:is|are))\b")
_SIDE = re.compile(r"\b(left|right|bilateral|both|bilaterally)\b")
_BRACKET = re.compile(r"\[[^\]\[]*\d[^\]\[]*\]")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)*")
MIDLINE = 0.5
MARGIN = 0.02
"""A box's centre this near to the middle of the film lies on neither side."""


def sides(text: str) -> dict[str, frozenset[str]]:
    """Finding → the sides (`left`, `right`) named in the clauses that affirm it; none named: left out."""
    found: dict[str, set[str]] = {}
    for clause in _CLAUSE.split(text.lower()):
        if clause is None:
            continue
        named = {
            side.replace("bilaterally", "both").replace("bilateral", "both") for side in _SIDE.findall(clause)
        }
        named = {"left", "right"} if "both" in named else named
        for label in parse_labels(clause) if named else ():
            found.setdefault(label, set()).update(named)
    return {label: frozenset(named) for label, named in found.items()}


def text_row(answer: str, true: str) -> dict[str, float]:
    """Counts of sides and negations of one answer against its reference.

    `sides judged`: findings affirmed with a side in both; `side wrong`: no side in common, `side part`: one
    of two. `polarity judged`: findings that both name; `denied wrongly`, `affirmed wrongly`: turned round.
    """
    own, known = sides(answer), sides(true)
    both = own.keys() & known.keys()
    affirmed, denied = set(parse_labels(answer)), denied_labels(answer)
    present, absent = set(parse_labels(true)), denied_labels(true)
    return {
        "sides judged": len(both),
        "side wrong": sum(not own[label] & known[label] for label in both),
        "side part": sum(bool(own[label] & known[label]) and own[label] != known[label] for label in both),
        "polarity judged": len((affirmed | denied) & (present | absent)),
        "denied wrongly": len(denied & present),
        "affirmed wrongly": len(affirmed & absent),
    }


def box_row(text: str, boxes: Sequence[Box], true: Sequence[Box]) -> dict[str, float]:
    """Counts of brackets in an answer that are no box on the film, and of boxes on the film's other half.

    `brackets`: every one with a digit; `brackets bad`: not four numbers from 0 to 1 in the order left, top,
    right, bottom; `boxes twice`: repeated ones; `halves judged`: films with one predicted and one true box,
    the latter on one side of the midline; `half wrong`: the former on the other.
    """
    brackets = _BRACKET.findall(text)
    row: dict[str, float] = {
        "brackets": len(brackets),
        "brackets bad": sum(not _sane(one) for one in brackets),
        "boxes": len(boxes),
        "boxes twice": len(boxes) - len(set(boxes)),
    }
    if len(boxes) == 1 and len(true) == 1:
        wanted, got = _half(true[0]), _half(boxes[0])
        row |= {"halves judged": float(wanted != 0), "half wrong": float(wanted * got < 0)}
    return row


def label_row(said: frozenset[str], true: frozenset[str], prefix: str) -> dict[str, float]:
    """Each of the 13 labels and `no finding`: said, there, and both; the 14th counts as the others."""
    none = frozenset({"no finding"})
    mine, real = said or none, true or none
    row: dict[str, float] = {}
    for label in (*LABELS, "no finding"):
        if label in mine or label in real:
            row[f"{prefix} said {label}"] = float(label in mine)
            row[f"{prefix} there {label}"] = float(label in real)
            row[f"{prefix} hit {label}"] = float(label in mine and label in real)
    row[f"{prefix} exact"] = float(said == true)
    return row


def _sane(bracket: str) -> bool:
    numbers = _NUMBERS.findall(bracket)
    if len(numbers) != 4 or any(number.count(".") > 1 for number in numbers):
        return False
    left, top, right, bottom = map(float, numbers)
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def _half(box: Box) -> int:
    """-1: left half of the film, 1: right half, 0: in between."""
    centre = (box[0] + box[2]) / 2 - MIDLINE
    return 0 if abs(centre) < MARGIN else (1 if centre > 0 else -1)
