"""A checkpoint or bundle → its figures on the frozen suite, as JSON.

    python -m radvlm_edge.benchmarks.nano_run CHECKPOINT_OR_BUNDLE --films 500 > figures.json
    python -m radvlm_edge.benchmarks.nano_run CHECKPOINT_OR_BUNDLE --base-only

With RADVLM_EDGE_DATA set, figures on real films follow under `real`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.nano_answerers import Answerer, Looking, Pixels, open_answerer, without_detail
from radvlm_edge.benchmarks.nano_scores import Decision, box_figures, label_figures, yes_no_figures
from radvlm_edge.benchmarks.nano_suite import FILMS, FROZEN, Item, phantoms
from radvlm_edge.runtime.answers import parse_boxes, parse_labels
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.scores import Box

MOST = {"region": 60, "finding": 160, "report": 260}
"""Longest answers in tokens."""
TASKS = ("yesno", "region", "finding", "report")
UNIT = 10_000
"""Boxes are read as on a film of this many pixels a side, then divided: fractions to 4 digits."""


@dataclass(frozen=True)
class Reply:
    """What a model made of one item."""

    item: Item
    probability: float = 0.0
    """Of Yes; for yes/no questions."""
    text: str = ""
    """For all others."""


def reply(looking: Looking, item: Item) -> Reply:
    """Put one question."""
    if item.task == "yesno":
        return Reply(item, probability=looking.probability(item.question))
    return Reply(item, text=looking.ask(item.question, MOST[item.task]))


def replies(
    answerer: Answerer, films: Iterable[tuple[Pixels, list[Item]]], *, base_only: bool, tasks: set[str]
) -> list[Reply]:
    """Put every question of these tasks about every film; progress goes to stderr."""
    said: list[Reply] = []
    for index, (pixels, items) in enumerate(films):
        wanted = [item for item in items if item.task in tasks]
        if wanted:
            shown = without_detail(pixels, answerer.geometry) if base_only else pixels
            looking = answerer.look(shown)
            said += [reply(looking, item) for item in wanted]
        if (index + 1) % 50 == 0:
            sys.stderr.write(f"{index + 1} films\n")
    return said


def stated_boxes(text: str) -> list[Box]:
    """Boxes an answer states, in its order, as fractions."""
    return [box.xyxy_fraction for box in parse_boxes(text, UNIT, UNIT)]


def decisions_of(said: Iterable[Reply]) -> list[Decision]:
    """The yes/no questions among the replies."""
    return [
        Decision(one.item.about, one.item.truth, one.item.answer.startswith("Yes"), one.probability)
        for one in said
        if one.item.task == "yesno"
    ]


def figures_of(said: list[Reply]) -> dict[str, Any]:
    """Every figure of the suite."""
    found = [one for one in said if one.item.task == "finding"]
    pairs = {
        "anatomy": [(stated_boxes(one.text), one.item.boxes) for one in said if one.item.task == "region"],
        "abnormality": [(stated_boxes(one.text), one.item.boxes) for one in found],
    }
    reports = [one for one in said if one.item.task == "report"]
    return {
        "yes_no": yes_no_figures(decisions_of(said)),
        "anatomy": box_figures(pairs["anatomy"]),
        "abnormality": box_figures(pairs["abnormality"])
        | {
            "each": {
                name: box_figures(
                    [(stated_boxes(o.text), o.item.boxes) for o in found if o.item.about == name]
                )
                for name in FINDINGS
            }
        },
        "reports": label_figures(
            [frozenset(parse_labels(one.text)) for one in reports],
            [frozenset(one.item.labels) for one in reports],
            FINDINGS,
        ),
    }


def measure(
    answerer: Answerer,
    films: int = FILMS,
    *,
    base_only: bool = False,
    tasks: set[str] | None = None,
) -> dict[str, Any]:
    """Figures on the suite's first `films` phantoms."""
    began = time.monotonic()
    said = replies(answerer, phantoms(films), base_only=base_only, tasks=tasks or set(TASKS))
    frozen = json.loads(FROZEN.read_text())
    return {
        "model": answerer.describe(),
        "machine": machine(),
        "suite": {"films": films, "of": frozen["films"], "questions_sha256": frozen["questions_sha256"]},
        "base_only": base_only,
        **figures_of(said),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of a checkpoint or bundle on the frozen suite.")
    parser.add_argument("model", type=Path, help="checkpoint folder or bundle")
    parser.add_argument("--films", type=int, default=FILMS, help="fewer for a glance")
    parser.add_argument("--base-only", action="store_true", help="hide what only the tiles show")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--vision", help="precision of a bundle's vision artefact")
    parser.add_argument("--language", help="precision of a bundle's language artefact")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-real", action="store_true", help="phantoms only")
    options = parser.parse_args()
    with open_answerer(
        options.model, vision=options.vision, language=options.language, threads=options.threads
    ) as answerer:
        tasks = set(options.tasks) if options.tasks else None
        figures = measure(answerer, options.films, base_only=options.base_only, tasks=tasks)
        data = os.environ.get("RADVLM_EDGE_DATA")
        if data and not options.no_real and not options.base_only:
            from radvlm_edge.benchmarks.nano_real import measure_real

            figures["real"] = measure_real(answerer, Path(data))
    json.dump(figures, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
