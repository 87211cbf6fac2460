"""Recipes of data: counts, leaks, pairs, shards that are the same to the byte, builds that were killed."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.synthetic_index import FULL, Index

from radvlm_edge.cli import cli
from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.runtime.answers import parse_boxes
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build, count
from radvlm_edge.training.dataset_pairs import candidates, held_out
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry, SourcePlan, load_data_recipe
from radvlm_edge.training.dataset_render import generator
from radvlm_edge.training.dataset_tasks import lower_label, lower_sentence

ROOT = Path(__file__).parents[1]
SCALE = 0.0002
RADVLM = ROOT / "recipes" / "radvlm.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collections")
    Index(folder, SCALE, films=True).write()
    return folder


def recipe(*entries: Entry, **changes: object) -> DataRecipe:
    return DataRecipe("test", entries, **changes)  # type: ignore[arg-type]


def test_the_papers_recipe_has_the_papers_total() -> None:
    given_recipe = load_data_recipe(RADVLM)
    assert sum((one.paper or 0) * one.repeats for one in given_recipe.pairs) == 1_115_021


def test_counts_follow_the_index_row_by_row(root: Path) -> None:
    expected = Index(root, SCALE).n
    rows = {(one.entry.task, one.entry.source): one.pairs for one in count(load_data_recipe(RADVLM), root)}
    assert rows[("report", "mimic-cxr")] == expected["mimic reports"]
    assert rows[("classify", "mimic-cxr")] == expected["mimic frontal"]
    assert rows[("report", "chexpert-plus")] == expected["plus"]
    assert rows[("classify", "chexpert")] == expected["chexpert"]
    assert rows[("region", "chest-imagenome")] == expected["imagenome"]
    assert rows[("abnormality", "vindr-cxr")] == expected["vindr findings"]
    assert rows[("detect", "vindr-cxr")] == expected["vindr films"]
    assert rows[("phrase", "ms-cxr")] == expected["mscxr phrases"]
    assert rows[("conversation-grounded", "padchest-gr")] == expected["padchest films"]
    assert FULL["mimic frontal"] == 237_912


def test_a_row_less_in_the_index_is_a_pair_less(tmp_path: Path) -> None:
    Index(tmp_path, SCALE).chexpert()
    plan = recipe(Entry("classify", "chexpert"))
    before = count(plan, tmp_path)[0].pairs
    table = tmp_path / "CheXpert" / "train.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:3] + lines[5:]))
    assert count(plan, tmp_path)[0].pairs == before - 2


def test_dry_run_prints_rows_as_json(root: Path) -> None:
    result = CliRunner().invoke(
        cli, ["dataset", "build", str(RADVLM), "--root", str(root), "--dry-run", "--json"]
    )
    rows = json.loads(result.stdout)
    assert [set(row) for row in rows] == [{"task", "source", "pairs", "repeats"}] * 12
    assert {row["task"]: row["repeats"] for row in rows}["abnormality"] == 3


def test_take_draws_the_same_pairs_and_a_subset_of_a_larger_take(root: Path) -> None:
    def keys(take: int | None, seed: int = 0) -> set[str]:
        entry = Entry("classify", "mimic-cxr", take=take)
        plan = recipe(entry, seed=seed)
        return {one.key for one in candidates(plan, plan.folders(root), entry, set())}

    assert keys(5) < keys(12) < keys(None)
    assert len(keys(5)) == 5 and keys(5) != keys(5, seed=1)


def test_a_held_out_patient_of_another_source_stops_the_build(tmp_path: Path) -> None:
    Index(tmp_path, SCALE).chexpert()
    Index(tmp_path, SCALE).plus()
    table = tmp_path / "CheXpertPlus" / "df_chexpert_plus_240401.csv"
    table.write_text(table.read_text().replace("Male,train", "Male,test", 1))
    entries = Entry("classify", "chexpert"), Entry("report", "chexpert-plus")
    with pytest.raises(RecipeError, match="patient00000"):
        count(recipe(*entries), tmp_path)
    before = Index(tmp_path, SCALE).n["chexpert"]
    assert count(recipe(*entries, leaks="drop"), tmp_path)[0].pairs == before - 1


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index files of 80 studies and 100 patients without films."""
    folder = tmp_path_factory.mktemp("patients")
    index = Index(folder, SCALE)
    index.n |= {"open-i": 80, "nih": 200}
    index.nih()
    index.openi()
    return folder


