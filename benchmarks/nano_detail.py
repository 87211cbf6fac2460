"""What is left of a finding when a film is squashed: the same phantom with and without it, compared.

    python -m radvlm_edge.benchmarks.nano_detail --pairs 60

For every finding pairs of films are drawn that differ in it alone. Squashed to a square of so many
pixels, the difference inside the finding's box is set against the film's own fine structure there
(what a neighbourhood of 3 pixels does not explain, over the whole film): the signal-to-noise ratio
a template of exactly this finding would have. It says what can be seen at best, not what a model
will see.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.training.phantom import Phantom, make_phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS, SIDED

FIRST_SEED = 45_000_000
SIDES_PX = (112, 168, 224, 336, 448)
"""Squares a film is squashed to: base views of 112 and 168, two by two tiles of them, and more."""


def _squashed(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float64]:
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float64)


def _clutter(film: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]) -> float:
    """Spread of what is finer than 3 pixels, in grey levels, at least that of rounding."""
    padded = np.pad(film, 1, mode="edge")
    count = film.shape[0]
    near = sum(padded[i : i + count, j : j + count] for i in range(3) for j in range(3)) / 9
    return max(float(np.std((film - near)[inside])), 0.29)


def ratio(ill: Phantom, bare: Phantom, side: int) -> float:
    """Signal-to-noise ratio of what differs, at `side` by `side` pixels."""
    x1, y1, x2, y2 = np.array([one.box for one in ill.findings]).T
    corners = np.array([x1.min(), y1.min(), x2.max(), y2.max()]) * side
    left, top = np.maximum(np.floor(corners[:2]) - 1, 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners[2:]) + 1, side).astype(int)
    with_it, without = _squashed(ill.pixels, side), _squashed(bare.pixels, side)
    signal = (with_it - without)[top:bottom, left:right]
    lungs = np.asarray(
        Image.fromarray(bare.masks["right lung"] | bare.masks["left lung"]).resize((side, side)), bool
    )
    return float(np.sqrt((signal**2).sum()) / _clutter(without, lungs))


def _pair(job: tuple[int, str]) -> tuple[str, str, list[float]] | None:
    seed, name = job
    side = ("right", "left")[seed % 2] if name in SIDED else ""
    ill = make_phantom(seed, findings=[(name, side)])
    if not ill.findings:
        return None
    bare = make_phantom(seed, findings=[])
    return name, ill.findings[0].severity, [ratio(ill, bare, side) for side in SIDES_PX]


def measure(pairs: int, workers: int) -> dict[str, Any]:
    """Finding, and finding with grade → number of cases and median ratio at each size."""
    jobs = [(FIRST_SEED + index, name) for name in FINDINGS for index in range(pairs)]
    with ProcessPoolExecutor(workers) as pool:
        drawn = [one for one in pool.map(_pair, jobs, chunksize=8) if one]
    table: dict[str, Any] = {}
    for name in FINDINGS:
        for grade in ("", *dict.fromkeys(severity for own, severity, _ in drawn if own == name)):
            rows = np.array([row for own, severity, row in drawn if own == name and grade in ("", severity)])
            table[f"{name} {grade}".strip()] = {
                "cases": len(rows),
                "median_ratio": dict(zip(SIDES_PX, np.median(rows, 0).round(1).tolist(), strict=True)),
            }
    return {"pairs": pairs, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser(description="What squashing a film leaves of each finding, as JSON.")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    json.dump(measure(options.pairs, options.workers), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
