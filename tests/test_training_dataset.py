"""Recipes of data: what they count, whom they keep apart, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.datasets import RADVLM, ROOT, SCALE, recipe
from tools.synthetic_index import FULL, Index

from radvlm_edge.cli import cli
from radvlm_edge.errors import RecipeError
from radvlm_edge.training.dataset_build import count
from radvlm_edge.training.dataset_pairs import candidates, held_out
from radvlm_edge.training.dataset_recipe import Entry, SourcePlan, load_data_recipe


def test_the_papers_recipe_has_the_papers_total() -> None:
    given_recipe = load_data_recipe(RADVLM)
    assert sum((one.paper or 0) * one.repeats for one in given_recipe.pairs) == 1_115_021


def test_counts_follow_the_index_row_by_row(collections: Path) -> None:
    expected = Index(collections, SCALE).n
    rows = {
        (one.entry.task, one.entry.source): one.pairs for one in count(load_data_recipe(RADVLM), collections)
    }
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


def test_dry_run_prints_rows_as_json(collections: Path) -> None:
    result = CliRunner().invoke(
        cli, ["dataset", "build", str(RADVLM), "--root", str(collections), "--dry-run", "--json"]
    )
    rows = json.loads(result.stdout)
    assert [set(row) for row in rows] == [{"task", "source", "pairs", "repeats"}] * 12
    assert {row["task"]: row["repeats"] for row in rows}["abnormality"] == 3


def test_take_draws_the_same_pairs_and_a_subset_of_a_larger_take(collections: Path) -> None:
    def keys(take: int | None, seed: int = 0) -> set[str]:
        entry = Entry("classify", "mimic-cxr", take=take)
        plan = recipe(entry, seed=seed)
        return {one.key for one in candidates(plan, plan.folders(collections), entry, set())}

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


def test_the_check_command_says_what_is_missing_and_fails(collections: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    good = runner.invoke(cli, ["dataset", "check", "ms-cxr", str(collections / "MS-CXR")])
    assert good.exit_code == 0 and "credentialed" in good.stdout, good.output
    bad = runner.invoke(
        cli, ["dataset", "check", "ms-cxr", str(tmp_path), "--mimic", str(collections), "--json"]
    )
    found = {one["what"]: one["state"] for one in json.loads(bad.stdout)["found"]}
    assert bad.exit_code == 1 and found["mimic-cxr: files"] == "missing"
