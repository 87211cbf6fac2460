"""Stage 2: the tower learns what every patch shows, before any language."""

from __future__ import annotations

from dataclasses import dataclass
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
from radvlm_edge.training.targets import BOXES, PRESENCES, BoxSpread, presences_of

LEAST_WEIGHT, MOST_WEIGHT = 4.0, 60.0
"""Bounds of how much more a patch of something counts than a patch without it: the rarer, the more."""
INSIDE = 100
"""A patch is asked for the box of what covers at least so much of 255 of it."""
QUIET = 0.05 / 0.7
"""Factor on what attention adds at first: it must not drown what patches have learned alone."""


def local_layers(tower: Any) -> list[Any]:
    """The first third looks at one patch each: its attention adds nothing until the whole tower moves.

    Trained with all the rest, whole films undo within minutes what single patches have taught.
    """
    layers = tower.vision_model.encoder.layers
    return list(layers[: len(layers) // 3])


def settle(tower: Any, settled: bool) -> list[nn.Parameter]:
    """Hold the embedding and the local layers as they are, or let them move again; returns what moves."""
    for module in (tower.vision_model.embeddings, *local_layers(tower)):
        module.requires_grad_(not settled)
    return [one for one in tower.parameters() if one.requires_grad]


def pixels_of(crops: Any) -> torch.Tensor:
    """Grey crops `[n, S, S]` uint8 → the tower's input `[n, 3, S, S]`, mean and std 0.5."""
    grey = torch.from_numpy(np.array(crops)).to(torch.float32) / 255
    return ((grey - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1).contiguous()


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def features_of(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """`hidden_states[-1]` `[n, P, d]`: the last layer before post_layernorm, as the projector sees it."""
    pixels = pixels.to(device_of(tower))
    hidden: torch.Tensor = tower(pixels, output_hidden_states=True).hidden_states[-1]
    return hidden


def start_tower(tower: Any, crops: Any, seed: int) -> None:
    """Whiten the patch embedding, lay down sin-cos positions, hush attention; silence it in local layers.

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
        for layer in tower.vision_model.encoder.layers:
            layer.self_attn.out_proj.weight.mul_(QUIET)
        for layer in local_layers(tower):
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()


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
        self.dense = nn.Linear(width, len(BOXES))
        self.patch_boxes = nn.Linear(width, 4 * len(BOXES))
        self.pooled = nn.Linear(width, len(PRESENCES))
        self.film = nn.Linear(2 * width, len(LABELS))
        self.sharpness = nn.Parameter(torch.ones(len(PRESENCES)))
        self.shift = nn.Parameter(torch.zeros(len(PRESENCES)))

    def labels(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[B, V, P, d]` → RadVLM's 13 labels `[B, 13]`, which is all that is known of a real film."""
        hidden = self.norm(hidden).flatten(1, 2)
        logits: torch.Tensor = self.film(torch.cat([hidden.mean(1), hidden.amax(1)], -1))
        return logits

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[B, V, P, d]` → dense `[B, V, P, n]` and boxes `[B, V, P, n, 4]` for the n of BOXES, and
        presence twice, `[B, len(PRESENCES)]`, pooled over all views of a film."""
        hidden = self.norm(hidden)
        dense = self.dense(hidden)
        findings = dense[..., : len(PRESENCES)].flatten(1, 2)
        pooled = torch.logsumexp(findings, 1) - np.log(findings.shape[1])
        boxes = self.patch_boxes(hidden).unflatten(-1, (len(BOXES), 4)) * 0.25 + 0.5
        mean = self.pooled(hidden.mean((1, 2)))
        return dense, boxes, pooled * self.sharpness + self.shift, mean


class TowerLoss:
    """Batches and losses of stage 2: films with all their views, each of which is also asked for boxes of
    the whole film, so that a tile's features say where on the film it lies."""

    def __init__(self, films: PhantomSet, real: RealSet | None, geometry: Geometry, seed: int) -> None:
        self.films, self.real, self.geometry, self.seed = films, real, geometry, seed
        self.balance = Balance.of(films.targets.areas[:2000])
        self.spread = torch.from_numpy(BoxSpread.of(films.targets.boxes).apart)

    def __call__(self, tower: nn.Module, heads: Heads, step: int, phantoms: int, real: int) -> Losses:
        rng = np.random.default_rng([self.seed, 1, step])
        picked = rng.integers(len(self.films.labels), size=phantoms)
        crops = self.films.crops[picked].reshape(-1, *self.films.crops.shape[2:])
        asked = [self.real.pick(rng) for _ in range(real)] if self.real else []
        shown = [cut(augment(rng, film.pixels), self.geometry)[0][:, 0] for film, _ in asked]
        hidden = features_of(tower, pixels_of(np.concatenate([crops, *shown])))
        films = hidden[: len(crops)].reshape(phantoms, -1, *hidden.shape[1:])
        dense, boxes, presence, pooled = heads(films)
        place = hidden.device
        shares = torch.from_numpy(self.films.targets.areas[picked]).to(place)
        each = dense_loss(dense, shares, self.balance)
        losses = {"dense": each[: len(PRESENCES)].mean(), "regions": each[len(PRESENCES) :].mean()}
        truth = torch.from_numpy(self.films.targets.presence[picked]).float().to(place)
        for name, logits in (("presence", presence), ("pooled", pooled)):
            losses[name] = F.binary_cross_entropy_with_logits(logits, truth)
        wanted = torch.from_numpy(self.films.targets.boxes[picked]).to(place)
        losses["boxes"] = box_loss(boxes, wanted, shares, self.spread)
        if asked:
            at, parts = len(crops), []
            for views in shown:
                parts.append(hidden[None, at : at + len(views)])
                at += len(views)
            said = torch.cat([heads.labels(one) for one in parts])
            seen = torch.cat([heads(one)[2] for one in parts])
            losses["real"] = _real_loss(seen, said, asked)
        losses["loss"] = (
            2 * losses["dense"]
            + 0.5 * losses["regions"]
            + 3 * losses["presence"]
            + losses["pooled"]
            + 3 * losses["boxes"]
            + 0.3 * losses.get("real", torch.zeros((), device=place))
        )
        return losses


@dataclass(frozen=True)
class Balance:
    """What makes the dense losses of common and rare things alike; one figure for each of BOXES."""

    weight: torch.Tensor
    """How much more a patch of it counts than one without."""
    blind: torch.Tensor
    """The loss of the best answer that does not look at the film."""

    @classmethod
    def of(cls, areas: Any) -> Balance:
        """From shares `[N, V, P, len(BOXES)]` uint8."""
        share = torch.from_numpy(areas.mean((0, 1, 2)) / 255).float().clamp(1e-5, 0.9)
        weight = ((1 - share) / share).sqrt().clamp(LEAST_WEIGHT, MOST_WEIGHT)
        said = weight * share / (weight * share + 1 - share)
        return cls(weight, -(weight * share * said.log() + (1 - share) * (1 - said).log()))


def dense_loss(logits: torch.Tensor, shares: torch.Tensor, balance: Balance) -> torch.Tensor:
    """Cross entropy against the covered share of each patch, `[len(BOXES)]`; 1 is what blindness costs."""
    losses = F.binary_cross_entropy_with_logits(
        logits, shares.float() / 255, reduction="none", pos_weight=balance.weight.to(logits.device)
    )
    return losses.mean(tuple(range(losses.ndim - 1))) / balance.blind.to(logits.device)


def box_loss(
    boxes: torch.Tensor, wanted: torch.Tensor, shares: torch.Tensor, spread: torch.Tensor
) -> torch.Tensor:
    """L1 of `boxes` `[B, V, P, n, 4]` to `wanted` `[B, n, 4]`, asked of the patches inside by `shares`.

    1 is what saying the median box costs: `spread` `[n]` is that for each.
    """
    there = torch.isfinite(wanted).all(-1)
    weight = (shares >= INSIDE) * there[:, None, None]
    apart = (boxes - torch.nan_to_num(wanted)[:, None, None]).abs().mean(-1)
    per_box = (apart * weight).sum((0, 1, 2)) / weight.sum((0, 1, 2)).clamp(min=1)
    return (per_box / spread.to(per_box.device)).mean()


def _real_loss(presence: torch.Tensor, said: torch.Tensor, asked: list[Any]) -> torch.Tensor:
    """One label a film; where phantoms have it too, their head learns from it, whatever the side."""
    losses = []
    for row, (film, name) in enumerate(asked):
        truth = torch.tensor(float(name in film.present), device=said.device)
        logits = [said[row, LABELS.index(name)]]
        if own := presences_of(name):
            logits.append(torch.logsumexp(presence[row, own], 0))
        losses += [F.binary_cross_entropy_with_logits(logit, truth) for logit in logits]
    return torch.stack(losses).mean()
