"""The authors' quirks one by one, word scores against the packages they come from, sums that resample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.test_benchmarks_metrics import boxes
from tests.test_benchmarks_metrics_text import texts

from radvlm_edge.benchmarks import metrics_words as words
from radvlm_edge.benchmarks.metrics_boxes import box_figures
from radvlm_edge.benchmarks.metrics_calibration import calibration_error, calibration_row
from radvlm_edge.benchmarks.metrics_counts import Rows, mean_of
from radvlm_edge.benchmarks.metrics_paper import (
    paper_answer,
    paper_average_precision,
    paper_boxes,
    paper_iou,
    paper_pairs,
)
from radvlm_edge.benchmarks.metrics_safety import box_row, sides, text_row
from radvlm_edge.benchmarks.metrics_text import corpus_bleu
from radvlm_edge.training.scores import Box

REPORTS = [
    (
        "There is a small left pleural effusion . No pneumothorax .",
        "Small left pleural effusion . Lungs are clear .",
    ),
    ("The heart is enlarged . There is mild edema .", "The heart is mildly enlarged . There is mild edema ."),
    ("No acute abnormality .", "No acute cardiopulmonary abnormality is seen ."),
]
COCO_BLEU = 0.4461142364454614
COCO_CIDER = (2.6705523700864946, 7.436687692636208, 2.2061511938012313)
"""Of REPORTS, as pycocoevalcap 1.2 computes them (bleu_scorer.py, cider_scorer.py)."""


def by_definition(predicted: list[Box], true: list[Box]) -> float:
    """The authors' average precision written out: numpy's argmax over all true boxes, VOC's envelope."""
    if not predicted or not true:
        return 0.0
    overlaps = np.array([[paper_iou(a, b) for b in true] for a in predicted])
    taken: set[int] = set()
    right = np.zeros(len(predicted))
    for at, row in enumerate(overlaps):
        best = int(np.argmax(row))
        if row[best] >= 0.5 and best not in taken:
            right[at] = 1
            taken.add(best)
    hits = np.cumsum(right)
    recall = np.concatenate([[0.0], hits / len(true), [1.0]])
    precision = np.concatenate([[0.0], hits / np.arange(1, len(predicted) + 1), [0.0]])
    for at in range(len(precision) - 1, 0, -1):
        precision[at - 1] = max(precision[at - 1], precision[at])
    steps = np.where(recall[1:] != recall[:-1])[0]
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())


@settings(deadline=None, max_examples=200)
@given(boxes, boxes)
def test_the_authors_average_precision_by_its_definition(predicted: list[Box], true: list[Box]) -> None:
    assert paper_average_precision(predicted, true) == pytest.approx(by_definition(predicted, true))


def test_a_second_box_for_a_taken_one_is_wrong_for_the_authors_though_it_fits_a_free_one() -> None:
    first, second = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.0)
    figures = box_figures([[first, first]], [[first, second]])
    assert figures.map == 1 and figures.map_paper == 0.5


def test_nothing_said_where_nothing_is_counts_0_for_the_authors() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    figures = box_figures([[box], []], [[box], []])
    assert (figures.map, figures.map_paper) == (1, 0.5)
    assert paper_pairs([], []) == (0, 0)


def test_the_authors_parser_takes_boxes_as_written() -> None:
    assert paper_boxes("at [0.9, 0.2, 0.1, 1.4] and [0.1,0.2,0.3,0.4]") == [
        (0.9, 0.2, 0.1, 1.4),
        (0.1, 0.2, 0.3, 0.4),
    ]
    assert paper_boxes("[ 0.1, 0.2, 0.3, 0.4] [-0.1, 0.2, 0.3, 0.4] [1.2.3, 0, 1, 1]") == []


def test_the_authors_cut_an_answer_at_role_names() -> None:
    assert paper_answer("No edema. The user should correlate.") == "should correlate."
    assert paper_answer(" No edema. ") == "No edema."