@pytest.mark.parametrize("leaks", ["drop", "error"])
@pytest.mark.parametrize("splits", ["official", "patients"])
def test_no_patient_is_trained_on_and_held_out(patients: Path, leaks: str, splits: str) -> None:
    entries = Entry("report", "open-i"), Entry("classify", "nih-cxr14")
    plans = {"nih-cxr14": SourcePlan(splits=splits)}
    plan = recipe(*entries, leaks=leaks, held_out=("test", "validate"), sources=plans)
    folders = plan.folders(patients)
    apart = held_out(plan, folders)
    assert {population for population, _ in apart} == {"open-i", "nih"}
    for entry in entries:
        population = "nih" if entry.source == "nih-cxr14" else entry.source
        trained = {(population, one.record.patient) for one in candidates(plan, folders, entry, apart)}
        assert trained and not trained & apart


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def small(form: str = "parquet", **changes: object) -> DataRecipe:
    return recipe(
        Entry("report", "mimic-cxr", take=7),
        Entry("region", "chest-imagenome", take=4),
        Entry("abnormality", "vindr-cxr", repeats=2),
        Entry("detect", "vindr-cxr", weight=0.5),
        Entry("phrase", "ms-cxr", splits=("train", "validate")),
        Entry("classify", "chexpert", take=5),
        Entry("conversation", "mimic-cxr", take=6),
        Entry("conversation-grounded", "padchest-gr", splits=("train", "validate"), repeats=2),
        shard_pairs=3,
        format=form,
        **changes,
    )


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(small(), root, out, TemplateWriter())
    return out


def rows_of(folder: Path) -> list[dict[str, object]]:
    from pyarrow import parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def test_a_build_writes_what_it_counts(built: Path, root: Path) -> None:
    manifest = json.loads((built / "dataset.json").read_text())
    counts = count(small(), root)
    for entry, one in zip(manifest["entries"], counts, strict=True):
        assert entry["pairs"] == one.pairs and entry["rejected"] == {}
        assert entry["written"] == one.pairs * one.entry.repeats
    rows = rows_of(built)
    assert len(rows) == manifest["pairs"] and len({row["id"] for row in rows}) == len(rows)
    assert all((root / str(row["image"])).is_file() for row in rows)


def test_pairs_have_radvlms_forms(built: Path) -> None:
    by_task: dict[str, list[dict[str, object]]] = {}
    for row in rows_of(built):
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


def test_repeats_are_worded_anew(built: Path) -> None:
    asked: dict[str, set[str]] = {}
    for row in rows_of(built):
        if row["task"] == "conversation-grounded":
            asked.setdefault(str(row["film"]), set()).add(str(row["conversations"]))
    assert any(len(texts) == 2 for texts in asked.values())


def test_two_builds_are_the_same_to_the_byte(built: Path, root: Path, tmp_path: Path) -> None:
    build(small(), root, tmp_path / "again", TemplateWriter())
    assert bytes_of(tmp_path / "again") == bytes_of(built)


KILLED = """
import os, signal, sys
from pathlib import Path
from radvlm_edge.training import dataset_state
from radvlm_edge.training.conversation_template import TemplateWriter
from radvlm_edge.training.dataset_build import build
sys.path.insert(0, sys.argv[4])
from tests.test_training_dataset import small
replace, left = Path.replace, [int(sys.argv[3])]
def dying(self, target):
    if str(target).endswith(".parquet"):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
build(small(), Path(sys.argv[1]), Path(sys.argv[2]), TemplateWriter())
"""


