"""Readers of data sources against miniature folders with the real file and column names."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.synthetic_index import Index

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.training.box_fusion import fuse
from radvlm_edge.training.scores import Box, iou
from radvlm_edge.training.source import FilmRecord, LabelState
from radvlm_edge.training.source_check import check
from radvlm_edge.training.source_tables import label_state, split_of
from radvlm_edge.training.sources import SOURCES, source_named


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collections")
    Index(folder, scale=0.0002, films=True).write()
    return folder


def folders_in(root: Path) -> dict[str, Path]:
    return {name: root / source.folder for name, source in SOURCES.items()}


def records(root: Path, name: str, splits: str = "official") -> list[FilmRecord]:
    return list(SOURCES[name].read(folders_in(root), splits))


@pytest.mark.parametrize("name", SOURCES)
def test_a_whole_folder_passes_its_check_and_every_film_is_there(root: Path, name: str) -> None:
    found = check(SOURCES[name], folders_in(root))
    assert all(one.state in ("ok", "optional") for one in found), [one for one in found if one.state != "ok"]
    for record in records(root, name, "patients"):
        assert (SOURCES[name].folder_of(folders_in(root)) / record.image).is_file()


@pytest.mark.parametrize("name", SOURCES)
def test_every_missing_required_file_is_named_by_the_check(tmp_path: Path, name: str) -> None:
    found = {one.what: one.state for one in check(SOURCES[name], folders_in(tmp_path))}
    for expected in SOURCES[name].files:
        what = f"{name}: {' or '.join(expected.paths)}"
        assert found[what] == ("missing" if expected.required else "optional")


def test_a_missing_column_is_named(root: Path, tmp_path: Path) -> None:
    table = root / "CheXpert" / "train.csv"
    (tmp_path / "train").mkdir()
    text = table.read_text().replace("Pleural Other", "Pleura Other")
    (tmp_path / "train.csv").write_text(text)
    (wrong,) = [one for one in check(SOURCES["chexpert"], {"chexpert": tmp_path}) if one.state == "wrong"]
    assert "'Pleural Other'" in wrong.detail


def test_a_row_cut_off_is_an_error_not_a_film(root: Path, tmp_path: Path) -> None:
    text = (root / "CheXpert" / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text[: text.rindex(",", 0, len(text) - 40)])
    with pytest.raises(RecipeError, match="columns"):
        list(SOURCES["chexpert"].read({"chexpert": tmp_path}, "official"))


def test_gzipped_tables_read_alike(root: Path, tmp_path: Path) -> None:
    for path in (root / "MIMIC-CXR-JPG").glob("*.csv"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert list(SOURCES["mimic-cxr"].read({"mimic-cxr": tmp_path}, "official")) == records(root, "mimic-cxr")


def test_mimic_follows_its_tables(root: Path) -> None:
    films = records(root, "mimic-cxr")
    assert {one.split for one in films} == {"train", "test"}
    assert {one.view for one in films} == {"PA", "AP", "lateral"}
    first = films[0]
    assert first.image == "files/p10/p10000000/s50000000/00000000-synthetic.jpg"
    assert first.report and first.report.startswith("There is a small right pleural effusion.")


def test_mimic_without_a_sectioned_table_reads_the_reports_themselves(root: Path, tmp_path: Path) -> None:
    for path in (root / "MIMIC-CXR-JPG").glob("mimic-cxr-2*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report = tmp_path / "mimic-cxr-reports" / "files" / "p10" / "p10000000" / "s50000000.txt"
    report.parent.mkdir(parents=True)
    report.write_text(
        " FINAL REPORT\n EXAMINATION:  CHEST (PA)\n\n FINDINGS: \n \n Small effusion.\n Normal heart.\n\n"
        " IMPRESSION: \n Effusion.\n"
    )
    films = list(SOURCES["mimic-cxr"].read({"mimic-cxr": tmp_path}, "official"))
    assert films[0].report == "Small effusion. Normal heart."
    assert films[1].report is None


@pytest.mark.parametrize(
    ("cells", "clears", "state"),
    [
        (
            {"Edema": "1.0", "Fracture": "0.0", "Pneumonia": "-1.0"},
            False,
            ({"edema"}, {"fracture"}, {"pneumonia"}),
        ),
        ({"No Finding": "1.0", "Edema": "1.0"}, False, ({"edema"}, set(), set())),
        (
            {"No Finding": "1.0", "Edema": "-1.0", "Support Devices": "1.0"},
            True,
            ({"support devices"}, set(LABELS) - {"support devices"}, set()),
        ),
    ],
)
def test_labels_follow_the_no_finding_rule(
    cells: dict[str, str], clears: bool, state: tuple[set[str], set[str], set[str]]
) -> None:
    found = label_state(cells, Path("table"), clears)
    assert (found.present, found.absent, found.uncertain) == state


def test_uncertain_labels_follow_the_policy() -> None:
    state = LabelState(frozenset({"edema"}), frozenset({"fracture"}), frozenset({"pneumonia"}))
    present, absent = state.resolved("present"), state.resolved("absent")
    assert present and present.present == {"edema", "pneumonia"}
    assert absent and absent.absent == {"fracture", "pneumonia"}
    assert state.resolved("drop") is None


def test_an_unknown_label_value_is_refused() -> None:
    with pytest.raises(RecipeError, match="'2'"):
        label_state({"Edema": "2"}, Path("table"), False)


def test_imagenome_regions_are_fractions_of_the_original_film(root: Path) -> None:
    folders = folders_in(root)
    record = records(root, "chest-imagenome")[0]
    whole = SOURCES["chest-imagenome"].complete(folders, record)
    assert whole.regions and whole.regions[0].text == "right lung"
    assert whole.regions[0].boxes == ((4 / 48, 6 / 64, 30 / 48, 40 / 64),)
    assert whole.sex == "F"


def test_a_film_two_official_splits_disagree_about_is_in_neither(root: Path, tmp_path: Path) -> None:
    folders = folders_in(root)
    copy = tmp_path / "CHEST_IMA" / "silver_dataset" / "splits"
    copy.mkdir(parents=True)
    own = folders["chest-imagenome"] / "silver_dataset"
    lines = (own / "splits" / "train.csv").read_text().splitlines(keepends=True)
    (copy / "train.csv").write_text(lines[0] + "".join(lines[2:]))
    (copy / "valid.csv").write_text(lines[0] + lines[1])
    (copy / "test.csv").write_text(lines[0])
    (copy.parent / "missing_ids.json").write_text("[]")
    films = list(
        SOURCES["chest-imagenome"].read({**folders, "chest-imagenome": tmp_path / "CHEST_IMA"}, "official")
    )
    assert [one.film for one in films if one.split == ""] == ["00000000-synthetic"]


def test_mscxr_joins_boxes_of_one_sentence_and_takes_mimics_splits(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv"
    header = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split\n"
    row = "00000000-synthetic,Edema,{},files/x.jpg,{},10,10,20,100,200,test\n"
    table.write_text(header + row.format("edema at both bases", 5) + row.format("edema at both bases", 60))
    (film,) = SOURCES["ms-cxr"].read({**folders_in(root), "ms-cxr": tmp_path}, "official")
    assert film.split == "train"
    assert film.phrases[0].boxes == ((0.05, 0.05, 0.15, 0.15), (0.6, 0.05, 0.7, 0.15))


def test_padchest_keeps_sentences_with_boxes(root: Path) -> None:
    films = records(root, "padchest-gr")
    assert all(one.text != "The heart is normal in size." for film in films for one in film.phrases)
    assert films[0].phrases[0].boxes[0] == (0.1, 0.2, 0.4, 0.6)
    assert {one.split for one in films} <= {"train", "validate"}


def test_vindr_readers_are_fused_per_class(root: Path) -> None:
    folders = folders_in(root)
    record = records(root, "vindr-cxr")[0]
    assert record.findings and len(record.findings[0].boxes) == 3
    whole = SOURCES["vindr-cxr"].complete(folders, record)
    assert whole.size == (800, 600) and whole.findings
    (box,) = whole.findings[0].boxes
    drawn = record.findings[0].boxes
    for corner, side in enumerate((600, 800, 600, 800)):
        assert box[corner] == pytest.approx(sum(one[corner] for one in drawn) / 3 / side, abs=5e-4)


def test_nih_boxes_and_silence(root: Path) -> None:
    films = {one.film: one for one in records(root, "nih-cxr14")}
    drawn = [one for one in films.values() if one.findings]
    assert drawn and drawn[0].findings
    assert drawn[0].findings[0].boxes[0] == pytest.approx(
        (100.5 / 1024, 600.25 / 1024, 300.5 / 1024, 750.25 / 1024)
    )
    normal = next(one for one in films.values() if one.labels and one.labels.absent == set(LABELS))
    assert normal.labels and not normal.labels.present


def test_openi_takes_views_from_the_table_and_silence_only_from_normal(root: Path) -> None:
    films = records(root, "open-i")
    assert [one.view for one in films[:2]] == ["PA", "lateral"]
    assert films[0].labels == LabelState(frozenset({"pleural effusion", "cardiomegaly"}))


def test_an_unknown_source_lists_those_there_are() -> None:
    with pytest.raises(RecipeError, match="open-i"):
        source_named("mimic")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=30, unique=True))
def test_a_patient_is_in_one_split_whatever_else_is_read(patients: list[int]) -> None:
    alone = {str(one): split_of("nih", str(one)) for one in patients}
    assert alone == {str(one): split_of("nih", str(one)) for one in reversed(patients)}


def test_patients_split_80_10_10_and_films_of_one_stay_together(root: Path) -> None:
    shares: dict[str, int] = defaultdict(int)
    for patient in range(4000):
        shares[split_of("x", str(patient))] += 1
    assert 3000 < shares["train"] < 3400 and 300 < shares["test"] < 500
    by_patient = defaultdict(set)
    for one in records(root, "nih-cxr14", "patients") + records(root, "nih-cxr14"):
        by_patient[one.patient].add(one.view)
    for how in ("official", "patients"):
        splits = defaultdict(set)
        for one in records(root, "nih-cxr14", how):
            splits[one.patient].add(one.split)
        assert all(len(one) == 1 for one in splits.values())


def test_fusion_of_a_hand_worked_example() -> None:
    """Two overlapping boxes of confidence 0.9 and 0.6, one apart: averages worked by hand."""
    fused = fuse([((0.0, 0.0, 0.4, 0.4), 0.9), ((0.1, 0.1, 0.5, 0.5), 0.6), ((0.8, 0.8, 1.0, 1.0), 0.5)], 0.1)
    assert fused[0].box == pytest.approx((0.04, 0.04, 0.44, 0.44))
    assert fused[0].confidence == pytest.approx(0.75)
    assert fused[1].box == (0.8, 0.8, 1.0, 1.0)


corner = st.integers(0, 90)
boxes = st.lists(
    st.tuples(corner, corner, st.integers(2, 60), st.integers(2, 60)).map(
        lambda v: (v[0] / 100, v[1] / 100, min(v[0] + v[2], 100) / 100, min(v[1] + v[3], 100) / 100)
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=40)
@given(boxes, st.permutations(range(8)))
def test_fused_boxes_lie_within_their_members_and_lose_none(found: list[Box], order: list[int]) -> None:
    weights = [0.1 + 0.1 * order[index] for index in range(len(found))]
    fused = fuse(list(zip(found, weights, strict=True)), 0.1)
    assert sum(len(one.members) for one in fused) == len(found)
    for one in fused:
        for at in range(4):
            values = [box[at] for box, _ in one.members]
            assert min(values) - 1e-9 <= one.box[at] <= max(values) + 1e-9
    assert fuse(list(zip(found, weights, strict=True)), 1.0)[0].members, "nothing overlaps by more than 1"


GOLDEN = json.loads((Path(__file__).parent / "box_fusion.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_fusion_agrees_with_the_authors_package(case: dict[str, list[list[float]]]) -> None:
    """What ensemble-boxes 1.0.9 gave for random boxes: one list, `skip_box_thr` 0, `conf_type` avg."""
    given_boxes = [(tuple(box), weight) for box, weight in zip(case["boxes"], case["scores"], strict=True)]
    fused = fuse(given_boxes, case["iou"])  # type: ignore[arg-type]
    assert [one.confidence for one in fused] == pytest.approx(case["fused_scores"], abs=1e-6)
    for one, box in zip(fused, case["fused"], strict=True):
        assert one.box == pytest.approx(tuple(box), abs=1e-6)
        assert iou(one.box, tuple(box)) > 0.999  # type: ignore[arg-type]


def test_the_command_names_every_source() -> None:
    from radvlm_edge.cli.dataset import NAMES

    assert tuple(SOURCES) == NAMES


def test_vindr_takes_sizes_from_radvlms_file_where_there_is_one(root: Path, tmp_path: Path) -> None:
    """Height first, as RadVLM's preprocessing writes it; the film itself is then not opened."""
    table = tmp_path / "annotations" / "annotations_train.csv"
    table.parent.mkdir()
    table.write_text("image_id,rad_id,class_name,x_min,y_min,x_max,y_max\na,R1,ILD,10,10,20,40\n")
    (table.parent / "image_resolutions_train.json").write_text('{"a": [100, 50]}')
    (record,) = SOURCES["vindr-cxr"].read({"vindr-cxr": tmp_path}, "official")
    whole = SOURCES["vindr-cxr"].complete({"vindr-cxr": tmp_path}, record)
    assert whole.findings and whole.findings[0].boxes == ((0.2, 0.1, 0.4, 0.4),)
