"""A run's metrics.jsonl → its learning curves as a picture.

python -m radvlm_edge.training.curves RUN_FOLDER curves.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from radvlm_edge.errors import RecipeError

matplotlib.use("Agg")  # no window: the machine may have no screen
from matplotlib import pyplot

PANELS = (
    ("tower: losses", ("patches", "tower"), ("shown", "dense", "regions", "presence", "boxes", "real")),
    ("language: losses", ("decide", "language", "joint"), ("text", "yesno", "point", "placed", "read")),
    ("language: yes/no right in training", ("decide", "language", "joint"), ("right",)),
)
"""Title, the stages in the order they were run, the figures."""


def load_metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl; of a step that a resumed run did again, the last one counts."""
    path = run / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise RecipeError(f"{path}: metrics cannot be read: {error.strerror}") from error
    return list({(line["stage"], line["step"]): line for line in lines}.values())


def points_of(
    lines: Sequence[dict[str, Any]], stages: Sequence[str], figure: str
) -> tuple[list[int], list[float]]:
    """Steps, counted on through the stages, and the figure at them."""
    steps, values, before = list[int](), list[float](), 0
    for stage in stages:
        own = sorted((line for line in lines if line["stage"] == stage), key=lambda line: int(line["step"]))
        for line in own:
            if figure in line:
                steps.append(before + line["step"])
                values.append(line[figure])
        before += own[-1]["step"] if own else 0
    return steps, values


def draw(run: Path, out: Path) -> None:
    """Write the picture; its format follows the ending of `out`."""
    lines = load_metrics(run)
    picture, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 3.6), layout="constrained")
    for axis, (title, stages, figures) in zip(axes, PANELS, strict=True):
        for figure in figures:
            steps, values = points_of(lines, stages, figure)
            axis.plot(steps, values, label=figure, linewidth=1.4)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    picture.savefig(out, dpi=80)
    pyplot.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning curves of a training run.")
    parser.add_argument("run", type=Path, help="run folder with metrics.jsonl")
    parser.add_argument("out", type=Path, help="picture to write, e.g. curves.png")
    options = parser.parse_args()
    draw(options.run, options.out)


if __name__ == "__main__":
    main()
