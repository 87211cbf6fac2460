"""The ablation at its smallest: every run is made, kept, gone on from, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the torch world (extra `train`)")
pytest.importorskip("accelerate", reason="needs the torch world (extra `train`)")

import torch
from PIL import Image
from tests.tiny import make_checkpoint

from radvlm_edge.benchmarks.ablation import Plan, ablate, recipe_of, summarise
from radvlm_edge.benchmarks.ablation_data import make_data
from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.export.checkpoint import open_checkpoint

pytestmark = pytest.mark.torch


def test_runs_are_made_once_from_one_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADVLM_EDGE_DATA", raising=False)
    start, out = make_checkpoint(tmp_path / "start", dtype=torch.float32), tmp_path / "out"
    plan = Plan(start, fractions=(0.5, 1.0), seeds=(0,), steps=1, films=6, batch=2, pack=4, test_films=1)
    first = ablate(plan, out)
    runs = [(one["mode"], one["fraction"], one["seed"]) for one in first["runs"]]
    assert sorted(runs) == sorted((mode, part, 0) for part in (0.5, 1.0) for mode in ("single", "joint"))
    assert all(0 <= one["value"] <= 1 and one["answers"] == 3 for one in first["runs"])
    assert json.loads((out / "ablation.json").read_text()) == first
    with Image.open(out / "ablation.png") as picture:
        assert picture.size == (760, 420)

    shared, fresh = open_checkpoint(start), open_checkpoint(out / "start-0")
    for name in shared.where:
        assert torch.equal(shared.tensor(name), fresh.tensor(name)) == name.startswith("vision_tower."), name
    tuned = open_checkpoint(out / "joint-1-0" / "checkpoint")
    assert all(torch.equal(shared.tensor(n), tuned.tensor(n)) for n in shared.where if n.startswith("vision"))

    (out / "single-0.5-0" / "result.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    again = ablate(plan, out)
    assert [one["value"] for one in again["runs"]] == [one["value"] for one in first["runs"]]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()) and len(kept) == 3
    with pytest.raises(OutputError, match="other choices"):
        make_data(out / "data", 7, 0, None)


def test_a_joint_run_keeps_the_tasks_place_in_the_mix(tmp_path: Path) -> None:
    plan, names = Plan(tmp_path, task="region"), ["region", "yesno", "report"]
    single = recipe_of(plan, tmp_path, tmp_path, names, "single", 0.01, 3)
    joint = recipe_of(plan, tmp_path, tmp_path, names, "joint", 0.01, 3)
    assert single.tasks == {"region": 0.01} and not single.repeats
    assert joint.tasks == {"region": 0.01, "yesno": 1.0, "report": 1.0} and joint.repeats == {"region": 100}
    assert (single.seed, single.steps, single.batch) == (joint.seed, joint.steps, joint.batch)
    with pytest.raises(RecipeError, match="has no figure"):
        ablate(Plan(tmp_path, task="weather"), tmp_path / "out")


def test_a_summary_is_over_seeds() -> None:
    results = [{"mode": "single", "fraction": 0.1, "value": value} for value in (0.2, 0.6, 0.1)]
    (row,) = summarise(results)
    assert (row["mean"], row["least"], row["greatest"], row["seeds"]) == (0.3, 0.1, 0.6, 3)
