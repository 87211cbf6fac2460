"""Questions and answers agree with what is known about the film."""

from __future__ import annotations

import re

import numpy as np
import pytest

from radvlm_edge.runtime.answers import LABELS, parse_boxes, parse_labels
from radvlm_edge.runtime.prompts import TASKS
from radvlm_edge.training.conversations import conversation
from radvlm_edge.training.curriculum import film_conversations, film_exchanges, real_exchanges
from radvlm_edge.training.instructions import (
    Exchange,
    Labels,
    box_text,
    boxes_text,
    classify,
    labels_of,
    out_of_scope,
    yes_no,
)
from radvlm_edge.training.nih_labels import ABSENCE, NIH_TO_RADVLM, PICK, radvlm_labels
from radvlm_edge.training.phantom import Finding, make_phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS, SIDED
from radvlm_edge.training.phrasings import (
    ASIDE,
    CLASSIFY,
    DETECT,
    LOCATE,
    NEGATED,
    PHRASE,
    PLAIN,
    REPORT,
    SPOKEN,
    UNANSWERABLE,
)
from radvlm_edge.training.reports import report_text

LEFT_AIR = Finding("pneumothorax", "left", (0.5, 0.1, 0.9, 0.4), "small")


@pytest.fixture(scope="module")
def known() -> list[Labels]:
    return [labels_of(make_phantom(seed, (120, 150))) for seed in range(160)]


@pytest.fixture(scope="module")
def asked(known: list[Labels]) -> list[tuple[Labels, Exchange]]:
    rng = np.random.default_rng(0)
    return [(labels, one) for labels in known for _ in range(6) for one in film_exchanges(rng, labels)]


def test_boxes_are_written_as_radvlm_writes_them() -> None:
    assert box_text((0.1234, 0.5, 0.999, 1.0)) == "[0.12, 0.5, 1.0, 1.0]"
    assert boxes_text([(0.1, 0.2, 0.3, 0.4)] * 3) == (
        "[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4] and [0.1, 0.2, 0.3, 0.4]"
    )


def test_the_runtimes_tasks_are_trained_wordings() -> None:
    assert TASKS["report"] in REPORT
    assert TASKS["classify"] in CLASSIFY
    assert TASKS["detect"] in DETECT
    assert TASKS["locate"] in LOCATE
    assert TASKS["phrase"] in PHRASE


def test_findings_are_radvlms_and_all_can_be_asked() -> None:
    assert set(FINDINGS) <= set(LABELS) == set(SPOKEN)
    assert len(PLAIN) >= 20
    assert len(set(PLAIN)) == len(PLAIN)


def test_any_effusion_is_asked_in_these_very_words(asked: list[tuple[Labels, Exchange]]) -> None:
    assert "any effusion?" in {one.question for _, one in asked}


def test_every_task_occurs(asked: list[tuple[Labels, Exchange]]) -> None:
    tasks = {one.task for _, one in asked}
    assert tasks == {
        "yesno", "scope", "classify", "region", "finding", "several", "phrase", "detect", "report",
    }  # fmt: skip


def test_as_many_yes_as_no_whatever_is_asked(asked: list[tuple[Labels, Exchange]]) -> None:
    questions = [one for _, one in asked if one.task == "yesno"]
    truths = [one.truth for one in questions]
    assert abs(np.mean(truths) - 0.5) < 0.04
    assert abs(np.mean([one.answer.startswith("Yes") for one in questions]) - 0.5) < 0.05
    for name in FINDINGS:
        own = [one.truth for one in questions if one.about.endswith(name)]
        assert len(own) > 150
        assert abs(np.mean(own) - 0.5) < 0.15, name


def test_answers_state_what_is_there(asked: list[tuple[Labels, Exchange]]) -> None:
    for labels, one in asked:
        stated = set(parse_labels(one.answer))
        if one.task in ("classify", "report", "detect"):
            assert stated == labels.present, one
        elif one.task == "yesno":
            name = next(name for name in FINDINGS if one.about.endswith(name))
            side = one.about.removesuffix(name).strip()
            assert one.truth == labels.has(name, side), one
            assert (" no " not in one.answer) == one.truth, one
            if one.truth and "bilateral" not in one.answer:
                assert stated == {name}, one
            if side:
                assert side in one.answer


def test_located_boxes_are_the_labels(asked: list[tuple[Labels, Exchange]]) -> None:
    for labels, one in asked:
        if one.task == "region":
            assert labels.regions is not None and box_text(labels.regions[one.about]) in one.answer
        if one.task in ("finding", "several"):
            boxes = [box for name in one.about.split("; ") for box in labels.boxes(name)]
            assert re.findall(r"\[[^\]]*\]", one.answer) == [box_text(box) for box in boxes]
        if one.task == "phrase":
            boxes = [box_text(box) for box in labels.boxes(one.about)]
            assert re.findall(r"\[[^\]]*\]", one.answer)[0] in boxes


def test_the_runtime_reads_which_box_belongs_to_what(asked: list[tuple[Labels, Exchange]]) -> None:
    seen = 0
    for labels, one in asked:
        if one.task in ("several", "detect") and labels.present:
            for box in parse_boxes(one.answer, 1000, 1000):
                name = {"rib fracture": "fracture"}.get(str(box.label), box.label)
                own = [box_text(true) for true in labels.boxes(str(name))]
                assert box_text(box.xyxy_fraction) in own, (one.answer, box)
                seen += 1
    assert seen > 100


