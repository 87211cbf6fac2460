"""Answers → figures with intervals: the task's own, and beside them sides, negations, boxes, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from radvlm_edge.benchmarks import metrics_words as words
from radvlm_edge.benchmarks.evaluate_answers import Answered
from radvlm_edge.benchmarks.evaluate_items import BOXED, Item
from radvlm_edge.benchmarks.metrics_boxes import MIN_IOU, average_precision, matches
from radvlm_edge.benchmarks.metrics_calibration import bin_formulas, calibration_error, calibration_row
from radvlm_edge.benchmarks.metrics_counts import (
    Figure,
    Floats,
    Formula,
    Rows,
    Sums,
    mean_of,
    ratio,
    zero_ratio,
)
from radvlm_edge.benchmarks.metrics_labels import NO_FINDING, substring_labels
from radvlm_edge.benchmarks.metrics_paper import (
    paper_answer,
    paper_average_precision,
    paper_boxes,
    paper_pairs,
)
from radvlm_edge.benchmarks.metrics_safety import box_row, label_row, text_row
from radvlm_edge.benchmarks.metrics_text import rouge_l
from radvlm_edge.runtime.answers import LABELS, parse_labels
from radvlm_edge.training.scores import Box

PAPER, STRICT = MODES = ("paper", "strict")
LABELS_14 = (*LABELS, NO_FINDING)


@dataclass(frozen=True)
class Case:
    """An item, its answer, and what was made of them."""

    item: Item
    answered: Answered
    text: str
    """The answer as the mode reads it."""
    row: Mapping[str, float]
    badness: float
    """0: as good as can be; orders the worst cases."""
    extra: Mapping[str, float]
    """Scores of this one item under the names a reader knows, for the worst cases."""


@dataclass(frozen=True)
class Figures:
    """What one evaluation found."""

    task: dict[str, Figure]
    beside: dict[str, Figure]
    bins: dict[str, Figure]
    """Reliability: of each bin mean confidence, share right, count."""


def read_answer(text: str, mode: str, onevision: bool) -> str:
    """An answer as scored: in `paper` cut as the authors' decoding cuts it."""
    return paper_answer(text) if mode == PAPER and onevision else text


def cases_of(
    pairs: Sequence[tuple[Item, Answered]], mode: str, *, onevision: bool, scores: Sequence[float | None] = ()
) -> list[Case]:
    """Rows of every answered item; `scores`: a judge's, for conversations."""
    answered = [(item, one) for item, one in pairs if not one.failed]
    texts = [" ".join(read_answer(text, mode, onevision) for text in one.texts) for _, one in answered]
    if not answered:
        return []
    task = answered[0][0].task
    if task == "report":
        rare = words.cider_d(texts, [item.text for item, _ in answered])
    cases = []
    for at, ((item, one), text) in enumerate(zip(answered, texts, strict=True)):
        if task == "report":
            row, bad, extra = _report(text, item, mode, rare[at])
        elif task == "classify":
            row, bad, extra = _classify(text, item, mode)
        elif task == "conversation":
            row, bad, extra = _conversation(one, item, scores[at] if scores else None)
        else:
            row, bad, extra = _boxed(text, one, item, mode)
        cases.append(Case(item, one, text, {"items": 1, **row, **_beside(one, item, bad)}, bad, extra))
    return cases


def figures_of(cases: Sequence[Case], task: str, mode: str, draws: int, seed: int = 0) -> Figures:
    """Every figure with its interval over groups (patients, or films)."""
    rows = Rows()
    for case in cases:
        rows.add(case.item.group, case.row)
    formulas = formulas_of(task, mode)
    return Figures(
        rows.figures(formulas, draws=draws, seed=seed),
        rows.figures(_beside_formulas(task), draws=draws, seed=seed),
        rows.figures(bin_formulas(), draws=0, seed=seed),
    )


