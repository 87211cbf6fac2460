"""Stages 2 to 4: projector and language model learn to answer, then the tower follows at a low rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from radvlm_edge.training.packing import DECISION_WEIGHT, Block, Packed, conversation, pack
from radvlm_edge.training.pointing import NAMES, Aids, aiding_losses, boxes_of, patches_of, spread_of
from radvlm_edge.training.tower import device_of, features_of, pixels_of

DECISIONS = 14
"""Further yes/no questions about each phantom whose answers end at Yes or No: deciding is learned last."""
AIDED = 0.5
"""Weight of what helps to look, beside the answers."""
FilmBlocks = Callable[[np.random.Generator, Any, Labels], list[Block]]


def see(model: Any, crops: Any) -> torch.Tensor:
    """Grey crops `[B, V, S, S]` uint8 → the tower's features `[B, V, P, d]`."""
    flat = pixels_of(crops.reshape(-1, *crops.shape[2:]))
    hidden = features_of(model.model.vision_tower, flat)
    return hidden.reshape(*crops.shape[:2], *hidden.shape[1:])


def image_tokens_of(model: Any, features: torch.Tensor, sizes: Any) -> list[torch.Tensor]:
    """Features `[B, V, P, d]` of films of `[B, 2]` (height, width) → B times `[t, d]` image tokens.

    Packing is the model's own.
    """
    packed, _ = model.model.pack_image_features(
        list(model.model.multi_modal_projector(features)),
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


def _blocks(
    tokenizer: Any, rng: np.random.Generator, exchanges: list[Exchange], decisions: Sequence[Exchange] = ()
) -> list[Block]:
    """One conversation each, except that the last two of several share one of two turns."""
    turns = [[one] for one in exchanges]
    if len(turns) > 4:
        order = rng.permutation(len(exchanges))
        turns = [[exchanges[index]] for index in order[:-2]] + [[exchanges[index] for index in order[-2:]]]
    blocks = [conversation(tokenizer, one, NAMES) for one in turns]
    return blocks + [conversation(tokenizer, [one], NAMES, brief=True) for one in decisions]


def talking_blocks(rng: np.random.Generator, tokenizer: Any, labels: Labels) -> list[Block]:
    """What a phantom is asked in one pass of stages 3 and 4."""
    brief = ask_about_findings(rng, labels, DECISIONS)
    blocks = _blocks(tokenizer, rng, film_exchanges(rng, labels), brief)
    return blocks + [conversation(tokenizer, one, NAMES) for one in film_conversations(rng, labels)]


class LanguageLoss:
    """Batches and losses of a stage: `blocks` says what phantoms are asked in it, `seeing` whether the
    tower learns with the rest."""

    def __init__(
        self,
        films: PhantomSet,
        real: RealSet | None,
        tokenizer: Any,
        geometry: Geometry,
        seed: int,
        stage: int,
        blocks: FilmBlocks,
        seeing: bool,
    ) -> None:
        self.films, self.real, self.tokenizer = films, real, tokenizer
        self.geometry, self.seed, self.stage = geometry, seed, stage
        self.blocks, self.seeing = blocks, seeing
        self.spread = spread_of(films.targets)

    def _see(self, model: Any, crops: Any) -> torch.Tensor:
        with torch.set_grad_enabled(self.seeing and torch.is_grad_enabled()):
            return see(model, crops)

    def _real(self, rng: np.random.Generator, model: Any) -> tuple[torch.Tensor, list[Block]]:
        assert self.real is not None
        film, name = self.real.pick(rng)
        pixels, drawn = augment_film(rng, film.pixels, film.drawn)
        features = self._see(model, cut(pixels, self.geometry)[0][None, :, 0])
        asked = real_exchanges(rng, Labels(film.present, drawn, localised=False), name)
        return image_tokens_of(model, features, [pixels.shape])[0], _blocks(self.tokenizer, rng, asked)

    def __call__(self, model: Any, aids: Aids, step: int, phantoms: int, real: int) -> Losses:
        rng = np.random.default_rng([self.seed, self.stage, step])
        picked = rng.integers(len(self.films.labels), size=phantoms)
        sizes = self.films.sizes[picked]
        images = image_tokens_of(model, self._see(model, self.films.crops[picked]), sizes)
        blocks = [self.blocks(rng, self.tokenizer, self.films.labels[index]) for index in picked]
        for _ in range(real if self.real else 0):
            image, asked = self._real(rng, model)
            images.append(image)
            blocks.append(asked)
        place = device_of(model)
        packed = pack(self.tokenizer, [len(image) for image in images], blocks).to(place)
        states = hidden_states(model, packed, images)
        targets = self.films.targets
        shares = torch.from_numpy(targets.areas[picked]).to(place)
        patches = patches_of(model, shares, torch.from_numpy(sizes))
        presence = torch.from_numpy(targets.presence[picked]).float().to(place)
        boxes = boxes_of(targets.boxes[picked]).to(place)
        helped = aiding_losses(model, aids, packed, states, patches, presence, boxes, self.spread.to(place))
        answered = _answering(model, packed, states[-1])
        loss = answered.pop("loss") + AIDED * torch.stack(list(helped.values())).sum()
        return {"loss": loss} | answered | helped


def _answering(model: Any, packed: Packed, state: torch.Tensor) -> Losses:
    """Weighted cross entropy of the taught tokens, and its parts."""
    taught = packed.weights > 0
    logits, targets, weights = model.lm_head(state[taught]), packed.targets[taught], packed.weights[taught]
    each = F.cross_entropy(logits, targets, reduction="none")
    decisions = weights >= DECISION_WEIGHT
    losses = {"loss": (each * weights).sum() / weights.sum(), "text": each[~decisions].mean()}
    if bool(decisions.any()):
        losses["yesno"] = each[decisions].mean()
        losses["right"] = (logits[decisions].argmax(-1) == targets[decisions]).float().mean()
    return losses
