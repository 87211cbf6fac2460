"""Figures against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.benchmarks import nano_flips
from radvlm_edge.benchmarks.nano_hardness import linear_probe, ridge_head
from radvlm_edge.benchmarks.nano_heads import (
    TooFewError,
    auroc_table,
    fold_heads,
    measure_heads,
    patient_folds,
)
from radvlm_edge.benchmarks.nano_run import Reply
from radvlm_edge.benchmarks.nano_scores import (
    Decision,
    auroc_interval,
    average_precision,
    box_figures,
    label_figures,
    yes_no_figures,
)
from radvlm_edge.benchmarks.nano_suite import Item
from radvlm_edge.training.films import RealFilm
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.scores import Box, auroc, balanced_accuracy, iou

corner = st.integers(0, 7)
boxes = st.builds(
    lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)),
    corner, corner, st.integers(1, 6), st.integers(1, 6),
)  # fmt: skip


@given(boxes, boxes)
def test_iou_counts_pixels(one: Box, other: Box) -> None:
    def cells(box: Box) -> set[tuple[int, int]]:
        return set(itertools.product(range(int(box[0]), int(box[2])), range(int(box[1]), int(box[3]))))

    a, b = cells(one), cells(other)
    assert iou(one, other) == pytest.approx(len(a & b) / len(a | b))


@settings(max_examples=200)
@given(st.lists(boxes, max_size=5), st.lists(boxes, min_size=1, max_size=4))
def test_average_precision_is_the_area_under_the_envelope(stated: list[Box], true: list[Box]) -> None:
    """Brute force: interpolated precision, the best at this recall or beyond, summed over recall levels."""
    free, points = list(true), []
    hits = 0
    for count, box in enumerate(stated, 1):
        best = max(free, key=lambda one: iou(box, one), default=None)
        if best is not None and iou(box, best) >= 0.5:
            hits += 1
            free.remove(best)
        points.append((hits, hits / count))
    area = sum(
        max((precision for got, precision in points if got >= level), default=0.0)
        for level in range(1, len(true) + 1)
    )
    assert average_precision(stated, true) == pytest.approx(area / len(true))


def test_average_precision_by_hand() -> None:
    here, there, far = (0.0, 0.0, 1.0, 1.0), (2.0, 0.0, 3.0, 1.0), (9.0, 9.0, 10.0, 10.0)
    assert average_precision([here], [here]) == 1
    assert average_precision([], [here]) == 0
    assert average_precision([far, here], [here]) == 0.5  # right, but only at the second attempt
    assert average_precision([here, far, there], [here, there]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision([here, here], [here, there]) == 0.5  # the same box twice counts once
    with pytest.raises(ValueError, match="at least one"):
        average_precision([here], [])
    assert box_figures([([here], [here]), ([far], [here, there])]) == {
        "questions": 2,
        "map50": 0.5,
        "mean_iou": round(1 / 3, 4),
    }


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_balanced_accuracy_counts(rows: list[tuple[bool, bool]]) -> None:
    there = [right for truth, right in rows if truth]
    absent = [right for truth, right in rows if not truth]
    expected = (sum(there) / len(there) + sum(absent) / len(absent)) / 2 if there and absent else None
    found = balanced_accuracy([truth for truth, _ in rows], [right for _, right in rows])
    assert found == (pytest.approx(expected) if expected is not None else None)


def test_a_negated_question_is_right_when_the_answer_is() -> None:
    decisions = [
        Decision("edema", True, True, 0.9),
        Decision("edema", True, False, 0.1),  # "no edema?": No is right
        Decision("edema", False, False, 0.3),
        Decision("edema", False, True, 0.79),  # "no edema?": Yes is right
    ]
    figures = yes_no_figures(decisions)
    assert figures["mean_balanced_accuracy"] == 1
    assert figures["doubtful"] == 0.5
    turned = [Decision(one.about, one.truth, not one.yes_is_right, one.probability) for one in decisions]
    assert yes_no_figures(turned)["mean_balanced_accuracy"] == 0


names = st.frozensets(st.sampled_from(["a", "b", "c", "else"]))


@given(st.lists(st.tuples(names, names), min_size=1, max_size=20))
def test_label_f1_counts(rows: list[tuple[frozenset[str], frozenset[str]]]) -> None:
    figures = label_figures([s for s, _ in rows], [t for _, t in rows], ["a", "b", "c"])
    expected = []
    for name in "abc":
        tp = sum(name in s and name in t for s, t in rows)
        fp = sum(name in s and name not in t for s, t in rows)
        fn = sum(name not in s and name in t for s, t in rows)
        expected.append(2 * tp / (2 * tp + fp + fn) if tp else 0.0)
    assert figures["macro_f1"] == pytest.approx(np.mean(expected), abs=1e-4)


scores = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 1)), min_size=2, max_size=30)


@given(scores)
def test_auroc_counts_pairs_within_groups(rows: list[tuple[int, bool, int]]) -> None:
    pairs = [
        (high > low) + 0.5 * (high == low)
        for (high, truth, group), (low, other, same) in itertools.product(rows, rows)
        if truth and not other and group == same
    ]
    found = auroc(
        np.array([float(score) for score, _, _ in rows]),
        np.array([truth for _, truth, _ in rows]),
        np.array([group for _, _, group in rows]),
    )
    assert np.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))


def test_the_interval_resamples_patients_not_films() -> None:
    """A hundred copies of each patient's film add nothing that one would not tell."""
    rng = np.random.default_rng(1)
    truth = np.arange(30) < 12
    score = rng.normal(size=30) + truth
    patients = [str(index) for index in range(30)]
    once = auroc_interval(score, truth, patients, repeats=300)
    often = auroc_interval(
        np.repeat(score, 9), np.repeat(truth, 9), list(np.repeat(patients, 9)), repeats=300
    )
    assert often == pytest.approx(once)
    assert once[1] < once[0] < once[2]


