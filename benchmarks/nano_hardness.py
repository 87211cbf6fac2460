"""Is nano's task hard? What a linear probe on thumbnails reaches, and what a base view keeps of each finding.

    python -m radvlm_edge.benchmarks.nano_hardness --films 3000

Needs numpy and Pillow only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.training.phantom import make_phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS

Floats = npt.NDArray[np.float64]
THUMBNAIL_PX = 32
FIRST_SEED = 40_000_000
"""Seeds of this benchmark: neither training's nor the frozen suite's."""
RIDGES = (3.0, 30.0, 300.0, 3000.0, 30000.0)


def thumbnail(pixels: npt.NDArray[np.uint8], side: int = THUMBNAIL_PX) -> npt.NDArray[np.uint8]:
    """A film `[H, W]` squashed to `[side, side]`."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def _film(seed: int) -> tuple[npt.NDArray[np.uint8], list[bool], float]:
    began = time.process_time()
    phantom = make_phantom(seed)
    took = time.process_time() - began
    return thumbnail(phantom.pixels), [phantom.has(name) for name in FINDINGS], took


def draw(films: int, workers: int) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    """Thumbnails `[n, side²]`, presence `[n, findings]`, seconds of CPU each film took `[n]`."""
    seeds = range(FIRST_SEED, FIRST_SEED + films)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            drawn = list(pool.map(_film, seeds, chunksize=16))
    else:
        drawn = [_film(seed) for seed in seeds]
    views, present, took = zip(*drawn, strict=True)
    return np.stack(views).reshape(films, -1).astype(float), np.array(present), np.array(took)


def balanced_accuracy(scores: Floats, truth: npt.NDArray[np.bool_], threshold: float = 0.0) -> float:
    """Mean of sensitivity and specificity of `score > threshold`; NaN if one class is missing."""
    if truth.all() or not truth.any():
        return float("nan")
    said = scores > threshold
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)


def ridge_head(views: Floats, truth: npt.NDArray[np.bool_], ridge: float) -> tuple[Floats, float]:
    """Weights and offset of a ridge regression onto ±1, both classes weighing the same."""
    weight = np.where(truth, 0.5 / truth.mean(), 0.5 / (~truth).mean())
    target = np.where(truth, 1.0, -1.0)
    middle = (weight[:, None] * views).sum(0) / weight.sum()
    centred = views - middle
    offset = float((weight * target).sum() / weight.sum())
    gram = (centred * weight[:, None]).T @ centred
    gram[np.diag_indices_from(gram)] += ridge
    fitted = np.linalg.solve(gram, centred.T @ (weight * (target - offset)))
    return fitted, offset - float(middle @ fitted)


def linear_probe(views: Floats, present: npt.NDArray[np.bool_], threshold: bool = True) -> dict[str, float]:
    """Balanced accuracy per finding on the last fifth; ridge and threshold are chosen on the fifth before."""
    count = len(views)
    scaled = (views - views.mean(0)) / (views.std(0) + 1e-6)
    train, choose, test = np.split(np.arange(count), [3 * count // 5, 4 * count // 5])
    figures = {}
    for index, name in enumerate(FINDINGS):
        truth = present[:, index]
        best = (-1.0, 0.0, np.zeros(views.shape[1]), 0.0)
        for ridge in RIDGES:
            fitted, offset = ridge_head(scaled[train], truth[train], ridge)
            scores = scaled[choose] @ fitted + offset
            cuts = np.quantile(scores, np.linspace(0.2, 0.8, 13)) if threshold else [0.0]
            for cut in cuts:
                reached = balanced_accuracy(scores, truth[choose], float(cut))
                if reached > best[0]:
                    best = (reached, float(cut), fitted, offset)
        figures[name] = balanced_accuracy(scaled[test] @ best[2] + best[3], truth[test], best[1])
    return figures


def measure(films: int, workers: int) -> dict[str, Any]:
    """The probe on phantoms and the time a phantom takes."""
    views, present, took = draw(films, workers)
    reached = linear_probe(views, present)
    return {
        "films": films,
        "thumbnail_px": THUMBNAIL_PX,
        "prevalence": {name: round(float(present[:, i].mean()), 3) for i, name in enumerate(FINDINGS)},
        "without_finding": round(float((~present.any(1)).mean()), 3),
        "linear_probe_balanced_accuracy": {name: round(value, 3) for name, value in reached.items()},
        "mean": round(float(np.mean(list(reached.values()))), 3),
        "cpu_ms_per_film": {
            "median": round(1e3 * float(np.median(took)), 1),
            "mean": round(1e3 * float(took.mean()), 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    json.dump(measure(options.films, options.workers), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
