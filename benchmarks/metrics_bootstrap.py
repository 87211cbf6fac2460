"""How sure a figure is: percentile bootstrap over films."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def interval(
    films: Sequence[T],
    figure: Callable[[Sequence[T]], float],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds between which a figure of films lies with probability `level` (Efron 1979, percentiles).

    Films are drawn with replacement, so what is said of one film stays together. `(nan, nan)` for no film.
    Raises ValueError for a level outside 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}; between 0 and 1 is needed")
    if not films:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    values = [
        figure([films[index] for index in rng.integers(len(films), size=len(films)).tolist()])
        for _ in range(draws)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
