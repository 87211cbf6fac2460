"""transformers as a peer, float32 or bfloat16: as upstream uses it, and with its K/V kept. Torch world.

As upstream (uzh-dqbm-cmi/RadVLM, radvlm/evaluation/models_loading_inference.py): `generate` without sampling,
every question from the pixels on. Kept: the prefix's cache is made once and cropped after every answer.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer  # type: ignore[import-untyped]
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

from radvlm_edge.benchmarks.peers_setup import Asked, Setup, Written
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.reference import build_reference
from radvlm_edge.runtime import crops, prompts
from radvlm_edge.runtime.film import load_film


class _Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token was there; never stops."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.marks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersPeer:
    """See `peers_setup.Peer`; `kept`: K/V of the film stay between questions."""

    def __init__(self, setup: Setup, dtype: torch.dtype, *, kept: bool) -> None:
        torch.set_num_threads(setup.threads)
        began = time.perf_counter()
        self.checkpoint = open_checkpoint(Path(setup.checkpoint))
        self.model = build_reference(self.checkpoint).to(dtype)
        self.load_ms = (time.perf_counter() - began) * 1e3
        self.dtype, self.kept, self.geometry, self.render = dtype, kept, setup.geometry, setup.render
        pinpoints = [list(pair) for pair in self.geometry.pinpoints]
        self.model.config.image_grid_pinpoints = pinpoints
        settings = {**self.checkpoint.processor, "image_grid_pinpoints": pinpoints}
        self.processor = LlavaOnevisionImageProcessor(**settings)
        self.tokenizer = Tokenizer.from_str(json.dumps(self.checkpoint.tokenizer))
        self._film, self._cache, self._image_tokens = b"", None, 0

    def describe(self) -> dict[str, Any]:
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return {
            "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "precision": str(self.dtype).removeprefix("torch."),
            "image_tokens": self._image_tokens,
            "bytes": {"weights": weights},
        }

    def cold(self, film: bytes, question: str, written: Written) -> Asked:
        self._film, self._cache = film, None
        return self._generate(question, written)

    def again(self, question: str, written: Written) -> Asked:
        if not self.kept:
            return self._generate(question, written)
        if self._cache is None:
            self._cache = self._prefix()
        return self._continue(question, written)

    def _inputs(self, question: str) -> dict[str, Any]:
        """As LlavaOnevisionProcessor would give it: the image's place is taken by as many `<image>`."""
        pixels = load_film(self._film, render=self.render).pixels
        views = self.processor(Image.fromarray(pixels).convert("RGB"), return_tensors="pt")["pixel_values"]
        self._image_tokens = crops.plan(pixels.shape[0], pixels.shape[1], self.geometry).image_tokens
        head, tail = prompts.render([prompts.Turn(question)], self.checkpoint.prompting)
        before, behind = (self._ids(text) for text in (head, tail))
        image = [self.checkpoint.config.image_token_id] * self._image_tokens
        ids = torch.tensor([[*before, *image, *behind]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": views.to(self.dtype),
            "image_sizes": torch.tensor([list(pixels.shape)]),
        }

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @torch.no_grad()
    def _generate(self, question: str, written: Written) -> Asked:
        began, clock = time.perf_counter(), _Clock()
        inputs = self._inputs(question)
        stop = list(self.checkpoint.prompting.stop_ids) if written.stop else None
        ids = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=written.tokens,
            min_new_tokens=1 if written.stop else written.tokens,
            eos_token_id=stop,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([clock]),
        )[0, inputs["input_ids"].shape[1] :].tolist()
        total_ms = (time.perf_counter() - began) * 1e3
        return Asked((clock.marks[0] - began) * 1e3, total_ms, len(ids), self._text(ids))

    def _text(self, ids: list[int]) -> str:
        kept = [token for token in ids if token not in self.checkpoint.prompting.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()

    @torch.no_grad()
    def _prefix(self) -> Any:
        """K and V of everything before the question."""
        inputs = self._inputs("?")
        head, _ = prompts.render([prompts.Turn("?")], self.checkpoint.prompting)
        length = len(self._ids(head)) + self._image_tokens
        inputs["input_ids"] = inputs["input_ids"][:, :length]
        inputs["attention_mask"] = inputs["attention_mask"][:, :length]
        return self.model.model(**inputs, use_cache=True).past_key_values

    @torch.no_grad()
    def _continue(self, question: str, written: Written) -> Asked:
        began, first_ms = time.perf_counter(), 0.0
        cache: Any = self._cache
        length = cache.get_seq_length()
        _, tail = prompts.render([prompts.Turn(question)], self.checkpoint.prompting)
        stop = self.checkpoint.prompting.stop_ids if written.stop else ()
        following, ids = self._ids(tail), list[int]()
        while len(ids) < written.tokens and not (ids and ids[-1] in stop):
            embeddings = self.model.get_input_embeddings()(torch.tensor([following]))
            state = self.model.model.language_model(
                inputs_embeds=embeddings, past_key_values=cache, use_cache=True
            )
            ids.append(int(self.model.lm_head(state.last_hidden_state[0, -1]).argmax()))
            first_ms = first_ms or (time.perf_counter() - began) * 1e3
            following = [ids[-1]]
        total_ms = (time.perf_counter() - began) * 1e3
        cache.crop(length)
        return Asked(first_ms, total_ms, len(ids), self._text(ids))

    def extras(self, setup: Setup, film: Path) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._cache = None


def open_peer(setup: Setup, name: str) -> TransformersPeer:
    """`fp32`, `bf16`, or either of them followed by `kept`."""
    precision, _, kept = name.partition(" ")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return TransformersPeer(setup, dtype, kept=kept == "kept")
