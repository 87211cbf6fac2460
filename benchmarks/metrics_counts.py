"""Figures that are functions of sums over items, so that a bootstrap adds up rows instead of scoring anew.

Every item gives one row of named counts; a figure is computed from the sums of the columns. Resampling whole
patients is then a product of multinomial weights `[draws, groups]` with the groups' sums `[groups, columns]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Sums = Mapping[str, Floats]
"""Column → its sum, `[draws]`."""
Formula = Callable[[Sums], Floats]
LEVEL = 0.95
DRAWS = 1000
SEED = 0


@dataclass(frozen=True)
class Figure:
    """A figure's value with its interval."""

    value: float | None
    """None where nothing of the kind was there to be judged."""
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole; NaN where the whole is 0."""
    out: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole != 0)
    return out


def zero_ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole; 0 where the whole is 0, as scikit-learn does by default."""
    out: Floats = np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)
    return out


def mean_of(column: str, count: str = "items") -> Formula:
    """A column's sum over another's."""
    return lambda sums: ratio(sums[column], sums[count])


class Rows:
    """Rows of counts, kept by group (patient, or film)."""

    def __init__(self) -> None:
        self._groups: list[str] = []
        self._rows: list[Mapping[str, float]] = []

    def add(self, group: str, row: Mapping[str, float]) -> None:
        """One item's counts; a column a row lacks counts 0 there."""
        self._groups.append(group)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def figures(
        self, formulas: Mapping[str, Formula], *, draws: int = DRAWS, seed: int = SEED, level: float = LEVEL
    ) -> dict[str, Figure]:
        """Every figure over all items, with percentile bootstrap intervals over groups (Efron 1979).

        The same rows give the same intervals. Draws in which a figure is not defined are left out.
        """
        if not self._rows:
            return dict.fromkeys(formulas, Figure(None, None, None))
        whole, sampled = self._sums(draws, seed)
        return {name: _figure(formula(whole), formula(sampled), level) for name, formula in formulas.items()}

    def differences(
        self, other: Rows, formulas: Mapping[str, Formula], *, draws: int = DRAWS, seed: int = SEED
    ) -> dict[str, Figure]:
        """Figures of these rows less those of `other`, resampled together: both must hold the same groups.

        Raises ValueError where they do not.
        """
        if dict.fromkeys(self._groups) != dict.fromkeys(other._groups):
            raise ValueError("only answers to the same films can be compared")
        (whole, sampled), (whole_b, sampled_b) = self._sums(draws, seed), other._sums(draws, seed)
        return {
            name: _figure(one(whole) - one(whole_b), one(sampled) - one(sampled_b), LEVEL)
            for name, one in formulas.items()
        }

    def _sums(self, draws: int, seed: int) -> tuple[Sums, Sums]:
        """Sums over all items `[1]`, and over each resampling of the groups `[draws]`."""
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        known = {group: at for at, group in enumerate(dict.fromkeys(self._groups))}
        table = np.zeros((len(known), len(names)))
        where = {name: at for at, name in enumerate(names)}
        for group, row in zip(self._groups, self._rows, strict=True):
            for name, value in row.items():
                table[known[group], where[name]] += value
        return _Columns(names, table.sum(axis=0, keepdims=True)), _Columns(names, _drawn(table, draws, seed))


class _Columns(dict[str, Floats]):
    """Sums by name; one nobody counted is 0."""

    def __init__(self, names: Sequence[str], sums: Floats) -> None:
        super().__init__({name: sums[:, at] for at, name in enumerate(names)})
        self._zero = np.zeros(len(sums))

    def __missing__(self, name: str) -> Floats:
        return self._zero


def _drawn(table: Floats, draws: int, seed: int) -> Floats:
    groups = len(table)
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), draws)
    out: Floats = weights.astype(np.float64) @ table
    return out


def _figure(whole: Floats, sampled: Floats, level: float) -> Figure:
    value, spread = _finite(whole), _finite(sampled)
    if not len(value):
        return Figure(None, None, None)
    if not len(spread):
        return Figure(float(value[0]), None, None)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Figure(float(value[0]), float(low), float(high))


def _finite(values: Any) -> Floats:
    found = np.atleast_1d(np.asarray(values, np.float64))
    out: Floats = found[np.isfinite(found)]
    return out
