"""A model and questions with known answers → figures with intervals, as JSON; answers are kept on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from radvlm_edge import __version__
from radvlm_edge.benchmarks import metrics_weights
from radvlm_edge.benchmarks.evaluate_answers import Answered, Kept, Progress, answers
from radvlm_edge.benchmarks.evaluate_figures import (
    MODES,
    Case,
    Figures,
    cases_of,
    figures_of,
    read_answer,
)
from radvlm_edge.benchmarks.evaluate_items import Item, digest_of
from radvlm_edge.benchmarks.evaluate_judge import Judge, RuleJudge
from radvlm_edge.benchmarks.evaluate_models import ONEVISION, Model
from radvlm_edge.benchmarks.metrics_counts import DRAWS, LEVEL, Rows
from radvlm_edge.errors import RecipeError

FORMAT = 1
WORST = 12
"""Cases kept for the page."""


@dataclass(frozen=True)
class Settings:
    """How answers are scored; none of it changes what is asked but `most`."""

    mode: str = "paper"
    """`paper` or `strict`."""
    most: int | None = None
    """Longest answer in tokens."""
    draws: int = DRAWS
    weights: Mapping[str, Path] = field(default_factory=dict)
    """Score → folder of its weights."""
    judge: Judge = field(default_factory=RuleJudge)


@dataclass(frozen=True)
class Evaluation:
    """What was found, and what a page may show of it."""

    result: dict[str, Any]
    """Aggregates only: nothing of a film, an answer or a name."""
    cases: tuple[Case, ...]
    worst: tuple[Case, ...]


def evaluate(
    model: Model,
    items: Sequence[Item],
    task: str,
    kept: Path,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress = lambda done, all_: None,
) -> Evaluation:
    """Ask and score. A task the model is not published for is marked, and nothing is asked.

    Raises RecipeError where there is nothing to ask, OutputError where `kept` holds something else.
    """
    if settings.mode not in MODES:
        raise RecipeError(f"metrics {settings.mode!r} are unknown; choose {' or '.join(MODES)}")
    described = model.describe()
    reason = model.unsupported(task)
    if reason is not None:
        return marked(described, task, settings.mode, reason)
    about = {"format": FORMAT, "model": described, "task": task, "metrics": settings.mode}
    if not items:
        raise RecipeError(f"no item of task {task} in the data; name other data, or another --task")
    head = {"model": described, "task": task, "items": digest_of(items), "most": settings.most}
    pairs = list(answers(model, items, Kept(kept, head, force), settings.most, progress))
    return scored(pairs, about, settings, onevision=model.chat == ONEVISION)


def marked(model: dict[str, Any], task: str, mode: str, reason: str) -> Evaluation:
    """The result for a task that is not asked of a model, and why."""
    about = {"format": FORMAT, "model": model, "task": task, "metrics": mode}
    return Evaluation({**about, "unsupported": reason}, (), ())


def scored(
    pairs: Sequence[tuple[Item, Answered]], about: dict[str, Any], settings: Settings, *, onevision: bool
) -> Evaluation:
    """Figures of answers already given."""
    task = str(about["task"])
    scores = [
        settings.judge.score(item, [read_answer(text, settings.mode, onevision) for text in one.texts]).score
        for item, one in pairs
        if task == "conversation" and not one.failed
    ]
    cases = cases_of(pairs, settings.mode, onevision=onevision, scores=scores)
    figures = figures_of(cases, task, settings.mode, settings.draws)
    missing: dict[str, str] = {}
    if task == "report":
        figures, missing = _with_weights(figures, cases, settings)
    failed = Counter(one.failed.split(":")[0] for _, one in pairs if one.failed)
    result = {
        **about,
        "asked": {
            "items": len(pairs),
            "answered": len(cases),
            "failed": dict(failed),
            "groups": len({case.item.group for case in cases}),
            "splits": dict(Counter(item.split or "unstated" for item, _ in pairs)),
            "data": digest_of([item for item, _ in pairs]),
        },
        "figures": {name: one.as_json() for name, one in figures.task.items()},
        "beside": {name: one.as_json() for name, one in figures.beside.items()},
        "calibration": _calibration(figures, cases),
        "not_computed": missing,
        "interval": {"level": LEVEL, "draws": settings.draws, "over": "patients, or films", "seed": 0},
        "radvlm_edge": __version__,
    }
    if task == "conversation":
        result["judge"] = {"name": settings.judge.name, "without_score": sum(one is None for one in scores)}
    worst = sorted(cases, key=lambda case: (-case.badness, case.item.key))[:WORST]
    return Evaluation(result, tuple(cases), tuple(worst))


def _with_weights(
    figures: Figures, cases: Sequence[Case], settings: Settings
) -> tuple[Figures, dict[str, str]]:
    """The report scores whose weights were given, resampled as the others, and why the rest is missing."""
    texts = [case.text for case in cases]
    rows, formulas, missing = metrics_weights.compute(
        settings.weights, texts, [case.item.text for case in cases]
    )
    own = Rows()
    for case, row in zip(cases, rows, strict=True):
        own.add(case.item.group, {"items": 1, **row})
    found = own.figures(formulas, draws=settings.draws) if formulas else {}
    return replace(figures, task=figures.task | found), missing


def _calibration(figures: Figures, cases: Sequence[Case]) -> dict[str, Any]:
    names = sorted(
        {said.calibrated_on for case in cases for said in case.answered.said if said.confidence is not None}
    )
    bins = sorted({int(name.split()[1]) for name in figures.bins})
    return {
        "calibrated_on": names,
        "bins": [
            {
                "confidence": figures.bins[f"sure {at}"].value,
                "right": figures.bins[f"right {at}"].value,
                "count": int(figures.bins[f"count {at}"].value or 0),
            }
            for at in bins
        ],
    }