def _report(
    text: str, item: Item, mode: str, rare: float
) -> tuple[dict[str, float], float, dict[str, float]]:
    close = rouge_l(text, item.text)
    row = {
        **words.bleu_row(text, item.text, spaced=mode == PAPER),
        "rouge 1": words.rouge_n(text, item.text, 1),
        "rouge 2": words.rouge_n(text, item.text, 2),
        "rouge l": close,
        "cider d": rare,
    }
    known = item.labels if item.labels is not None else frozenset(parse_labels(item.text))
    row |= label_row(frozenset(parse_labels(text)), known, "label")
    return row, 1 - close, {"ROUGE-L": close, "CIDEr-D": rare}


def _classify(text: str, item: Item, mode: str) -> tuple[dict[str, float], float, dict[str, float]]:
    known = item.labels or frozenset()
    read = substring_labels if mode == PAPER else parse_labels
    said = frozenset(read(text))
    wrong = len(said ^ known)
    row = label_row(said, known, "label")
    return row, wrong / len(LABELS), {"wrong labels": wrong}


def _boxed(
    text: str, one: Answered, item: Item, mode: str
) -> tuple[dict[str, float], float, dict[str, float]]:
    true = item.boxes or ()
    if mode == PAPER:
        found: Sequence[Box] = paper_boxes(text)
        precision = paper_average_precision(found, true)
        overlap, count = paper_pairs(found, true)
        row = {"ap": precision, "pair iou": overlap, "pairs": count}
        return row, 1 - precision, {"AP@0.5": precision}
    found = one.said[0].boxes
    matched = matches(found, true)
    hits = sum(pair[2] >= MIN_IOU for pair in matched)
    named = _named(one, item) if item.task == "detect" else 0
    row = {
        "ap": average_precision(found, true),
        "with box": float(bool(true)),
        "without box": float(not true),
        "none right": float(not true and not found),
        "said": len(found),
        "there": len(true),
        "hits": hits,
        "iou": sum(pair[2] for pair in matched),
        "named hits": named,
    }
    mean = row["iou"] / len(true) if true else float(not found)
    return row, 1 - mean, {"AP@0.5": row["ap"], "mean IoU": mean}


def _named(one: Answered, item: Item) -> int:
    """Boxes matched at IoU 0.5 with a true box of the same class."""
    said = one.said[0]
    known = item.names or ("",) * len(item.boxes or ())
    hits = 0
    for name in set(known):
        own = [box for box, given in zip(said.boxes, said.names, strict=True) if given == name]
        true = [box for box, given in zip(item.boxes or (), known, strict=True) if given == name]
        hits += sum(pair[2] >= MIN_IOU for pair in matches(own, true))
    return hits


def _conversation(
    one: Answered, item: Item, score: float | None
) -> tuple[dict[str, float], float, dict[str, float]]:
    row = {"turns": len(one.said), "unscored": float(score is None)}
    if score is None:
        return row, 1.0, {}
    return {**row, "score": score, "scored": 1}, 1 - score / 10, {"score": score}


def _beside(one: Answered, item: Item, badness: float) -> dict[str, float]:
    row: dict[str, float] = {}
    if item.task in ("report", "conversation"):
        for said, true in zip(one.said, item.texts, strict=True):
            for name, value in text_row(said.text, true).items():
                row[name] = row.get(name, 0) + value
    if item.task in BOXED or item.task == "conversation":
        for said in one.said:
            known = (item.boxes or ()) if item.task in BOXED else ()
            for name, value in box_row(said.raw or said.text, said.boxes, known).items():
                row[name] = row.get(name, 0) + value
    sure = [said.confidence for said in one.said]
    if len(sure) == 1 and sure[0] is not None:
        row |= calibration_row(sure[0], float(_right(item, one)))
    return row


def _right(item: Item, one: Answered) -> bool:
    """The rule a single answer's confidence is held against."""
    if item.task == "classify":
        return frozenset(parse_labels(one.said[0].text)) == item.labels
    if item.task in BOXED:
        true = item.boxes or ()
        if not true:
            return not one.said[0].boxes
        matched = matches(one.said[0].boxes, true)
        return len(one.said[0].boxes) == len(true) == sum(pair[2] >= MIN_IOU for pair in matched)
    return frozenset(parse_labels(one.said[0].text)) == frozenset(parse_labels(item.text))


