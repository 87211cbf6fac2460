"""The vision artefacts of one bundle side by side: milliseconds a crop, bytes, distance from the first.

    python -m radvlm_edge.benchmarks.vision_artefacts BUNDLE FILM [--precisions fp32,fp16,int8]

Variants take turns in one process, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.bundle import Bundle
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.vision import VisionTower, open_tower


def measure(
    bundle: Bundle,
    film: Path,
    precisions: Sequence[str],
    *,
    crops: int = 10,
    repeats: int = 7,
    warm_up: int = 2,
    threads: int | None = None,
) -> dict[str, Any]:
    """Encode the first `crops` crops of a film with every precision in turn.

    Returns for each `ms_per_crop` (min, median, p95), `bytes`, and the cosine (`p1`, `min`) of its projected
    tokens with those of the first precision named.
    """
    views = cut(load_film(film).pixels, bundle.manifest.geometry)[0][:crops]
    artefacts = {name: bundle.artefact("vision", name) for name in precisions}
    towers = {name: open_tower(bundle.path(one), threads) for name, one in artefacts.items()}
    times: dict[str, list[float]] = {name: [] for name in precisions}
    tokens: dict[str, npt.NDArray[np.float32]] = {}
    for turn in range(warm_up + repeats):
        for name, tower in towers.items():
            elapsed_ms, tokens[name] = _timed(tower, views)
            if turn >= warm_up:
                times[name].append(elapsed_ms / len(views))
    first = tokens[precisions[0]]
    return {
        "machine": machine(),
        "bundle": bundle.manifest.name,
        "crops": len(views),
        "repeats": repeats,
        "threads": threads,
        "against": precisions[0],
        "artefacts": {
            name: {
                "bytes": sum(part.stat().st_size for part in _parts(bundle.path(artefacts[name]))),
                "ms_per_crop": _summary(times[name]),
                "token_cosine": _cosine(tokens[name], first),
            }
            for name in precisions
        },
    }


def _timed(tower: VisionTower, views: npt.NDArray[np.uint8]) -> tuple[float, npt.NDArray[np.float32]]:
    begun = time.perf_counter()
    tokens = tower.encode(views)
    return 1000 * (time.perf_counter() - begun), tokens


def _parts(path: Path) -> list[Path]:
    """A graph and the weights beside it."""
    return sorted(path.parent.glob(f"{path.name}*"))


def _summary(values: Sequence[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "p95": float(np.quantile(values, 0.95))}
    return {key: round(value, 3) for key, value in found.items()}


def _cosine(tokens: npt.NDArray[np.float32], first: npt.NDArray[np.float32]) -> dict[str, float]:
    lengths = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(first, axis=-1)
    cosines = (tokens * first).sum(-1) / np.maximum(lengths, 1e-30)
    return {"p1": round(float(np.quantile(cosines, 0.01)), 6), "min": round(float(cosines.min()), 6)}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path)
    parser.add_argument("--precisions", default="fp32,fp16,int8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    names = tuple(given.precisions.split(","))
    bundle = Bundle.open(given.bundle)
    found = measure(bundle, given.film, names, repeats=given.repeats, threads=given.threads)
    print(json.dumps(found, indent=1))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