def test_folds_keep_patients_together() -> None:
    patients = [f"p{index % 37}" for index in range(150)]
    folds = patient_folds(patients)
    assert set(folds) == set(range(5))
    for name in set(patients):
        assert len({int(fold) for fold, own in zip(folds, patients, strict=True) if own == name}) == 1
    assert np.array_equal(folds[::-1], patient_folds(patients[::-1]))


def test_heads_never_see_the_fold_they_score() -> None:
    """Labels that are pure noise stay unpredictable; a real signal is found."""
    rng = np.random.default_rng(2)
    features, folds = rng.normal(size=(300, 40)), np.arange(300) % 5
    noise = rng.random(300) < 0.5
    signal = features[:, 0] + 0.3 * rng.normal(size=300) > 0
    patients = [str(index) for index in range(300)]
    found = {
        name: fold_heads(features, truth, folds) for name, truth in (("noise", noise), ("signal", signal))
    }
    table = auroc_table(
        found, {"noise": noise, "signal": signal}, patients, {"noise": folds, "signal": folds}
    )
    assert abs(table["noise"]["auroc"] - 0.5) < 0.12
    assert table["signal"]["auroc"] > 0.9
    with pytest.raises(TooFewError, match="one class"):
        fold_heads(features, folds == 0, folds)


def test_a_label_with_few_positives_gets_no_figure() -> None:
    truth = np.arange(80) < 14
    score = np.linspace(1, 0, 80)
    table = auroc_table({"x": score}, {"x": truth}, [str(k) for k in range(80)])
    assert table["x"]["auroc"] is None and "fewer than 15" in table["x"]["why"]
    score[70:] = np.nan
    assert auroc_table({"x": score}, {"x": np.arange(80) < 20}, ["p"] * 80)["x"]["films"] == 70


def test_films_without_a_known_label_are_left_out_of_its_figure() -> None:
    rng = np.random.default_rng(5)
    pixels = np.zeros((4, 4), np.uint8)
    kinds = [frozenset({"pleural effusion"}), frozenset({"pneumonia"}), frozenset[str]()]
    films = [RealFilm(f"{k}.jpg", f"p{k // 2}", pixels, kinds[k % 3], normal=k % 3 == 2) for k in range(120)]
    features = rng.normal(size=(120, 8))
    features[:, 0] += [4.0 * ("pleural effusion" in film.present) for film in films]
    figures = measure_heads(features, films, frozenset({"0.jpg", "7.jpg", "absent.jpg"}))
    assert figures["tower_was_trained_on"] == 2
    effusion, pneumonia = figures["auroc"]["pleural effusion"], figures["auroc"]["pneumonia"]
    assert effusion["films"] == 120 and effusion["auroc"] > 0.95  # silence about it counts as absence
    assert pneumonia["films"] == 80 and pneumonia["positives"] == 40
    assert figures["auroc"]["edema"]["auroc"] is None


def test_ridge_solves_its_equations() -> None:
    """At the minimum the gradient of the weighted squared error and penalty vanishes."""
    rng = np.random.default_rng(3)
    views, truth = rng.normal(size=(50, 6)), rng.random(50) < 0.3
    fitted, offset = ridge_head(views, truth, 2.0)
    weight = np.where(truth, 0.5 / truth.mean(), 0.5 / (~truth).mean())
    residual = weight * (views @ fitted + offset - np.where(truth, 1.0, -1.0))
    assert views.T @ residual + 2.0 * fitted == pytest.approx(np.zeros(6), abs=1e-9)
    assert residual.sum() == pytest.approx(0, abs=1e-9)


def test_the_probe_finds_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    views = rng.normal(size=(600, 30))
    present = rng.random((600, len(FINDINGS))) < 0.4
    present[:, 0] = views[:, 3] > 0.2
    figures = linear_probe(views, present)
    assert figures[FINDINGS[0]] > 0.9
    assert np.mean([figures[name] for name in FINDINGS[1:]]) < 0.6


def replies(chances: list[float], texts: list[str]) -> list[Reply]:
    box = ((0.0, 0.0, 0.5, 1.0),)
    yes_no = [Reply(Item("1", "yesno", "q", "Yes.", "edema", True), one) for one in chances]
    return yes_no + [Reply(Item("1", "region", "q", "", "left lung", True, box), text=one) for one in texts]


def test_flips_are_counted_and_boxes_compared_with_the_truth() -> None:
    right, half = "it is at [0.0, 0.0, 0.5, 1.0]", "it is at [0.0, 0.0, 0.25, 1.0]"
    ours, theirs = (
        replies([0.9, 0.2, 0.51, 0.4], [right, right]),
        replies([0.8, 0.3, 0.49, 0.4], [right, half]),
    )
    figures = nano_flips.compared(ours, theirs)
    assert figures["yes_no"] == 4 and figures["flips"] == 1 and not figures["within_gate"]
    assert figures["moved_most"] == pytest.approx(0.1) and figures["texts_different"] == 1
    assert figures["region_iou"] == {"without": 1.0, "with": 0.75, "loss": 0.25}
    none = nano_flips.compared(replies([0.9] * 1000, []), replies([0.8] * 1000, []))
    assert none["within_gate"] and none["flips_upper"] == pytest.approx(1.96**2 / (1000 + 1.96**2), abs=1e-5)


@pytest.mark.parametrize("way", ["int8", "vision=", "tower=int8"])
def test_a_way_that_is_none_is_refused(way: str) -> None:
    with pytest.raises(SystemExit, match="is no way; write vision=X"):
        nano_flips.options_of(way, None)
