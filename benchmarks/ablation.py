"""Does a task learn more beside others? One task alone against all of them, with 1, 10 and 100 % of its data.

python -m radvlm_edge.benchmarks.ablation OUT --start training/nano --task region --steps 300

Every run starts from the same tower, which stays as it is, and a projector and language model drawn anew
(the start's would know the tasks already), and takes the same number of steps of the same number of films.
`single` sees the task's share alone; `joint` also everything of the other tasks, the task's own pairs
repeated so that they keep their place in the mix. Runs are kept: the same command goes on with a killed one.
OUT/ablation.json holds the figures, OUT/ablation.png the picture, whatever comes out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radvlm_edge.benchmarks.ablation_data import SHORT_PX, make_data
from radvlm_edge.benchmarks.ablation_score import SCORES, score
from radvlm_edge.benchmarks.plot import COLOURS, FAINT, Axes, Picture
from radvlm_edge.errors import RadvlmError, RecipeError

if TYPE_CHECKING:
    from radvlm_edge.training.finetune_recipe import FinetuneRecipe

MODES = ("single", "joint")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how long each run is."""

    start: Path
    """A checkpoint of the demonstration model's class, whose tower is shared."""
    task: str = "region"
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    films: int = 2000
    """Phantoms the data is about; NIH films besides, where RADVLM_EDGE_DATA names them."""
    batch: int = 8
    pack: int = 10
    rate: float = 1e-3
    test_films: int = 100


