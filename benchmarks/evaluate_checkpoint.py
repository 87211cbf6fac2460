"""A film looked at by a checkpoint in transformers: prefix computed once, greedy answers behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer  # type: ignore[import-untyped]
from transformers import DynamicCache

from radvlm_edge.benchmarks.evaluate_models import Said, mean_probability, said_of
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.reference import image_features
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.prompts import Turn, render

CROPS = 4
"""Encoded at once."""


class CheckpointLooking:
    """The film's K/V; every answer goes on from a copy of them."""

    def __init__(
        self, model: Any, checkpoint: Checkpoint, unused: torch.Tensor, pixels: npt.NDArray[np.uint8]
    ) -> None:
        self.model, self.checkpoint, self._unused = model, checkpoint, unused
        self.size = (int(pixels.shape[0]), int(pixels.shape[1]))
        self._tokenizer = Tokenizer.from_str(json.dumps(checkpoint.tokenizer))
        head, _ = render([Turn("?")], checkpoint.prompting)
        self._cache = DynamicCache(config=model.config.text_config)
        with torch.no_grad():
            prefix = torch.cat([self._embedded(self._ids(head)), self._image(pixels)[None]], 1)
            self._go_on(prefix, self._cache)

    def answer(self, task: str, history: Sequence[Turn], question: str, about: str, most: int) -> Said:
        """Greedy; ids no token stands for are never chosen, as in an exported bundle."""
        _, tail = render([*history, Turn(question)], self.checkpoint.prompting)
        cache = copy.deepcopy(self._cache)
        ids, logprobs = list[int](), list[float]()
        with torch.no_grad():
            logits = self._go_on(self._embedded(self._ids(tail)), cache)
            while len(ids) < most:
                scores = torch.log_softmax(logits.double().masked_fill(self._unused, -torch.inf), -1)
                token = int(scores.argmax())
                logprobs.append(float(scores[token]))
                if token in self.checkpoint.prompting.stop_ids:
                    break
                ids.append(token)
                logits = self._go_on(self._embedded([token]), cache)
        text = str(self._tokenizer.decode(ids)).strip()
        return said_of(text, mean_probability(logprobs))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _embedded(self, ids: list[int]) -> torch.Tensor:
        given = torch.tensor([ids], device=self._unused.device)
        out: torch.Tensor = self.model.get_input_embeddings()(given)
        return out

    def _go_on(self, embeds: torch.Tensor, cache: Any) -> torch.Tensor:
        out = self.model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = self.model.lm_head(out.last_hidden_state[0, -1])
        return logits

    def _image(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Image tokens `[t, d]`: our crops, transformers' tower, projector and packing."""
        views, layout = cut(pixels, self.checkpoint.config.geometry)
        said = self.checkpoint.preprocessing
        mean, std = (torch.tensor(said[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        parts = []
        for at in range(0, len(views), CROPS):
            scaled = (torch.from_numpy(views[at : at + CROPS]).float() * said["rescale"] - mean) / std
            parts.append(image_features(self.model, scaled.to(self._unused.device)))
        packed, _ = self.model.model.pack_image_features(
            [torch.cat(parts)],
            torch.tensor([[layout.height, layout.width]]),
            image_newline=self.model.model.image_newline,
            vision_aspect_ratio=self.model.config.vision_aspect_ratio,
        )
        tokens: torch.Tensor = packed[0]
        return tokens