def formulas_of(task: str, mode: str) -> dict[str, Formula]:
    """A task's own figures, as functions of the cases' summed rows."""
    if task == "report":
        bleu = words.paper_bleu if mode == PAPER else words.strict_bleu
        own: dict[str, Formula] = {
            "BLEU-4": bleu,
            "ROUGE-1": mean_of("rouge 1"),
            "ROUGE-2": mean_of("rouge 2"),
            "ROUGE-L": mean_of("rouge l"),
            "CIDEr-D": mean_of("cider d"),
        }
        return own | _label_formulas(LABELS_14)
    if task == "classify":
        both = _label_formulas(LABELS) | _label_formulas(LABELS_14)
        return both | {"all labels right": mean_of("label exact")}
    if task == "conversation":
        return {"score": mean_of("score", "scored")}
    if mode == PAPER:
        return {"mAP@0.5": mean_of("ap"), "mean IoU of all pairs": mean_of("pair iou", "pairs")}
    boxed: dict[str, Formula] = {
        "mAP@0.5": mean_of("ap", "with box"),
        "precision": mean_of("hits", "said"),
        "recall": mean_of("hits", "there"),
        "F1": lambda sums: ratio(2 * sums["hits"], sums["said"] + sums["there"]),
        "mean IoU": mean_of("iou", "there"),
        "none where there is none": mean_of("none right", "without box"),
    }
    if task == "detect":
        boxed["F1 with the right class"] = lambda sums: ratio(
            2 * sums["named hits"], sums["said"] + sums["there"]
        )
    return boxed


def _label_formulas(labels: Sequence[str]) -> dict[str, Formula]:
    """Micro and macro precision, recall, F1 and each label's F1, 0 where undefined (scikit-learn)."""

    def columns(sums: Sums, kind: str) -> Floats:
        return np.stack([sums[f"label {kind} {label}"] for label in labels])

    def share(kind: str, *, macro: bool) -> Formula:
        def formula(sums: Sums) -> Floats:
            hit, said, there = (columns(sums, name) for name in ("hit", "said", "there"))
            if not macro:
                hit, said, there = (part.sum(axis=0, keepdims=True) for part in (hit, said, there))
            whole = {"precision": said, "recall": there, "F1": (said + there) / 2}[kind]
            out: Floats = zero_ratio(hit, whole).mean(axis=0)
            return out

        return formula

    found = {
        f"{name} {kind} ({len(labels)})": share(kind, macro=name == "macro")
        for name in ("micro", "macro")
        for kind in ("F1", "precision", "recall")
    }
    return found | {f"F1 {label}": _one_f1(label) for label in labels}


def _one_f1(label: str) -> Formula:
    return lambda sums: zero_ratio(
        2 * sums[f"label hit {label}"], sums[f"label said {label}"] + sums[f"label there {label}"]
    )


def _beside_formulas(task: str) -> dict[str, Formula]:
    found: dict[str, Formula] = {}
    if task in ("report", "conversation"):
        found |= {
            "wrong side": mean_of("side wrong", "sides judged"),
            "one of two sides": mean_of("side part", "sides judged"),
            "present, but denied": mean_of("denied wrongly", "polarity judged"),
            "absent, but affirmed": mean_of("affirmed wrongly", "polarity judged"),
            "findings judged for side": lambda sums: sums["sides judged"],
            "findings judged for polarity": lambda sums: sums["polarity judged"],
        }
    if task in BOXED or task == "conversation":
        found |= {
            "brackets that are no box": mean_of("brackets bad", "brackets"),
            "boxes said twice": mean_of("boxes twice", "boxes"),
            "boxes an answer": mean_of("boxes"),
        }
    if task in BOXED:
        found |= {
            "box in the other half": mean_of("half wrong", "halves judged"),
            "boxes judged for their half": lambda sums: sums["halves judged"],
        }
    return found | {
        "calibration error": calibration_error,
        "mean confidence": mean_of("sure", "sure answers"),
        "right, of answers with confidence": mean_of("right", "sure answers"),
    }
