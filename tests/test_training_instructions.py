"""Questions and answers agree with what is known about the film."""

from __future__ import annotations

import re

import numpy as np
import pytest

from radvlm_edge.runtime.answers import parse_labels
from radvlm_edge.runtime.prompts import TASKS
from radvlm_edge.training.curriculum import film_exchanges, real_exchanges
from radvlm_edge.training.instructions import (
    Exchange,
    Labels,
    box_text,
    classify,
    labels_of,
    report,
    yes_no,
)
from radvlm_edge.training.phantom import make_phantom
from radvlm_edge.training.phantom_findings import FINDINGS
from radvlm_edge.training.phrasings import CLASSIFY, DETECT, LOCATE, PHRASE, REPORT


@pytest.fixture(scope="module")
def known() -> list[Labels]:
    return [labels_of(make_phantom(seed, (60, 80))) for seed in range(250)]


@pytest.fixture(scope="module")
def asked(known: list[Labels]) -> list[tuple[Labels, Exchange]]:
    rng = np.random.default_rng(0)
    return [(labels, one) for labels in known for _ in range(4) for one in film_exchanges(rng, labels)]


def test_boxes_are_written_as_radvlm_writes_them() -> None:
    assert box_text((0.1234, 0.5, 0.999, 1.0)) == "[0.12, 0.5, 1.0, 1.0]"


def test_the_runtimes_tasks_are_trained_wordings() -> None:
    assert TASKS["report"] in REPORT
    assert TASKS["classify"] in CLASSIFY
    assert TASKS["detect"] in DETECT
    assert TASKS["locate"] in LOCATE
    assert TASKS["phrase"] in PHRASE


def test_any_effusion_is_asked_in_these_very_words(asked: list[tuple[Labels, Exchange]]) -> None:
    assert "any effusion?" in {one.question for _, one in asked}


def test_as_many_yes_as_no(asked: list[tuple[Labels, Exchange]]) -> None:
    answers = [one.answer.split(",")[0] for _, one in asked if one.task == "yesno"]
    assert set(answers) == {"Yes", "No"}
    assert abs(answers.count("Yes") / len(answers) - 0.5) < 0.05


def test_answers_state_what_is_there(asked: list[tuple[Labels, Exchange]]) -> None:
    for labels, one in asked:
        stated = set(parse_labels(one.answer)) & set(FINDINGS)
        if one.task in ("classify", "report", "detect"):
            assert stated == labels.present, one
        elif one.task == "yesno":
            name = next(name for name in FINDINGS if one.about.endswith(name))
            assert one.truth == (
                name in one.answer.replace("effusions", "effusion") and " no " not in one.answer
            )
            side = one.about.removesuffix(name).strip()
            assert one.truth == (side in labels.sides[name] if side else name in labels.present), one


def test_located_boxes_are_the_labels(asked: list[tuple[Labels, Exchange]]) -> None:
    for labels, one in asked:
        if one.task == "region":
            assert box_text(labels.regions[one.about]) in one.answer
        if one.task == "finding":
            boxes = [box for (name, _), box in labels.finding_boxes.items() if name == one.about]
            assert one.answer.count("[") == len(boxes)
            assert all(box_text(box) in one.answer for box in boxes)


def test_every_box_parses_within_the_film(asked: list[tuple[Labels, Exchange]]) -> None:
    for _, one in asked:
        for found in re.findall(r"\[([^\]]*)\]", one.answer):
            x1, y1, x2, y2 = map(float, found.split(", "))
            assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1


def test_negated_questions_turn_the_word_not_the_fact() -> None:
    rng = np.random.default_rng(1)
    labels = Labels(frozenset({"pneumothorax"}), {"pneumothorax": ("left",)})
    turned = [
        one
        for one in (yes_no(rng, labels, "pneumothorax") for _ in range(400))
        if re.search(r"\bno\b|free of|absent|excluded", one.question.lower().replace("yes or no", ""))
    ]
    assert turned
    assert all(one.answer == "No, there is a left pneumothorax." for one in turned)


def test_a_film_without_known_sides_gets_none() -> None:
    rng = np.random.default_rng(2)
    labels = Labels(frozenset({"pleural effusion"}), localised=False)
    for one in real_exchanges(rng, labels, "pleural effusion"):
        assert not re.search(r"\bright\b|\bleft\b|\[", one.answer)
    assert classify(rng, labels).answer.endswith("pleural effusion.")
    assert "There is a pleural effusion." in report(rng, labels).answer


def test_the_same_seed_asks_the_same(known: list[Labels]) -> None:
    first, again = (film_exchanges(np.random.default_rng(5), known[0]) for _ in range(2))
    assert first == again
