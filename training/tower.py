"""Stage 1: the tower learns what every patch shows, before any language."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.films import PhantomSet, RealSet, augment
from radvlm_edge.training.loop import Losses
from radvlm_edge.training.targets import AREA_BOXES, AREAS, BOXES, PRESENCES, presences_of

DENSE_WEIGHT = 12.0
"""How much more a finding's patch counts than a patch without it."""


def pixels_of(crops: Any) -> torch.Tensor:
    """Grey crops `[n, S, S]` uint8 → the tower's input `[n, 3, S, S]`, mean and std 0.5."""
    grey = torch.as_tensor(np.ascontiguousarray(crops)).to(torch.float32) / 255
    return ((grey - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1).contiguous()


def features_of(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """`hidden_states[-1]` `[n, P, d]`: the last layer before post_layernorm, as the projector sees it."""
    hidden: torch.Tensor = tower(pixels, output_hidden_states=True).hidden_states[-1]
    return hidden


def start_tower(tower: Any, crops: Any, seed: int) -> None:
    """Whiten the patch embedding and lay down sin-cos positions.

    Neighbouring pixels are so alike that random filters see only brightness: filters along the
    patches' principal axes, scaled to equal spread, let the layers behind them see edges.
    """
    embeddings = tower.vision_model.embeddings
    patch, width = embeddings.patch_embedding.kernel_size[0], embeddings.patch_embedding.out_channels
    rng = np.random.default_rng(seed)
    grey = crops[rng.integers(len(crops), size=2000)].astype(np.float32) / 127.5 - 1
    side = grey.shape[-1] // patch
    patches = grey.reshape(-1, side, patch, side, patch).swapaxes(2, 3).reshape(-1, patch * patch)
    mean = patches.mean(0)
    values, axes = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    keep = np.argsort(values)[::-1][:width]
    filters = axes[:, keep].T / np.sqrt(values[keep] + 0.02)[:, None] * 0.5
    weight = np.zeros((width, patch * patch), np.float32)
    weight[: len(filters)] = filters
    position = _sin_cos(side, width) * 0.5
    with torch.no_grad():
        grey_weight = torch.from_numpy(weight).reshape(width, 1, patch, patch) / 3
        embeddings.patch_embedding.weight.copy_(grey_weight.expand(-1, 3, -1, -1))
        embeddings.patch_embedding.bias.copy_(torch.from_numpy(-(weight @ mean)))
        embeddings.position_embedding.weight.copy_(torch.from_numpy(position))


def _sin_cos(side: int, width: int) -> Any:
    """2-D positions `[side², width]` float32."""
    rates = (side * 2.0) ** -np.linspace(0, 1, width // 4) * np.pi
    rows, columns = np.divmod(np.arange(side * side), side)
    waves = [f(place[:, None] * rates) for place in (rows, columns) for f in (np.sin, np.cos)]
    return np.concatenate(waves, 1).astype(np.float32)


class Heads(nn.Module):
    """What is read off the tower's features while it learns; thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, len(AREAS))
        self.patch_boxes = nn.Linear(width, 4 * len(BOXES))
        self.pooled = nn.Linear(width, len(PRESENCES))
        self.film = nn.Linear(2 * width, len(LABELS))
        self.sharpness = nn.Parameter(torch.ones(len(PRESENCES)))
        self.shift = nn.Parameter(torch.zeros(len(PRESENCES)))

    def labels(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[n, P, d]` → RadVLM's 13 labels `[n, 13]`, which is all that is known of a real film."""
        hidden = self.norm(hidden)
        logits: torch.Tensor = self.film(torch.cat([hidden.mean(1), hidden.amax(1)], -1))
        return logits

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[n, P, d]` → dense `[n, P, A]`, boxes `[n, P, B, 4]`, presence twice `[n, len(PRESENCES)]`."""
        hidden = self.norm(hidden)
        dense = self.dense(hidden)
        findings = dense[..., : len(PRESENCES)]
        pooled = torch.logsumexp(findings, 1) - np.log(findings.shape[1])
        boxes = self.patch_boxes(hidden).unflatten(-1, (len(BOXES), 4)) * 0.25 + 0.5
        return dense, boxes, pooled * self.sharpness + self.shift, self.pooled(hidden.mean(1))


class TowerLoss:
    """Batches and losses of stage 1."""

    def __init__(self, films: PhantomSet, real: RealSet | None, geometry: Geometry, seed: int) -> None:
        self.films, self.real, self.geometry, self.seed = films, real, geometry, seed

    def __call__(self, tower: nn.Module, heads: Heads, step: int, phantoms: int, real: int) -> Losses:
        rng = np.random.default_rng([self.seed, 1, step])
        picked = rng.integers(len(self.films.labels), size=phantoms)
        half = picked[: phantoms // 2]  # tiles teach detail, base views teach everything
        tiles = rng.integers(1, self.films.crops.shape[1], size=len(half))
        crops = [self.films.crops[picked, 0], self.films.crops[half, tiles]]
        asked = [self.real.pick(rng) for _ in range(real)] if self.real else []
        for film, _ in asked:
            crops.append(cut(augment(rng, film.pixels), self.geometry)[0][:1, 0])
        hidden = features_of(tower, pixels_of(np.concatenate(crops)))
        dense, boxes, presence, pooled = heads(hidden)
        areas = self.films.targets.areas
        shares = np.concatenate([areas[picked, 0], areas[half, tiles]])
        losses = {"dense": dense_loss(dense[: len(shares)], torch.from_numpy(shares))}
        truth = torch.from_numpy(self.films.targets.presence[picked]).float()
        for name, logits in (("presence", presence), ("pooled", pooled)):
            losses[name] = F.binary_cross_entropy_with_logits(logits[:phantoms], truth)
        wanted = torch.from_numpy(self.films.targets.boxes[picked])
        losses["boxes"] = box_loss(boxes[:phantoms], wanted, torch.from_numpy(areas[picked, 0]))
        if asked:
            said = heads.labels(hidden[len(shares) :])
            losses["real"] = _real_loss(presence[len(shares) :], said, asked)
        losses["loss"] = (
            3 * losses["dense"]
            + 3 * losses["presence"]
            + losses["pooled"]
            + 4 * losses["boxes"]
            + 0.5 * losses.get("real", torch.zeros(()))
        )
        return losses


def dense_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross entropy against the covered share of each patch; patches of findings count more."""
    wanted = shares.float() / 255
    weight = torch.ones(logits.shape[-1])
    weight[: len(PRESENCES)] = DENSE_WEIGHT
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weight)
    return losses.mean()


def box_loss(boxes: torch.Tensor, wanted: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """L1 in fractions. Boxes of areas are asked of the patches inside, small regions' of every patch."""
    inside = torch.ones(boxes.shape[:3])
    inside[..., :AREA_BOXES] = (shares[..., :AREA_BOXES] > 100).float()
    there = torch.isfinite(wanted).all(-1)
    weight = inside * there[:, None]
    apart = (boxes - torch.nan_to_num(wanted)[:, None]).abs().mean(-1)
    per_box = (apart * weight).sum((0, 1)) / weight.sum((0, 1)).clamp(min=1)
    return per_box.mean()


def _real_loss(presence: torch.Tensor, said: torch.Tensor, asked: list[Any]) -> torch.Tensor:
    """One label a film; where phantoms have it too, their head learns from it, whatever the side."""
    losses = []
    for row, (film, name) in enumerate(asked):
        truth = torch.tensor(float(name in film.present))
        logits = [said[row, LABELS.index(name)]]
        if own := presences_of(name):
            logits.append(torch.logsumexp(presence[row, own], 0))
        losses += [F.binary_cross_entropy_with_logits(logit, truth) for logit in logits]
    return torch.stack(losses).mean()
