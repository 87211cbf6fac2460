"""Stage 1: the tower learns from single patches what small things look like, before it attends to any other.

A finding of a few pixels fills one patch of a film's 320, so whole films show it rarely. Patches alone,
through the embedding and the local layers' MLPs, cost next to nothing and are chosen so that half of
them show something: the filters that see lines, rims and spots form within minutes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from radvlm_edge.geometry import Geometry
from radvlm_edge.training.films import PhantomSet
from radvlm_edge.training.loop import Losses
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.targets import presences_of
from radvlm_edge.training.tower import device_of, local_layers, pixels_of

SEEN = 100
"""A patch shows a thing whose share of it is at least this, of 255."""
SHOWING = 0.5
"""Share of patches chosen because they show a finding."""


class PatchLoss:
    """Batches and losses of this stage."""

    def __init__(self, films: PhantomSet, geometry: Geometry, seed: int, width: int) -> None:
        self.films, self.seed, self.side, self.patch = films, seed, geometry.side, geometry.patch_px
        self.own = [presences_of(name) for name in FINDINGS]
        places = [places_of(films.targets.areas, own) for own in self.own]
        self.places = [rows for rows in places if len(rows)]
        """For each finding there is, rows of (film, view, patch) that show it."""
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(FINDINGS)))
        """What is read off a patch, whatever the side; thrown away afterwards."""

    def _pick(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Rows `[count, 3]` of (film, view, patch)."""
        views = self.films.crops.shape[1]
        rows = np.stack(
            [rng.integers(n, size=count) for n in (len(self.films.labels), views, self.side**2)], 1
        )
        for index in range(int(count * SHOWING) if self.places else 0):
            own = self.places[index % len(self.places)]
            rows[index] = own[int(rng.integers(len(own)))]
        return rows

    def _cut(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The patches themselves, `[n, patch, patch]`."""
        film, view, place = rows.T
        row, column = np.divmod(place, self.side)
        crops = self.films.crops
        grid = crops.reshape(*crops.shape[:2], self.side, self.patch, self.side, self.patch)
        cut: npt.NDArray[np.uint8] = grid[film, view, row, :, column, :]
        return cut

    def __call__(self, tower: Any, step: int, patches: int) -> Losses:
        rng = np.random.default_rng([self.seed, 6, step])
        rows = self._pick(rng, patches)
        place = device_of(tower)
        embeddings = tower.vision_model.embeddings
        hidden = embeddings.patch_embedding(pixels_of(self._cut(rows)).to(place)).flatten(1)
        hidden = hidden + embeddings.position_embedding.weight[torch.from_numpy(rows[:, 2]).to(place)]
        for layer in local_layers(tower):
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        shown = self.films.targets.areas[tuple(rows.T)]
        truth = np.stack([shown[:, own].max(1) >= SEEN for own in self.own], 1)
        logits = self.head(hidden)
        losses = F.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(truth).float().to(place), reduction="none"
        )
        shown = losses.mean() * len(FINDINGS)
        return {"loss": shown, "shown": shown}


def places_of(areas: Any, own: list[int]) -> npt.NDArray[np.int64]:
    """Rows of (film, view, patch) where the share of any of these BOXES is at least SEEN.

    `areas` is `[N, V, P, len(BOXES)]`.
    """
    found = [
        np.argwhere(areas[at : at + 500][..., own].max(-1) >= SEEN) + np.array([at, 0, 0])
        for at in range(0, len(areas), 500)
    ]
    places: npt.NDArray[np.int64] = np.concatenate(found)
    return places
