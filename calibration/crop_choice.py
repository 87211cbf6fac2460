"""Films → the crops scales are made from, and others held out to judge them by.

A film is cut as it is when it is asked about. Kinds of crops differ in what they hold, so each is taken
equally often as long as there are any: the base view (the whole film), inner tiles, and tiles at the edge
that hold padding.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.calibration.film_sets import EXPOSURES, Seen, in_turn
from radvlm_edge.errors import FilmError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import Layout, cut, plan

BASE, INNER, EDGE = "base view", "inner tile", "padded edge tile"

Crops = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pick:
    """One crop of one film."""

    film: Seen
    crop: int
    kind: str


@dataclass(frozen=True)
class Choice:
    """Crops in the order they are run."""

    picks: tuple[Pick, ...]
    held_out: tuple[Pick, ...]
    """Of other films."""

    def digest(self) -> str:
        """Tells one choice from another."""
        lines = [f"{one.film.digest} {one.crop}" for one in (*self.picks, *self.held_out)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def described(self, kind: str, salt: str) -> dict[str, Any]:
        """Counts and salted hashes, for the calibration file."""
        films = list({one.film.digest: one.film for one in (*self.picks, *self.held_out)}.values())
        return {
            "kind": kind,
            "films": len(films),
            "crops": len(self.picks),
            "held_out_crops": len(self.held_out),
            "crop_kinds": dict(sorted(Counter(one.kind for one in self.picks).items())),
            "views": dict(sorted(Counter(film.view for film in films).items())),
            "photometric": dict(sorted(Counter(film.photometric for film in films).items())),
            "mean_brightness": [sum(film.exposure == i for film in films) for i in range(EXPOSURES)],
            "salted_hashes": sorted(film.salted(salt) for film in films),
        }


def choose_crops(films: Sequence[Seen], geometry: Geometry, crops: int, held_out: int) -> Choice:
    """Choose `crops` crops, and `held_out` more of films that gave none of those.

    Fewer, where the films have no more. The same films give the same choice, whatever they are called.
    Raises FilmError unless there are two different films.
    """
    order = list({film.digest: film for film in in_turn(list(films))}.values())
    if len(order) < 2:
        raise FilmError(f"{len(order)} different films; at least 2 are needed, one of them is held out")
    aside = min(max(1, round(len(order) * held_out / (crops + held_out))), len(order) // 2)
    spread = {int(i) for i in np.linspace(0, len(order) - 1, aside + 2)[1:-1]} or {len(order) - 1}
    kept = [film for i, film in enumerate(order) if i not in spread]
    others = [film for i, film in enumerate(order) if i in spread]
    return Choice(_picks(kept, geometry, crops), _picks(others, geometry, held_out))


def _picks(films: Sequence[Seen], geometry: Geometry, count: int) -> tuple[Pick, ...]:
    per_film = [_of_film(film, geometry) for film in films]
    rounds = zip_longest(*per_film)
    found = [pick for turn in rounds for picks in turn if picks for pick in picks]
    return tuple(found[:count])


def _of_film(film: Seen, geometry: Geometry) -> list[list[Pick]]:
    """A film's crops in rounds: first its base view, an inner tile and an edge tile, then further tiles."""
    layout = plan(film.height, film.width, geometry)
    rng = np.random.default_rng(int(film.digest[:16], 16))
    by_kind: dict[str, list[int]] = {BASE: [0], INNER: [], EDGE: []}
    for tile in rng.permutation(layout.crops - 1):
        by_kind[EDGE if is_padded(layout, int(tile), geometry.side) else INNER].append(int(tile) + 1)
    listed = [[Pick(film, crop, kind) for crop in crops] for kind, crops in by_kind.items()]
    return [[pick for pick in turn if pick is not None] for turn in zip_longest(*listed)]


def is_padded(layout: Layout, tile: int, side: int) -> bool:
    """Whether a tile (counted from 0, row by row) shows padding beside the film."""
    row, column = divmod(tile, layout.grid[1])
    rows, columns = layout.unpadded
    return bool(
        row * side < rows.start
        or (row + 1) * side > rows.stop
        or column * side < columns.start
        or (column + 1) * side > columns.stop
    )


def batches(picks: Sequence[Pick], geometry: Geometry, size: int) -> Iterator[Crops]:
    """The crops `[n, 3, S, S]` of picks in their order, `size` at once; one film is in memory at a time."""
    waiting: list[Crops] = []
    last, views = "", np.empty(0, np.uint8)
    for pick in picks:
        if pick.film.digest != last:
            last, (views, _) = pick.film.digest, cut(pick.film.load().pixels, geometry)
        waiting.append(views[pick.crop])
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
