"""Less of every film: what it costs in answers, beside what it saves. Part of `fidelity --detail`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.export.fidelity_score import Score
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime import anyres, crops
from radvlm_edge.runtime.detail import capped, levels, named, resolve
from radvlm_edge.runtime.vision import VisionTower

Floats = npt.NDArray[np.float32]
Films = Sequence[npt.NDArray[np.uint8]]


def chosen_levels(wanted: str, geometry: Geometry) -> tuple[int | None, ...]:
    """`all`: exact and the model's steps below it; or caps separated by commas, exact always among them.

    Raises DetailError.
    """
    if wanted == "all":
        return levels(geometry)
    caps = {resolve(one.strip()) for one in wanted.split(",")}
    for cap in caps:
        capped(geometry, cap)
    return (None, *sorted((cap for cap in caps if cap is not None), reverse=True))


@dataclass(frozen=True)
class Shown:
    """Films as a tower saw them with one cap."""

    images: list[Floats]
    """Image tokens `[t, d]` of each."""
    crops: list[int]
    vision_ms: list[float]


def show(films: Films, geometry: Geometry, cap_px: int | None, tower: VisionTower, newline: Floats) -> Shown:
    """Cut, encode and pack films with one cap; the tower is warmed up on the first."""
    cut = [crops.cut(film, capped(geometry, cap_px)) for film in films]
    tower.encode(cut[0][0])
    images, took = [], []
    for views, layout in cut:
        began = time.perf_counter()
        tokens = tower.encode(views)
        took.append((time.perf_counter() - began) * 1e3)
        images.append(anyres.pack(tokens, layout, newline))
    return Shown(images, [layout.crops for _, layout in cut], took)


def measure_levels(
    films: Films,
    geometry: Geometry,
    caps: Sequence[int | None],
    tower: VisionTower,
    newline: Floats,
    answer: Callable[[list[Floats]], tuple[Score, list[float]]],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Figures of each cap by its name: those of `Score`, sizes, and median times in milliseconds.

    `answer`: image tokens of every film → score against the checkpoint's answers to the exact films, and
    each film's prefill in milliseconds.
    """
    found = {}
    for cap in caps:
        progress(f"answers at detail {named(cap)}")
        shown = show(films, geometry, cap, tower, newline)
        score, prefill_ms = answer(shown.images)
        found[named(cap)] = {
            **score.figures(),
            "crops_mean": statistics.mean(shown.crops),
            "image_tokens_mean": statistics.mean(map(len, shown.images)),
            "vision_ms": round(statistics.median(shown.vision_ms), 2),
            "prefill_ms": round(statistics.median(prefill_ms), 2),
        }
    return found
