"""Stage 2: the language model learns to decide, before it learns to talk.

From scratch a small language model talks long before its Yes and No depend on the film. Two things
make it decide within minutes: short plain questions about every finding at once, and a reader that
asks a middle layer for all findings at the last image token, where later layers can look them up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.curriculum import balanced_atom
from radvlm_edge.training.films import PhantomSet, RealSet, augment
from radvlm_edge.training.instructions import Exchange, Labels
from radvlm_edge.training.language import hidden_states, image_tokens_of
from radvlm_edge.training.loop import Losses
from radvlm_edge.training.packing import Block, conversation, pack
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.phrasings import SPOKEN
from radvlm_edge.training.targets import PRESENCES

PLAIN = ("any {}?", "Is there {}?", "{}?", "Do you see {}?")
ASKED = 3
"""Questions about a phantom for each of FINDINGS, as many of them true as not."""


class Reader(nn.Linear):
    """Middle state of the last image token `[B, d]` → a logit for each of PRESENCES; thrown away."""

    def __init__(self, width: int) -> None:
        super().__init__(width, len(PRESENCES))


class DecideLoss:
    """Batches and losses of stage 2."""

    def __init__(
        self, films: PhantomSet, real: RealSet | None, tokenizer: Any, geometry: Geometry, seed: int
    ) -> None:
        self.films, self.real, self.tokenizer = films, real, tokenizer
        self.geometry, self.seed = geometry, seed

    def _block(self, rng: np.random.Generator, labels: Labels, name: str) -> Block:
        question = PLAIN[int(rng.integers(len(PLAIN)))].format(SPOKEN[name][0])
        answer = "Yes" if name in labels.present else "No"
        return conversation(self.tokenizer, [Exchange("yesno", question, answer, name)], brief=True)

    def _film_blocks(self, rng: np.random.Generator, labels: Labels) -> list[Block]:
        names = [balanced_atom(rng, labels, sided=0.0)[0] for _ in range(ASKED * len(FINDINGS))]
        return [self._block(rng, labels, name) for name in names]

    def __call__(self, model: Any, reader: Reader, step: int, phantoms: int, real: int) -> Losses:
        rng = np.random.default_rng([self.seed, 4, step])
        picked = rng.integers(len(self.films.labels), size=phantoms)
        images = image_tokens_of(model, self.films.crops[picked], self.films.sizes[picked], False)
        blocks = [self._film_blocks(rng, self.films.labels[index]) for index in picked]
        for _ in range(real if self.real else 0):
            assert self.real is not None
            film, name = self.real.pick(rng)
            pixels = augment(rng, film.pixels)
            crops = cut(pixels, self.geometry)[0][None, :, 0]
            images += image_tokens_of(model, crops, [pixels.shape], False)
            blocks.append([self._block(rng, film.labels, name) for _ in range(ASKED)])
        packed = pack(self.tokenizer, [len(image) for image in images], blocks)
        states = hidden_states(model, packed, images)
        taught = packed.weights > 0
        logits, targets = model.lm_head(states[-1][taught]), packed.targets[taught]
        decisions = F.cross_entropy(logits, targets)
        last = torch.tensor([packed.head + len(image) - 1 for image in images[:phantoms]])
        middle = states[len(states) // 2][torch.arange(phantoms), last]
        truth = torch.from_numpy(self.films.targets.presence[picked]).float()
        read = F.binary_cross_entropy_with_logits(reader(middle), truth)
        right = (logits.argmax(-1) == targets).float().mean()
        return {"loss": decisions + read, "yesno": decisions, "read": read, "right": right}
