"""Stage 2: the tower learns what is small, from windows of patches around it.

A whole view shows a small finding in two or three of its 64 patches, and most views in none. A window of
5 × 5 patches costs a fraction of a view and is chosen to hold one: several times as many examples for
the same computation. Whole films go on beside it, so that nothing learned from them is lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from radvlm_edge.geometry import Geometry
from radvlm_edge.training.films import PhantomSet, RealSet
from radvlm_edge.training.loop import Losses
from radvlm_edge.training.targets import PRESENCES
from radvlm_edge.training.tower import Heads, TowerLoss, dense_loss, device_of, pixels_of

SMALL = ("pneumothorax", "lung lesion", "atelectasis", "support devices", "fracture")
WINDOW = 5
"""Patches a side, where a view has as many."""
WITHOUT = 0.25
"""Share of windows drawn anywhere."""
SEEN = 100
"""A patch shows a finding whose share of it is at least this, of 255."""


class DetailLoss:
    """Batches and losses of this stage: whole films as in stage 1, and windows."""

    def __init__(self, films: PhantomSet, real: RealSet | None, geometry: Geometry, seed: int) -> None:
        self.whole = TowerLoss(films, real, geometry, seed)
        self.films, self.seed, self.side = films, seed, geometry.side
        self.window = min(WINDOW, geometry.side)
        small = [index for index, one in enumerate(PRESENCES) if one.endswith(SMALL)]
        places = [_places(films.targets.areas, index) for index in small]
        self.places = [own for own in places if len(own)]
        """For each small finding (and side) there is, rows of (film, view, patch) that show it."""

    def _windows(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Rows `[count, 3]` of (film, view, patch to be in the window)."""
        views = self.films.crops.shape[1]
        rows = np.stack(
            [rng.integers(n, size=count) for n in (len(self.films.labels), views, self.side**2)], 1
        )
        for row in range(int(count * (1 - WITHOUT)) if self.places else 0):
            own = self.places[int(rng.integers(len(self.places)))]
            rows[row] = own[int(rng.integers(len(own)))]
        return rows

    def _tokens(self, rng: np.random.Generator, patches: npt.NDArray[np.int64]) -> torch.Tensor:
        """Indices `[n, window²]` of windows that hold the given patches, somewhere."""
        corner = np.stack(divmod(patches, self.side), 1) - rng.integers(self.window, size=(len(patches), 2))
        corner = np.clip(corner, 0, self.side - self.window)
        rows, columns = np.divmod(np.arange(self.window**2), self.window)
        return torch.from_numpy((corner[:, :1] + rows) * self.side + corner[:, 1:] + columns)

    def __call__(self, tower: Any, heads: Heads, step: int, phantoms: int, real: int, windows: int) -> Losses:
        rng = np.random.default_rng([self.seed, 5, step])
        losses = self.whole(tower, heads, step, phantoms, real)
        film, view, patch = self._windows(rng, windows).T
        tokens = self._tokens(rng, patch)
        rows = torch.arange(windows)[:, None]
        pixels = pixels_of(self.films.crops[film, view]).to(device_of(tower))
        embedded = tower.vision_model.embeddings(pixels)[rows, tokens]
        hidden = tower.vision_model.encoder(inputs_embeds=embedded).last_hidden_state
        shares = torch.from_numpy(self.films.targets.areas[film, view])[rows, tokens].to(hidden.device)
        each = dense_loss(heads.dense(heads.norm(hidden)), shares, self.whole.balance)
        losses["windows"] = each[: len(PRESENCES)].mean()
        losses["loss"] = losses["loss"] + losses["windows"]
        return losses


def _places(areas: Any, index: int) -> npt.NDArray[np.int64]:
    """Rows of (film, view, patch) where the share of one of BOXES is at least SEEN."""
    found = [
        np.argwhere(areas[at : at + 500, :, :, index] >= SEEN) + np.array([at, 0, 0])
        for at in range(0, len(areas), 500)
    ]
    places: npt.NDArray[np.int64] = np.concatenate(found)
    return places
