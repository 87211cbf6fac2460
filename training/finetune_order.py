"""Which pairs are used, which go behind one film together, and in which order; numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import RecipeError

Ints = npt.NDArray[np.int64]


def chosen(
    ids: Sequence[str], tasks: Ints, names: Sequence[str], shares: Mapping[str, float], seed: int
) -> Ints:
    """Pairs that a recipe's `tasks` leaves: of each task the share with the smallest hashes, at least one.

    The pairs of a smaller share are among those of a larger one. Raises RecipeError for a task without pairs.
    """
    if not shares:
        return np.arange(len(ids))
    if unknown := sorted(set(shares) - set(names)):
        raise RecipeError(f"tasks: the data has no pair of {unknown[0]!r}; it has {', '.join(sorted(names))}")
    kept = []
    for name, share in shares.items():
        own = np.flatnonzero(tasks == names.index(name)).tolist()
        ranks = sorted(own, key=lambda at: hashlib.sha256(f"{seed}\x00{ids[at]}".encode()).digest())
        kept += ranks[: max(1, round(share * len(own))) if share else 0]
    return np.sort(np.array(kept, np.int64))


def repeated(used: Ints, tasks: Ints, names: Sequence[str], repeats: Mapping[str, int]) -> Ints:
    """The used pairs, each as often as `repeats` says of its task."""
    times = np.array([repeats.get(name, 1) for name in names])
    return np.repeat(used, times[tasks[used]])


@dataclass(frozen=True)
class Order:
    """Packs in the order of training: pack i is `pairs[bounds[i] : bounds[i + 1]]`, all of one film."""

    pairs: Ints
    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def pack(self, index: int) -> Ints:
        return self.pairs[self.bounds[index] : self.bounds[index + 1]]


def one_epoch(used: Ints, films: Ints, most: int, seed: int, epoch: int) -> Order:
    """Every pair as often as `used` holds it: shuffled, at most `most` of a film together, packs shuffled.

    `films[i]` is pair i's film. The same seed and epoch give the same order whatever the machine.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(used)
    if most == 1:
        return Order(shuffled, np.arange(len(shuffled) + 1))
    grouped = shuffled[np.argsort(films[shuffled], kind="stable")]
    first = np.flatnonzero(np.diff(films[grouped], prepend=-1))
    inside = np.arange(len(grouped)) - np.repeat(first, np.diff([*first, len(grouped)]))
    starts = np.flatnonzero(inside % most == 0)
    ends = np.append(starts[1:], len(grouped))
    turn = rng.permutation(len(starts))
    lengths = (ends - starts)[turn]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    inner = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    return Order(grouped[np.repeat(starts[turn], lengths) + inner], bounds)


def whole_run(
    used: Ints, films: Ints, most: int, seed: int, batch: int, epochs: float, steps: int | None
) -> tuple[Order, int]:
    """The order of a whole run and its optimiser steps; the last packs that fill no step are left out.

    Raises RecipeError where there are too few pairs for one step.
    """
    drawn, packs, epoch = list[Order](), 0, 0
    wanted = None if steps is None else steps * batch
    while wanted is None or packs < wanted:
        drawn.append(one_epoch(used, films, most, seed, epoch))
        packs += len(drawn[-1])
        epoch += 1
        if wanted is None:
            wanted = int(epochs * len(drawn[-1])) // batch * batch
            if wanted == 0:
                raise RecipeError(
                    f"{len(used)} pairs of {len(np.unique(films[used]))} films give {len(drawn[-1])} packs, "
                    f"fewer than the batch of {batch} in {epochs:g} epochs; set a smaller batch, or steps"
                )
    sizes = np.concatenate([np.diff(one.bounds) for one in drawn])[:wanted]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    pairs = np.concatenate([one.pairs for one in drawn])[: bounds[-1]]
    return Order(pairs, bounds), len(sizes) // batch