def summed(rows: list[dict[str, float]]) -> Rows:
    table = Rows()
    for at, row in enumerate(rows):
        table.add(str(at), {"items": 1, **row})
    return table


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_bleu_from_summed_counts_is_bleu(pairs: list[tuple[str, str]]) -> None:
    table = summed([words.bleu_row(a, b, spaced=False) for a, b in pairs])
    found = table.figures({"b": words.strict_bleu}, draws=0)["b"].value
    assert found == pytest.approx(corpus_bleu([a for a, _ in pairs], [b for _, b in pairs]), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(texts, texts, st.sampled_from([1, 2]))
def test_rouge_n_agrees_with_rouge_score(answer: str, true: str, order: int) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    name = f"rouge{order}"
    expected = RougeScorer([name], use_stemmer=True).score(true, answer)[name].fmeasure
    assert words.rouge_n(answer, true, order) == pytest.approx(expected)


def test_bleu_and_cider_are_those_of_the_coco_tools() -> None:
    table = summed([words.bleu_row(a, b, spaced=True) for a, b in REPORTS])
    assert table.figures({"b": words.paper_bleu}, draws=0)["b"].value == pytest.approx(COCO_BLEU, rel=1e-9)
    found = words.cider_d([a for a, _ in REPORTS], [b for _, b in REPORTS])
    assert found == pytest.approx(list(COCO_CIDER), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_bleu_and_cider_agree_with_pycocoevalcap(pairs: list[tuple[str, str]]) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer", reason="pycocoevalcap is not installed")
    cider = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="pycocoevalcap is not installed")
    assume(any(true.split() for _, true in pairs))  # theirs stops with an error where no reference has a word
    one, two = bleu.BleuScorer(n=4), cider.CiderScorer(n=4, sigma=6.0)
    for answer, true in pairs:
        one += (answer, [true])
        two += (answer, [true])
    table = summed([words.bleu_row(a, b, spaced=True) for a, b in pairs])
    expected = one.compute_score(option="closest", verbose=0)[0][3]
    assert table.figures({"b": words.paper_bleu}, draws=0)["b"].value == pytest.approx(expected, abs=1e-12)
    _, scores = two.compute_score()
    assert words.cider_d([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(
        list(scores), abs=1e-9
    )


def test_an_interval_over_patients_is_wider_than_over_their_films() -> None:
    """40 patients of 5 films each, all right or all wrong: films of one are not five pieces of evidence."""
    together, apart = Rows(), Rows()
    for patient in range(40):
        for film in range(5):
            row = {"items": 1.0, "right": float(patient % 2)}
            together.add(str(patient), row)
            apart.add(f"{patient}/{film}", row)
    wide, narrow = (one.figures({"r": mean_of("right")})["r"] for one in (together, apart))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 1.6 * (narrow.high - narrow.low)  # type: ignore[operator]
    assert together.figures({"r": mean_of("right")})["r"] == wide
    assert Rows().figures({"r": mean_of("right")})["r"].value is None


def test_differences_are_resampled_together() -> None:
    ours, theirs = Rows(), Rows()
    for film in range(30):
        ours.add(str(film), {"items": 1, "right": float(film % 3 == 0)})
        theirs.add(str(film), {"items": 1, "right": float(film % 3 == 0)})
    same = ours.differences(theirs, {"r": mean_of("right")})["r"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    theirs.add("another", {"items": 1})
    with pytest.raises(ValueError, match="same films"):
        ours.differences(theirs, {"r": mean_of("right")})


def test_wrong_sides_and_turned_negations_are_counted() -> None:
    row = text_row("There is a right pleural effusion. No edema.", "Left pleural effusion. There is edema.")
    assert (row["sides judged"], row["side wrong"]) == (1, 1)
    assert (row["polarity judged"], row["denied wrongly"], row["affirmed wrongly"]) == (2, 1, 0)
    both = text_row("Bilateral pleural effusion.", "There is a left pleural effusion.")
    assert (both["side wrong"], both["side part"]) == (0, 1)
    assert text_row("Pneumothorax.", "No pneumothorax.")["affirmed wrongly"] == 1
    assert sides("No left pneumothorax. There is a right pneumothorax.") == {
        "pneumothorax": frozenset({"right"})
    }


def test_boxes_that_cannot_be_are_counted() -> None:
    left, right = (0.1, 0.1, 0.3, 0.3), (0.7, 0.1, 0.9, 0.3)
    row = box_row("[0.1, 0.1, 0.3, 0.3] [0.9, 0.1, 0.2, 0.3] [1, 2] [0, 0, 1, 1.5]", [left], [right])
    assert (row["brackets"], row["brackets bad"]) == (4, 3)
    assert (row["halves judged"], row["half wrong"]) == (1, 1)
    assert box_row("", [left, left], [left])["boxes twice"] == 1


def test_calibration_error_of_a_model_that_is_half_right_at_90_percent() -> None:
    rows = Rows()
    for at in range(20):
        rows.add(str(at), calibration_row(0.95, float(at % 2)))
    assert rows.figures({"e": calibration_error})["e"].value == pytest.approx(0.45)
    assert summed([{}]).figures({"e": calibration_error})["e"].value is None
