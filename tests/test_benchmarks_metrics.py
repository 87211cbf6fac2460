"""Metrics against scikit-learn and a brute-force average precision, and the authors' quirks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.benchmarks.metrics_bootstrap import interval
from radvlm_edge.benchmarks.metrics_boxes import average_precision, box_figures
from radvlm_edge.benchmarks.metrics_labels import label_figures, substring_labels
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.training.scores import Box, iou

side = st.integers(1, 6)
boxes = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), side, side).map(
        lambda v: (float(v[0]), float(v[1]), float(v[0] + v[2]), float(v[1] + v[3]))
    ),
    max_size=4,
)


def brute_force(predicted: list[Box], true: list[Box]) -> float:
    """Area under the envelope by its definition: at each recall the best precision of any longer prefix."""
    if not predicted or not true:
        return 0.0
    free, right = list(true), []
    for box in predicted:
        best = max(free, key=lambda one: iou(box, one), default=None)
        right.append(best is not None and iou(box, best) >= 0.5)
        if right[-1] and best is not None:
            free.remove(best)
    total = 0.0
    for level in range(1, len(true) + 1):
        reached = [k for k in range(1, len(right) + 1) if sum(right[:k]) >= level]
        total += max((sum(right[:k]) / k for k in reached), default=0.0) / len(true)
    return total


@settings(deadline=None, max_examples=300)
@given(boxes, boxes)
def test_average_precision_agrees_with_brute_force(predicted: list[Box], true: list[Box]) -> None:
    assert average_precision(predicted, true) == pytest.approx(brute_force(predicted, true))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(boxes, boxes), max_size=3))
def test_box_figures_keep_their_bounds(films: list[tuple[list[Box], list[Box]]]) -> None:
    figures = box_figures([one for one, _ in films], [one for _, one in films])
    assert all(0 <= value <= 1 for name, value in vars(figures).items() if name != "films")
    perfect = box_figures([one for _, one in films if one], [one for _, one in films if one])
    if perfect.films:
        assert perfect.recall == perfect.mean_iou == perfect.map == 1


def test_the_authors_mean_iou_falls_with_several_boxes_and_the_strict_one_does_not() -> None:
    two: list[Box] = [(0.0, 0.0, 1.0, 1.0), (2.0, 2.0, 3.0, 3.0)]
    figures = box_figures([two], [two])
    assert figures.mean_iou_paper == 0.5 and figures.mean_iou == 1
    assert box_figures([[]], [two]).map_paper == 0


def test_the_authors_order_matters() -> None:
    wrong, right = (5.0, 5.0, 6.0, 6.0), (0.0, 0.0, 1.0, 1.0)
    assert average_precision([right, wrong], [right]) == 1
    assert average_precision([wrong, right], [right]) == 0.5


answers = st.lists(st.lists(st.sampled_from(LABELS), max_size=4), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(answers, st.data(), st.booleans())
def test_label_figures_agree_with_scikit_learn(
    said: list[list[str]], data: st.DataObject, all14: bool
) -> None:
    from sklearn.metrics import f1_score, precision_score, recall_score

    true = [frozenset(data.draw(st.lists(st.sampled_from(LABELS), max_size=4))) for _ in said]
    texts = [" and ".join(one) for one in said]
    figures = label_figures(texts, true, metrics="paper", no_finding=all14)

    def rows(sets: list[frozenset[str]]) -> list[list[int]]:
        return [[int(n in one) for n in LABELS] + ([int(not one)] if all14 else []) for one in sets]

    tables = rows(true), rows([frozenset(one) for one in said])
    for average, ours in (("micro", figures.micro_f1), ("macro", figures.macro_f1)):
        assert ours == pytest.approx(f1_score(*tables, average=average, zero_division=0))
    assert figures.macro_precision == pytest.approx(
        precision_score(*tables, average="macro", zero_division=0)
    )
    assert figures.macro_recall == pytest.approx(recall_score(*tables, average="macro", zero_division=0))
    assert list(figures.f1.values()) == pytest.approx(list(f1_score(*tables, average=None, zero_division=0)))


def test_a_negated_label_counts_for_the_authors_only() -> None:
    assert substring_labels("No pneumothorax.") == ("pneumothorax",)
    none = [frozenset[str]()]
    assert label_figures(["No pneumothorax."], none, metrics="strict", no_finding=True).f1["no finding"] == 1
    assert label_figures(["No pneumothorax."], none, metrics="paper", no_finding=True).f1["no finding"] == 0
    with pytest.raises(ValueError, match="paper and strict"):
        label_figures([], [], metrics="loose")


def test_no_label_contains_another() -> None:
    """Substring matching would count both."""
    assert not [pair for pair in itertools.permutations(LABELS, 2) if pair[0] in pair[1]]


def test_an_interval_holds_the_true_share_as_often_as_it_says() -> None:
    """60 samples of 80 films, of which 30 % are right: a 90 % interval misses the 0.3 in 6 or so."""
    rng = np.random.default_rng(1)
    samples = [(rng.random(80) < 0.3).astype(float).tolist() for _ in range(60)]
    bounds = [interval(one, lambda films: sum(films) / len(films), level=0.9, draws=200) for one in samples]
    held = sum(low <= 0.3 <= high for low, high in bounds)
    assert 48 <= held < 60
    assert bounds[0] == interval(samples[0], lambda films: sum(films) / len(films), level=0.9, draws=200)


def test_an_interval_of_equal_films_is_a_point_and_of_none_is_unknown() -> None:
    assert interval([0.5] * 9, lambda films: films[0]) == (0.5, 0.5)
    assert all(map(math.isnan, interval([], lambda films: 0.0)))
    with pytest.raises(ValueError, match="level 95"):
        interval([1.0], lambda films: films[0], level=95)
