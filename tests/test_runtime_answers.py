"""Boxes and labels out of answers, in the forms RadVLM was trained to write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radvlm_edge.runtime.answers import LABELS, parse_boxes, parse_labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("The following abnormalities are present: atelectasis, edema and pleural effusion.",
         ("atelectasis", "edema", "pleural effusion")),
        ("No, there is no pleural effusion.", ()),
        ("Yes, there is a right pleural effusion.", ("pleural effusion",)),
        ("No abnormalities or lesions are detected on this Chest X-ray.", ()),
        ("There is no focal consolidation, pleural effusion, or pneumothorax.", ()),
        ("No pneumothorax, but a small left pleural effusion.", ("pleural effusion",)),
        ("Pneumothorax is not seen. Cardiomegaly is present.", ("cardiomegaly",)),
        ("The lungs are free of consolidation. There is edema.", ("edema",)),
        ("Yes, there is a pleural effusion, no pneumothorax.", ("pleural effusion",)),
        ("Without effusion; Cardiomegaly.", ("cardiomegaly",)),
        ("", ()),
    ],
)  # fmt: skip
def test_labels_are_those_affirmed(text: str, labels: tuple[str, ...]) -> None:
    assert parse_labels(text) == labels


@given(st.sets(st.sampled_from(LABELS), min_size=1))
def test_a_list_is_read_back_whole_and_its_negation_not_at_all(labels: set[str]) -> None:
    named = ", ".join(sorted(labels))
    assert set(parse_labels(f"The following abnormalities are present: {named}.")) == labels
    assert parse_labels(f"There is no {named}.") == ()


def test_boxes_of_a_grounding_answer() -> None:
    text = "The left lung is located at the coordinates [0.55, 0.1, 0.9, 0.80] on the image."
    (box,) = parse_boxes(text, height=1000, width=500)
    assert box.label == "left lung"
    assert box.xyxy_fraction == (0.55, 0.1, 0.9, 0.8)
    assert box.xyxy_pixels == (275, 100, 450, 800)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("You'll find the cardiac silhouette at [0.1, 0.1, 0.2, 0.2] in the X-ray.", "cardiac silhouette"),
        ("For the right lung, the coordinates are [0.1, 0.1, 0.2, 0.2] on the X-ray.", "right lung"),
        ("This sentence is located at the coordinates [0.1, 0.1, 0.2, 0.2] on the image.", None),
        ("The bounding box for this observation is [0.1, 0.1, 0.2, 0.2].", None),
        ("[0.1, 0.1, 0.2, 0.2]", None),
    ],
)
def test_label_of_a_box(text: str, label: str | None) -> None:
    (box,) = parse_boxes(text, 10, 10)
    assert box.label == label


def test_detection_answers_label_every_box() -> None:
    text = (
        "Sure! I can find a pleural effusion located at the coordinates [0, 0.5, 0.3, 1.0] and "
        "[0.7, 0.5, 1.0, 0.9]; an infiltration located at the coordinates [0.2, 0.2, 0.4, 0.4]."
    )
    assert [box.label for box in parse_boxes(text, 100, 100)] == [
        "pleural effusion",
        "pleural effusion",
        "infiltration",
    ]


def test_boxes_are_clamped_and_impossible_ones_left_out() -> None:
    text = "[-0.5, 0.2, 1.7, 0.4] [0.6, 0.1, 0.4, 0.2] [0.3, 0.3, 0.3, 0.5] [0.1, 0.2, 0.3] [1.2.3, 0, 1, 1]"
    (box,) = parse_boxes(text, 200, 100)
    assert box.xyxy_fraction == (0.0, 0.2, 1.0, 0.4)
    assert box.xyxy_pixels == (0, 40, 100, 80)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 4000), st.integers(1, 4000))
def test_pixels_lie_in_the_film(values: list[float], height: int, width: int) -> None:
    text = "[" + ", ".join(str(round(v, 2)) for v in values) + "]"
    for box in parse_boxes(text, height, width):
        left, top, right, bottom = box.xyxy_pixels
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