def test_every_box_parses_within_the_film(asked: list[tuple[Labels, Exchange]]) -> None:
    for _, one in asked:
        for found in re.findall(r"\[([^\]]*)\]", one.answer):
            x1, y1, x2, y2 = map(float, found.split(", "))
            assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1


def test_negated_questions_turn_the_word_not_the_fact() -> None:
    rng = np.random.default_rng(1)
    labels = Labels(frozenset({"pneumothorax"}), (LEFT_AIR,))
    negated = {form.format("pneumothorax") for form in NEGATED}
    answers = [yes_no(rng, labels, "pneumothorax") for _ in range(600)]
    turned = [one for one in answers if one.question in negated]
    assert 20 < len(turned) < 150
    assert all(one.answer == "No, there is a left pneumothorax." for one in turned)
    assert all(one.answer.startswith("Yes") for one in answers if one.question not in negated)


def test_a_film_cannot_tell_the_patients_name() -> None:
    rng = np.random.default_rng(3)
    assert {out_of_scope(rng).answer for _ in range(50)} == {UNANSWERABLE}
    assert not parse_labels(UNANSWERABLE)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            (),
            "The heart size is normal. The lungs are clear. No pleural effusion or pneumothorax. "
            "No fracture. No support devices.",
        ),
        (
            (
                LEFT_AIR,
                Finding("cardiomegaly", "", (0, 0, 1, 1), "mild"),
                Finding("lung lesion", "right", (0, 0, 1, 1), "small", "upper"),
                Finding("atelectasis", "left", (0, 0, 1, 1), "minor", "lower", "plate"),
                Finding("support devices", "", (0, 0, 1, 1), "clear", "", "chest tube"),
            ),
            "There is mild cardiomegaly. There is a small lung lesion in the right upper lung zone. There is "
            "plate atelectasis in the left lower lung zone. No consolidation or edema. There is a small left "
            "pneumothorax. No pleural effusion. No fracture. Support devices: chest tube.",
        ),
    ],
)
def test_a_report_says_this(found: tuple[Finding, ...], text: str) -> None:
    assert report_text(found) == text


def test_conversations_answer_from_the_labels(known: list[Labels]) -> None:
    rng = np.random.default_rng(4)
    grounded_turns = 0
    for labels in known:
        for grounded in (False, True):
            turns = conversation(rng, labels, grounded)
            assert 2 <= len(turns) <= 6
            for one in turns:
                boxes = re.findall(r"\[[^\]]*\]", one.answer)
                grounded_turns += bool(boxes)
                assert grounded or not boxes
                true = [box_text(box) for box in labels.boxes(one.about)]
                if labels.regions and one.about in labels.regions:
                    true = [box_text(labels.regions[one.about])]
                assert boxes == [] or boxes == true
                if one.answer.startswith("On the "):
                    assert one.answer == f"On the {labels.of(one.about)[0].side}."
                if one.answer.startswith("It is ") and not boxes:
                    assert one.answer == f"It is {labels.of(one.about)[0].severity}."
    assert grounded_turns > 50


def test_half_of_the_films_get_a_conversation(known: list[Labels]) -> None:
    rng = np.random.default_rng(5)
    counts = [len(film_conversations(rng, known[0])) for _ in range(400)]
    assert abs(np.mean(counts) - 0.5) < 0.08


def test_a_film_without_known_sides_gets_none() -> None:
    rng = np.random.default_rng(2)
    for name in PICK:
        labels = Labels(frozenset({name}), localised=False)
        for one in real_exchanges(rng, labels, name):
            assert not re.search(r"\bright\b(?!\?)|\bleft\b|\[", one.answer)
        assert classify(rng, labels).answer.endswith(f"{name}.")


def test_a_radiologists_box_is_asked_for() -> None:
    rng = np.random.default_rng(6)
    drawn = (Finding("pneumonia", "", (0.1, 0.2, 0.3, 0.4)),)
    labels = Labels(frozenset({"pneumonia"}), drawn, localised=False)
    answers = [one.answer for _ in range(20) for one in real_exchanges(rng, labels, "pneumonia")]
    assert any("[0.1, 0.2, 0.3, 0.4]" in answer for answer in answers)


def test_nih_labels_map_onto_radvlms() -> None:
    names = {name for name, _ in NIH_TO_RADVLM.values() if name}
    assert names <= set(LABELS)
    assert set(PICK) <= names and set(ABSENCE) <= names
    assert abs(sum(PICK.values()) - 1) < 1e-9
    assert radvlm_labels({"Mass", "Nodule", "Fibrosis"}) == {"lung lesion"}
    with pytest.raises(KeyError):
        radvlm_labels({"Mas"})


def test_the_vocabulary_is_small(asked: list[tuple[Labels, Exchange]]) -> None:
    words = {word for _, one in asked for word in re.findall(r"[A-Za-z']+", f"{one.question} {one.answer}")}
    assert len(words) < 600


def test_the_same_seed_asks_the_same(known: list[Labels]) -> None:
    first, again = (film_exchanges(np.random.default_rng(5), known[0]) for _ in range(2))
    assert first == again


def test_asides_are_about_findings() -> None:
    assert set(ASIDE) <= set(FINDINGS)
    assert set(SIDED) < set(FINDINGS)