def ablate(plan: Plan, out: Path) -> dict[str, Any]:
    """Every run that is not there yet, then the summary. Raises RecipeError, OutputError."""
    from radvlm_edge.training.films import data_folder, load_real

    if plan.task not in SCORES:
        raise RecipeError(f"task {plan.task!r} has no figure; choose one of {', '.join(SCORES)}")
    folder = data_folder()
    manifest = make_data(out / "data", plan.films, 0, load_real(folder, "train") if folder else None)
    results = list[dict[str, Any]]()
    for seed in plan.seeds:
        start = _fresh(plan.start, out / f"start-{seed}", seed)
        results += [
            _one(plan, out, start, mode, fraction, seed) for fraction in plan.fractions for mode in MODES
        ]
    summary = {
        "task": plan.task,
        "figure": SCORES[plan.task][0],
        "steps": plan.steps,
        "films_a_step": plan.batch,
        "data": manifest["inputs"],
        "real_films": folder is not None,
        "runs": results,
        "summary": summarise(results),
    }
    (out / "ablation.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(summary, out / "ablation.png")
    return summary


def _fresh(start: Path, out: Path, seed: int) -> Path:
    from radvlm_edge.training.finetune_fresh import redraw

    return out if out.is_dir() else redraw(start, out, seed)


def recipe_of(
    plan: Plan, data: Path, start: Path, tasks: Sequence[str], mode: str, fraction: float, seed: int
) -> FinetuneRecipe:
    """The fine-tuning of one run; of the runs of a seed only `tasks` differs."""
    from radvlm_edge.training.finetune_recipe import FinetuneRecipe, Rates

    others = {name: 1.0 for name in tasks if name != plan.task} if mode == "joint" else {}
    return FinetuneRecipe(
        kind="finetune",
        name=f"ablation-{mode}-{fraction:g}-{seed}",
        rates=Rates(projector=plan.rate, language=plan.rate),
        start=str(start),
        data=str(data),
        root=str(data),
        repeats={plan.task: max(1, round(1 / fraction))} if mode == "joint" else {},
        tasks={plan.task: fraction} | others,
        seed=seed,
        steps=plan.steps,
        batch=plan.batch,
        per_device=plan.batch,
        pack=plan.pack,
        save_every=max(1, plan.steps // 4),
        save_as="float32",
    )


def _one(plan: Plan, out: Path, start: Path, mode: str, fraction: float, seed: int) -> dict[str, Any]:
    """One run and its figure; a finished one is read."""
    from radvlm_edge.training.finetune import TABLE, run
    from radvlm_edge.training.finetune_pairs import Pairs, write_table

    data, folder = out / "data", out / f"{mode}-{fraction:g}-{seed}"
    done = folder / "result.json"
    if done.is_file():
        result: dict[str, Any] = json.loads(done.read_text())
        return result
    table = out / TABLE
    if not table.exists():
        write_table(data, table)
    codes, tasks = Pairs(table, data, None).codes("task")
    began = time.monotonic()
    recipe = recipe_of(plan, data, start, tasks, mode, fraction, seed)
    checkpoint = run(recipe, folder, resume=True)
    result = {"mode": mode, "fraction": fraction, "seed": seed, "trained_s": round(time.monotonic() - began)}
    own = int((codes == tasks.index(plan.task)).sum())
    result["pairs_of_the_task"] = max(1, round(fraction * own))
    result |= score(checkpoint, plan.task, plan.test_films, SHORT_PX)
    partial = done.with_name(f".{done.name}.partial")
    partial.write_text(json.dumps(result) + "\n")
    partial.replace(done)
    return result


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, least and greatest figure over seeds, of each mode and fraction."""
    rows = []
    for mode in MODES:
        for fraction in sorted({one["fraction"] for one in results}):
            found = [one["value"] for one in results if (one["mode"], one["fraction"]) == (mode, fraction)]
            if found:
                rows.append(
                    {
                        "mode": mode,
                        "fraction": fraction,
                        "mean": round(float(np.mean(found)), 4),
                        "least": min(found),
                        "greatest": max(found),
                        "seeds": len(found),
                    }
                )
    return rows


def draw(summary: dict[str, Any], path: Path) -> None:
    """The figures over the share of data, on a logarithmic axis: every seed a dot, means joined."""
    picture = Picture(760, 420)
    picture.text(24, 14, f"{summary['task']}: {summary['figure']}, {summary['steps']} steps a run")
    shares = [100 * row["fraction"] for row in summary["summary"]]
    logs = [float(np.log10(share)) for share in shares]
    axes = Axes(70, 50, 560, 360, (min(logs) - 0.2, max(logs) + 0.2), (0.0, 1.0))
    axes.draw(picture, "")
    for share, at in sorted(set(zip(shares, logs, strict=True))):
        picture.line([(axes.x(at), axes.top), (axes.x(at), axes.bottom)], FAINT)
        picture.text(axes.x(at), axes.bottom + 24, f"{share:g} %", anchor="ma")
    picture.text(70, 400, "share of the task's pairs (log10 of % on the axis)")
    for index, mode in enumerate(MODES):
        colour = COLOURS[index]
        rows = [row for row in summary["summary"] if row["mode"] == mode]
        points = [(axes.x(float(np.log10(100 * row["fraction"]))), axes.y(row["mean"])) for row in rows]
        if len(points) > 1:
            picture.line(points, colour, 2)
        for one in summary["runs"]:
            if one["mode"] == mode:
                at = axes.x(float(np.log10(100 * one["fraction"])))
                picture.dot(at, axes.y(one["value"]), colour, filled=False)
        picture.text(580, 60 + 24 * index, mode, colour=colour)
    picture.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for data, runs and figures")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint whose tower is shared")
    parser.add_argument("--task", choices=list(SCORES), default=Plan.task)
    parser.add_argument("--fractions", type=float, nargs="+", default=list(Plan.fractions))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Plan.seeds))
    for name in ("steps", "films", "batch", "pack", "test_films"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Plan, name))
    parser.add_argument("--rate", type=float, default=Plan.rate)
    given = vars(parser.parse_args())
    out = given.pop("out")
    plan = Plan(**given | {"fractions": tuple(given["fractions"]), "seeds": tuple(given["seeds"])})
    try:
        for row in ablate(plan, out)["summary"]:
            print(json.dumps(row))  # noqa: T201 - the result
    except RadvlmError as error:
        parser.exit(1, f"ablation: {error}\n")


if __name__ == "__main__":
    main()
