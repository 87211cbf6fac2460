"""Stages 3 and 4: projector and language model learn to answer, then the tower follows at a low rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.curriculum import (
    ask_about_findings,
    film_conversations,
    film_exchanges,
    real_exchanges,
)
from radvlm_edge.training.films import PhantomSet, RealSet, augment_film
from radvlm_edge.training.instructions import Exchange, Labels
from radvlm_edge.training.loop import Losses
from radvlm_edge.training.packing import Block, Packed, conversation, pack
from radvlm_edge.training.tower import features_of, pixels_of

DECISIONS = 14
"""Further yes/no questions about each phantom whose answers end at Yes or No: deciding is learned last."""


def image_tokens_of(model: Any, crops: Any, sizes: Any, train_tower: bool) -> list[torch.Tensor]:
    """Films `[B, V, S, S]` uint8 of `[B, 2]` (height, width) → B times `[t, d]` image tokens.

    Packing is the model's own.
    """
    films, views = crops.shape[:2]
    with torch.set_grad_enabled(train_tower and torch.is_grad_enabled()):
        hidden = features_of(model.model.vision_tower, pixels_of(crops.reshape(-1, *crops.shape[2:])))
    projected = model.model.multi_modal_projector(hidden).unflatten(0, (films, views))
    packed, _ = model.model.pack_image_features(
        list(projected),
        torch.as_tensor(np.asarray(sizes)),
        image_newline=model.model.image_newline,
        vision_aspect_ratio=model.config.vision_aspect_ratio,
    )
    return list(packed)


def hidden_states(model: Any, packed: Packed, images: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The language model's states `[B, L, d]`: embeddings, after each layer, the last one normalised."""
    embeds = model.get_input_embeddings()(packed.ids).clone()
    for row, image in enumerate(images):
        embeds[row, packed.head : packed.head + len(image)] = image
    states: tuple[torch.Tensor, ...] = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": packed.mask},
        position_ids=packed.positions,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    return states


def logits_where_taught(
    model: Any, packed: Packed, images: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[m, vocab]` at the m taught places, and those places' mask `[B, L]`."""
    taught = packed.weights > 0
    return model.lm_head(hidden_states(model, packed, images)[-1][taught]), taught


class LanguageLoss:
    """Batches and losses of stages 3 and 4."""

    def __init__(
        self,
        films: PhantomSet,
        real: RealSet | None,
        tokenizer: Any,
        geometry: Geometry,
        seed: int,
        stage: int,
    ) -> None:
        self.films, self.real, self.tokenizer = films, real, tokenizer
        self.geometry, self.seed, self.stage = geometry, seed, stage

    def _blocks(
        self, rng: np.random.Generator, exchanges: list[Exchange], decisions: Sequence[Exchange] = ()
    ) -> list[Block]:
        """One conversation each, except that the last two of several share one of two turns."""
        turns = [[one] for one in exchanges]
        if len(turns) > 4:
            order = rng.permutation(len(exchanges))
            turns = [[exchanges[index]] for index in order[:-2]] + [
                [exchanges[index] for index in order[-2:]]
            ]
        blocks = [conversation(self.tokenizer, one) for one in turns]
        return blocks + [conversation(self.tokenizer, [one], brief=True) for one in decisions]

    def _film_blocks(self, rng: np.random.Generator, labels: Labels) -> list[Block]:
        brief = ask_about_findings(rng, labels, DECISIONS)
        blocks = self._blocks(rng, film_exchanges(rng, labels), brief)
        return blocks + [conversation(self.tokenizer, one) for one in film_conversations(rng, labels)]

    def __call__(self, model: Any, step: int, phantoms: int, real: int, train_tower: bool) -> Losses:
        rng = np.random.default_rng([self.seed, self.stage, step])
        picked = rng.integers(len(self.films.labels), size=phantoms)
        images = image_tokens_of(model, self.films.crops[picked], self.films.sizes[picked], train_tower)
        blocks = [self._film_blocks(rng, self.films.labels[index]) for index in picked]
        for _ in range(real if self.real else 0):
            assert self.real is not None
            film, name = self.real.pick(rng)
            pixels, drawn = augment_film(rng, film.pixels, film.drawn)
            crops = cut(pixels, self.geometry)[0][None, :, 0]
            images += image_tokens_of(model, crops, [pixels.shape], train_tower)
            blocks.append(
                self._blocks(rng, real_exchanges(rng, Labels(film.present, drawn, localised=False), name))
            )
        packed = pack(self.tokenizer, [len(image) for image in images], blocks)
        logits, taught = logits_where_taught(model, packed, images)
        weights = packed.weights[taught]
        each = F.cross_entropy(logits, packed.targets[taught], reduction="none")
        decisions = weights > 1
        losses = {"loss": (each * weights).sum() / weights.sum(), "text": each[~decisions].mean()}
        if bool(decisions.any()):
            losses["yesno"] = each[decisions].mean()
            right = logits[decisions].argmax(-1) == packed.targets[taught][decisions]
            losses["right"] = right.float().mean()
        return losses
