"""What a language model from scratch does not find by itself in minutes: to look where the question asks.

Four readings of its layers are taught beside the answers, and nothing of them stays in the
checkpoint but the weights they have moved. Before the pointing layer, an answer's first place knows
which thing is asked about. In that layer, one attention head looks at that thing's patches, or at the
very first token where the thing is not on the film; two layers on, its box is known. Halfway up, the last
image token knows all findings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from radvlm_edge.training.packing import Packed
from radvlm_edge.training.phantom_difficulty import SIDED
from radvlm_edge.training.targets import BOXES, PRESENCES, BoxSpread, Targets

POINTED = (*BOXES, *SIDED)
"""What can be pointed at: regions and findings, sided ones also without their side."""
NAMES = {name: index for index, name in enumerate(POINTED)}
_WITHOUT_SIDE = [[index for index, one in enumerate(BOXES) if one.endswith(f" {name}")] for name in SIDED]
COVERED = 100
"""A patch belongs to what covers at least so much of 255 of it."""


class Aids(nn.Module):
    """What is read off the language model while it learns; thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.asked = nn.Linear(width, len(POINTED))
        self.reader = nn.Linear(width, len(PRESENCES))
        self.place = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))


def pointing_layer(layers: int) -> int:
    """A third of the way up: what is found there has layers left to be said in."""
    return layers // 3


def patches_of(model: Any, shares: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
    """Shares `[B, V, P, len(BOXES)]` of films of `[B, 2]` pixels → B times `[t, len(POINTED)]` bool, in the
    order of the image tokens."""
    covers = (shares >= COVERED).float()
    newline = covers.new_zeros(covers.shape[-1])
    packed, _ = model.model.pack_image_features(
        list(covers), sizes, image_newline=newline, vision_aspect_ratio=model.config.vision_aspect_ratio
    )
    return [
        torch.cat([one, *(one[:, own].amax(1, keepdim=True) for own in _WITHOUT_SIDE)], 1) > 0
        for one in packed
    ]


def boxes_of(boxes: Any) -> torch.Tensor:
    """Boxes `[B, len(BOXES), 4]`, NaN where there is none → those of POINTED `[B, len(POINTED), 4]`;
    without a side, the box of the only side that has one."""
    either = []
    for own in _WITHOUT_SIDE:
        right, left = boxes[:, own[0]], boxes[:, own[-1]]
        one = np.where(np.isfinite(left), left, right)
        either.append(np.where(np.isfinite(left) & np.isfinite(right), np.nan, one))
    return torch.from_numpy(np.concatenate([boxes, np.stack(either, 1)], 1).astype(np.float32))


def spread_of(targets: Targets) -> torch.Tensor:
    """How far the boxes of each of POINTED lie apart from film to film, `[len(POINTED)]`."""
    apart = BoxSpread.of(targets.boxes).apart
    return torch.from_numpy(np.concatenate([apart, [apart[own].mean() for own in _WITHOUT_SIDE]])).float()


def aiding_losses(
    model: Any,
    aids: Aids,
    packed: Packed,
    states: tuple[torch.Tensor, ...],
    patches: list[torch.Tensor],
    presence: torch.Tensor,
    boxes: torch.Tensor,
    spread: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Losses of the four readings, of the first `len(patches)` films of a batch: the others, of which no
    place is known, teach nothing.

    `asked`: cross entropy over POINTED at the answers' first places; `point`: minus the logarithm of the
    attention that falls on the right tokens, mean over all places that point; `placed`: L1 to `boxes`
    `[films, len(POINTED), 4]` at the same places two layers on, in units of `spread` `[len(POINTED)]`,
    what the median box costs; `read`: cross entropy of `presence` `[films, len(PRESENCES)]` at the last
    image token.
    """
    films, at = len(patches), pointing_layer(len(states) - 1)
    first = packed.firsts[:films] & (packed.points[:films] >= 0)
    asked = aids.asked(states[at][:films][first])
    told = aids.place(states[min(at + 2, len(states) - 1)][:films]) * 0.25 + 0.5
    last = torch.tensor([packed.head + len(own) - 1 for own in patches])
    read = aids.reader(states[len(states) // 2][torch.arange(films), last])
    return {
        "asked": F.cross_entropy(asked, packed.points[:films][first]),
        "point": _pointing(model, packed, states[at], patches, at),
        "placed": _placing(told, packed.points[:films], boxes, spread),
        "read": F.binary_cross_entropy_with_logits(read, presence),
    }


def _placing(
    told: torch.Tensor, points: torch.Tensor, boxes: torch.Tensor, spread: torch.Tensor
) -> torch.Tensor:
    film, row = torch.nonzero(points >= 0, as_tuple=True)
    thing = points[film, row]
    wanted = boxes[film, thing]
    there = torch.isfinite(wanted).all(-1)
    apart = (told[film, row] - torch.nan_to_num(wanted)).abs().mean(-1) / spread[thing]
    return (apart * there).sum() / there.sum().clamp(min=1)


def _pointing(
    model: Any, packed: Packed, state: torch.Tensor, patches: list[torch.Tensor], at: int
) -> torch.Tensor:
    language, films = model.model.language_model, len(patches)
    layer = language.layers[at]
    width = layer.self_attn.head_dim
    normed = layer.input_layernorm(state[:films])
    cos, sin = language.rotary_emb(normed, packed.positions[:films])

    def head(linear: nn.Linear) -> torch.Tensor:
        flat = F.linear(normed, linear.weight[:width], linear.bias[:width])
        turned: torch.Tensor = flat * cos + rotate_half(flat) * sin
        return turned

    queries, keys = head(layer.self_attn.q_proj), head(layer.self_attn.k_proj)
    losses = []
    for film, own in enumerate(patches):
        rows = packed.points[film] >= 0
        scores = queries[film, rows] @ keys[film].T * width**-0.5 + packed.mask[film, 0, rows]
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[:, packed.head : packed.head + len(own)] = own.T[packed.points[film, rows]]
        right[:, 0] = ~right.any(1)
        wrong = torch.finfo(scores.dtype).min
        losses.append(torch.logsumexp(scores, 1) - torch.logsumexp(scores.masked_fill(~right, wrong), 1))
    return torch.cat(losses).mean()