def test_a_killed_build_goes_on_to_the_same_bytes(built: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    result = subprocess.run(
        [sys.executable, "-c", KILLED, root, out, "5", ROOT], capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(finished) == 5 and not (out / "dataset.json").exists()
    assert any(path.name.endswith(".partial") for path in out.iterdir())
    with (out / "shards.jsonl").open("a") as file:
        file.write('{"name": "cut o')  # the kill may also cut the journal's last line off
    build(small(), root, out, TemplateWriter())
    assert bytes_of(out) == bytes_of(built)
    assert all((out / name).stat().st_mtime_ns == time for name, time in finished.items()), "written twice"


def test_a_damaged_shard_is_written_again(built: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    build(small(), root, out, TemplateWriter())
    victim = sorted(out.glob("*.parquet"))[2]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    build(small(), root, out, TemplateWriter())
    assert bytes_of(out) == bytes_of(built)


def test_a_full_disk_is_one_error_and_the_build_goes_on_later(
    built: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = Path.replace, [4]

    def full(self: Path, target: Path) -> Path:
        left[0] -= target.suffix == ".parquet"
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        build(small(), root, tmp_path / "full", TemplateWriter())
    monkeypatch.undo()
    build(small(), root, tmp_path / "full", TemplateWriter())
    assert bytes_of(tmp_path / "full") == bytes_of(built)


def test_a_source_may_lie_outside_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    plans = {"chexpert": SourcePlan(folder=str(root / "CheXpert"))}
    plan = recipe(Entry("classify", "chexpert", take=2), sources=plans)
    build(plan, tmp_path / "elsewhere", tmp_path / "out", TemplateWriter())
    assert all((tmp_path / "elsewhere" / str(row["image"])).is_file() for row in rows_of(tmp_path / "out"))


def test_other_inputs_are_refused_and_named(root: Path, tmp_path: Path) -> None:
    plan = recipe(Entry("classify", "chexpert", take=2))
    build(plan, root, tmp_path / "out", TemplateWriter())
    other = recipe(Entry("classify", "chexpert", take=2), seed=1)
    with pytest.raises(OutputError, match="recipe: seed"):
        build(other, root, tmp_path / "out", TemplateWriter())
    build(other, root, tmp_path / "out", TemplateWriter(), force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(OutputError, match="no data set"):
        build(plan, root, tmp_path / "mine", TemplateWriter(), force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_webdataset_shards_hold_films_and_are_the_same_to_the_byte(root: Path, tmp_path: Path) -> None:
    plan = recipe(
        Entry("detect", "vindr-cxr"),
        Entry("classify", "chexpert", take=3),
        format="webdataset",
        longest_px=128,
    )
    for name in ("one", "two"):
        build(plan, root, tmp_path / name, TemplateWriter())
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    from PIL import Image

    with tarfile.open(next((tmp_path / "one").glob("*vindr*.tar"))) as archive:
        names = archive.getnames()
        film = archive.extractfile(names[0])
        about = archive.extractfile(names[1])
        assert film and about
        assert names[:2] == ["000000000.jpg", "000000000.json"]
        assert Image.open(film).size == (96, 128)
        assert json.load(about)["source"] == "vindr-cxr"


def test_missing_films_are_counted_with_the_reason(root: Path, tmp_path: Path) -> None:
    Index(tmp_path, SCALE, films=True).chexpert()
    (tmp_path / "CheXpert/train/patient00001/study1/view1_frontal.jpg").unlink()
    made = build(recipe(Entry("classify", "chexpert")), tmp_path, tmp_path / "out", TemplateWriter())
    assert made["entries"][0]["rejected"] == {"the film's file is missing": 1}
    assert made["pairs"] == made["entries"][0]["pairs"] - 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\npairs: [{task: report}]", "'source' is missing"),
        ("name: x\npairs: [{task: reports, source: mimic-cxr}]", "choose one of report"),
        ("name: x\npairs: [{task: report, source: mimic}]", "mimic-cxr"),
        ("name: x\npairs: [{task: report, source: mimic-cxr, splits: [test]}]", "held_out"),
        ("name: x\npairs: [{task: report, source: mimic-cxr, repeats: 0}]", "above 0"),
        ("name: x\nshards: 3\npairs: [{task: report, source: mimic-cxr}]", "unknown key 'shards'"),
        ("name: x\nuncertain: maybe\npairs: [{task: report, source: mimic-cxr}]", "present, absent, drop"),
        ("name: x\npairs: [{task: report, source: mimic-cxr, repeats: true}]", "int is needed"),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_data_recipe(path)


@pytest.mark.parametrize("name", ["radvlm", "open"])
def test_recipes_that_ship_load(name: str) -> None:
    assert load_data_recipe(ROOT / "recipes" / f"{name}.yaml").name == name


def test_casing_follows_radvlm() -> None:
    assert lower_label("Pleural effusion") == "pleural effusion" and lower_label("ILD") == "ILD"
    assert lower_sentence("Right effusion.") == "right effusion."
    assert lower_sentence("NG tube in place.") == "NG tube in place."


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=20), st.integers(0, 2**31))
def test_random_numbers_depend_on_the_name_alone(name: str, seed: int) -> None:
    assert generator(seed, name).integers(2**60) == generator(seed, name).integers(2**60)
    assert generator(seed, name).integers(2**60) != generator(seed, name + "x").integers(2**60)


def test_the_check_command_says_what_is_missing_and_fails(root: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    good = runner.invoke(cli, ["dataset", "check", "ms-cxr", str(root / "MS-CXR")])
    assert good.exit_code == 0 and "credentialed" in good.stdout, good.output
    bad = runner.invoke(cli, ["dataset", "check", "ms-cxr", str(tmp_path), "--mimic", str(root), "--json"])
    found = {one["what"]: one["state"] for one in json.loads(bad.stdout)["found"]}
    assert bad.exit_code == 1 and found["mimic-cxr: files"] == "missing"


def test_the_build_command_counts_in_a_table_and_builds(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\npairs: [{task: classify, source: chexpert, take: 4, repeats: 2, paper: 191027}]"
    )
    arguments = ["dataset", "build", str(path), "--root", str(root)]
    table = CliRunner().invoke(cli, [*arguments, "--dry-run"]).stdout.splitlines()
    assert table[1].split() == ["classify", "chexpert", "4", "2", "191027"]
    assert table[2].split()[-2:] == ["8", "382054"]
    made = CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "out")])
    assert made.exit_code == 0 and "8/8 pairs, 0 rejected, 0:00:00 left" in made.stderr, made.output
    assert len(rows_of(tmp_path / "out")) == 8


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
