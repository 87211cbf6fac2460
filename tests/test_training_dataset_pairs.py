"""Pairs of instruction data: their forms, their films, their boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.datasets import SCALE, recipe, rows_of
from tools.synthetic_index import Index

from radvlm_edge.runtime.answers import parse_boxes
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build
from radvlm_edge.training.dataset_recipe import Entry, SourcePlan
from radvlm_edge.training.dataset_tasks import lower_label, lower_sentence


def test_pairs_have_radvlms_forms(built_set: Path) -> None:
    by_task: dict[str, list[dict[str, object]]] = {}
    for row in rows_of(built_set):
        by_task.setdefault(str(row["task"]), []).append(row)
        said = row["conversations"]
        assert isinstance(said, list)
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert said[0]["value"].startswith("<image>\n")
        assert sum("<image>" in turn["value"] for turn in said) == 1
    for task in ("region", "abnormality", "phrase", "conversation-grounded"):
        for row in by_task[task]:
            answers = " ".join(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")  # type: ignore[attr-defined]
            assert parse_boxes(answers, 100, 100), answers
    detected = [row["conversations"][1]["value"] for row in by_task["detect"]]  # type: ignore[index]
    assert any(" an aortic enlargement located at the coordinates [" in text for text in detected)
    assert {row["weight"] for row in by_task["detect"]} == {0.5}
    assert all("prior" not in str(row["conversations"]) for row in by_task["report"])


def test_repeats_are_worded_anew(built_set: Path) -> None:
    asked: dict[str, set[str]] = {}
    for row in rows_of(built_set):
        if row["task"] == "conversation-grounded":
            asked.setdefault(str(row["film"]), set()).add(str(row["conversations"]))
    assert any(len(texts) == 2 for texts in asked.values())


def test_missing_films_are_counted_with_the_reason(collections: Path, tmp_path: Path) -> None:
    Index(tmp_path, SCALE, films=True).chexpert()
    (tmp_path / "CheXpert/train/patient00001/study1/view1_frontal.jpg").unlink()
    made = build(recipe(Entry("classify", "chexpert")), tmp_path, tmp_path / "out", TemplateWriter())
    assert made["entries"][0]["rejected"] == {"the film's file is missing": 1}
    assert made["pairs"] == made["entries"][0]["pairs"] - 1


def test_a_source_may_lie_outside_the_root(collections: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    plans = {"chexpert": SourcePlan(folder=str(collections / "CheXpert"))}
    plan = recipe(Entry("classify", "chexpert", take=2), sources=plans)
    build(plan, tmp_path / "elsewhere", tmp_path / "out", TemplateWriter())
    assert all((tmp_path / "elsewhere" / str(row["image"])).is_file() for row in rows_of(tmp_path / "out"))


def test_casing_follows_radvlm() -> None:
    assert lower_label("Pleural effusion") == "pleural effusion" and lower_label("ILD") == "ILD"
    assert lower_sentence("Right effusion.") == "right effusion."
    assert lower_sentence("NG tube in place.") == "NG tube in place."


@pytest.mark.realdata
def test_nih_films_in_their_published_layout_become_pairs(tmp_path: Path) -> None:
    """804 real films and their boxes, laid out as the release is."""
    import csv
    import os

    own = Path(os.environ["RADVLM_EDGE_DATA"]) / "nih_cxr14"
    home = tmp_path / "NIH-CXR14"
    (home / "images").mkdir(parents=True)
    names, entries, boxes = {}, [], []
    with (own / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            names[row["image"]] = row["source_image"]
            (home / "images" / row["source_image"]).symlink_to(own / "images" / row["image"])
            entries.append((row["source_image"], row["labels"], row["patient"], row["view"], row["sex"]))
    with (own / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            corners = [row[name] for name in ("src_x", "src_y", "src_w", "src_h")]
            boxes.append((names[row["image"]], row["label"], *corners))
    header = ("Image Index", "Finding Labels", "Patient ID", "View Position", "Patient Gender")
    index = Index(tmp_path)
    index.table("NIH-CXR14/Data_Entry_2017_v2020.csv", header, entries)
    box_header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
    index.table("NIH-CXR14/BBox_List_2017.csv", box_header, boxes)
    plan = recipe(
        Entry("classify", "nih-cxr14"),
        Entry("abnormality", "nih-cxr14"),
        sources={"nih-cxr14": SourcePlan(splits="patients")},
    )
    made = build(plan, tmp_path, tmp_path / "out", TemplateWriter())
    assert [one["rejected"] for one in made["entries"]] == [{}, {}]
    rows = rows_of(tmp_path / "out")
    assert len(rows) == made["pairs"] > 600
    with (own / "boxes.csv").open(newline="") as file:
        known = {
            tuple(round(float(row[name]), 2) for name in ("x0", "y0", "x1", "y1"))
            for row in csv.DictReader(file)
        }
    answers = [row["conversations"][1]["value"] for row in rows if row["task"] == "abnormality"]  # type: ignore[index]
    found = {box.xyxy_fraction for answer in answers for box in parse_boxes(answer, 1024, 1024)}
    assert found and all(any(max(map(abs, map(float.__sub__, a, b))) < 0.011 for b in known) for a in found)
