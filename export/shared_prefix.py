"""The checkpoint in torch, float32, one layer in memory at a time, many questions behind each film at once.

What a 7B owner compares with on a workstation of 8 GiB: the weights of a layer are read, used for every
prompt, and dropped. The questions about a film share its prefix, which is computed once: thousands of
image tokens for tens of a question. Attention is causal over prefix and own tail, so a tail's values are
what the prompt alone would give; a test holds them against transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.config import Language

ROOT = "vision_tower.vision_model."

Floats = npt.NDArray[np.float32]
HEAD_ROWS = 16_384
"""Rows of the output matrix held in float32 at a time."""
CROPS_AT_ONCE = 4

ROWS_AT_ONCE = 1024
"""Tokens run through a multilayer perceptron at a time: its width is five times the hidden size."""
GROUP_BYTES = 2**30
"""Hidden states kept at a time; more films than that go through the layers in groups."""

Observe = Callable[[int, int, str, torch.Tensor], None]
"""Called before each multiplication with the film's index, the first row's position among the film's
tokens (head, image, then tail by tail), the matrix's canonical name and its input `[rows, width]`."""

Multiply = Callable[[int, int, str, torch.Tensor, torch.Tensor], torch.Tensor]
"""A layer's product `x @ weight.T` where another than the exact one is wanted: called as `Observe`, and
with the weight `[out, in]`."""


def _unobserved(film: int, start: int, name: str, values: torch.Tensor) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Sequences:
    """Everything asked about one film."""

    head: list[int]
    """Token ids before the image."""
    image: Floats
    """Image tokens `[t, d]`; `t` may be 0."""
    tails: list[list[int]]
    """Token ids behind the image, one list a prompt (question and, if wanted, answer)."""


def stream_image_features(
    checkpoint: Checkpoint,
    views: Sequence[npt.NDArray[np.uint8]],
    progress: Callable[[str], None] = lambda line: None,
) -> list[Floats]:
    """Projected tokens `[n, tokens, d]` of each film's crops `[n, 3, S, S]`, by transformers' layers."""
    tower = checkpoint.config.tower
    layer = SiglipEncoderLayer(_tower_config(checkpoint)).float().eval()
    with torch.no_grad():
        batches = _embed_crops(checkpoint, views)
        for index in range(tower.used_layers):
            progress(f"reference: tower layer {index + 1} of {tower.used_layers}")
            names = list(layer.state_dict())
            stem = f"{ROOT}encoder.layers.{index}."
            layer.load_state_dict({name: checkpoint.tensor(stem + name).float() for name in names})
            batches = [_hidden_of(layer(batch, attention_mask=None)) for batch in batches]
        root = "multi_modal_projector.linear_"
        first, second = (
            (checkpoint.tensor(f"{root}{n}.weight").float(), checkpoint.tensor(f"{root}{n}.bias").float())
            for n in (1, 2)
        )
        batches = [F.linear(F.gelu(F.linear(batch, *first)), *second) for batch in batches]
    tokens: Floats = torch.cat(batches).numpy()
    return np.split(tokens, np.cumsum([len(one) for one in views])[:-1])


def _tower_config(checkpoint: Checkpoint) -> Any:
    tower = checkpoint.config.tower
    config = SiglipVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.mlp,
        num_attention_heads=tower.heads,
        layer_norm_eps=tower.eps,
    )
    config._attn_implementation = "sdpa"
    return config


def _hidden_of(output: Any) -> torch.Tensor:
    """transformers 4 gives a tuple, 5 the tensor."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _embed_crops(checkpoint: Checkpoint, views: Sequence[npt.NDArray[np.uint8]]) -> list[torch.Tensor]:
    """Patch and position embeddings `[at most CROPS_AT_ONCE, tokens, width]`, film by film."""
    stem = f"{ROOT}embeddings."
    weight, bias, position = (
        checkpoint.tensor(stem + name).float()
        for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    )
    values = checkpoint.preprocessing
    mean, std = (torch.tensor(values[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    batches = []
    for one in views:
        for start in range(0, len(one), CROPS_AT_ONCE):
            pixels = torch.from_numpy(one[start : start + CROPS_AT_ONCE]).float() * values["rescale"]
            patches = F.conv2d((pixels - mean) / std, weight, bias, stride=weight.shape[-1])
            batches.append(patches.flatten(2).transpose(1, 2) + position)
    return batches


class _Film:
    """One film's hidden states, prefix first, then tail by tail, and where each tail lies."""

    def __init__(self, checkpoint: Checkpoint, sequences: Sequences, embedding: torch.Tensor) -> None:
        head = embedding[torch.tensor(sequences.head, dtype=torch.long)].float()
        tails = [embedding[torch.tensor(tail, dtype=torch.long)].float() for tail in sequences.tails]
        prefix = torch.cat([head, torch.from_numpy(np.asarray(sequences.image, np.float32))])
        self.prefix = len(prefix)
        ends = self.prefix + np.cumsum([len(tail) for tail in tails])
        self.tails = [slice(int(end) - len(tail), int(end)) for end, tail in zip(ends, tails, strict=True)]
        self.hidden = torch.cat([prefix, *tails])
        self.positions = torch.cat(
            [torch.arange(self.prefix), *(self.prefix + torch.arange(len(tail)) for tail in tails)]
        )

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Causal attention within the prefix, and of each tail over prefix and itself.

        q `[heads, tokens, width]`, k and v `[kv heads, tokens, width]`.
        """
        out = torch.empty_like(q)
        front = slice(0, self.prefix)
        if self.prefix:
            out[:, front] = _attention(q[:, front], k[:, front], v[:, front], None)
        for tail in self.tails:
            count = tail.stop - tail.start
            seen = torch.ones(count, self.prefix + count, dtype=torch.bool).tril(self.prefix)
            keys, values = (torch.cat([x[:, front], x[:, tail]], dim=1) for x in (k, v))
            out[:, tail] = _attention(q[:, tail], keys, values, seen)
        return out


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return result[0]


class _Layer:
    """One Qwen2 decoder layer's weights in float32."""

    def __init__(
        self, checkpoint: Checkpoint, index: int, observe: Observe, multiply: Multiply | None
    ) -> None:
        self.multiply = multiply
        self.name = f"language_model.model.layers.{index}."
        self.language = checkpoint.config.language
        self.observe = observe
        self.number = 0
        names = [n.removeprefix(self.name) for n in checkpoint.where if n.startswith(self.name)]
        self.weights = {n: checkpoint.tensor(self.name + n).float() for n in names}

    def __call__(self, number: int, film: _Film, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Run a film's hidden states through the layer, in place."""
        self.number = number
        x = _rms_norm(film.hidden, self.weights["input_layernorm.weight"], self.language.eps)
        q, k, v = (self._heads(f"self_attn.{name}_proj", x) for name in "qkv")
        mixed = film.attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        film.hidden += self._linear("self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        for start in range(0, len(film.hidden), ROWS_AT_ONCE):
            rows = film.hidden[start : start + ROWS_AT_ONCE]
            x = _rms_norm(rows, self.weights["post_attention_layernorm.weight"], self.language.eps)
            gate = F.silu(self._linear("mlp.gate_proj", x, start)) * self._linear("mlp.up_proj", x, start)
            rows += self._linear("mlp.down_proj", gate, start)

    def _heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._linear(name, x).reshape(len(x), -1, self.language.head_dim).transpose(0, 1)

    def _linear(self, name: str, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        self.observe(self.number, start, f"{self.name}{name}.weight", x)
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if self.multiply is None:
            return F.linear(x, weight, bias)
        product = self.multiply(self.number, start, f"{self.name}{name}.weight", x, weight)
        return product if bias is None else product + bias


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _rotation(positions: torch.Tensor, language: Language) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine `[tokens, head width]` of RoPE, halves repeated (NeoX order)."""
    steps = torch.arange(0, language.head_dim, 2, dtype=torch.float32) / language.head_dim
    angles = positions.float()[:, None] / (language.rope_theta**steps)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def stream_hidden(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequences],
    *,
    observe: Observe = _unobserved,
    multiply: Multiply | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[list[torch.Tensor]]:
    """What the output matrix is fed: `[len(tail), d]` for each tail of each film."""
    width = checkpoint.config.language.hidden
    lengths = [len(o.head) + len(o.image) + sum(map(len, o.tails)) for o in sequences]
    results: list[list[torch.Tensor]] = []
    while len(results) < len(sequences):
        first = last = len(results)
        held = 0
        while last < len(sequences) and (last == first or held + lengths[last] * width * 4 <= GROUP_BYTES):
            held += lengths[last] * width * 4
            last += 1
        results += _run_group(checkpoint, sequences[first:last], first, observe, multiply, progress)
    return results


def _run_group(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequences],
    first: int,
    observe: Observe,
    multiply: Multiply | None,
    progress: Callable[[str], None],
) -> list[list[torch.Tensor]]:
    """As `stream_hidden`, for films whose hidden states are held together; `first` is their index."""
    language = checkpoint.config.language
    embedding = checkpoint.tensor("language_model.model.embed_tokens.weight")
    films = [_Film(checkpoint, one, embedding) for one in sequences]
    rotations = [_rotation(film.positions, language) for film in films]
    with torch.no_grad():
        for index in range(language.layers):
            progress(f"reference: language layer {index + 1} of {language.layers}")
            layer = _Layer(checkpoint, index, observe, multiply)
            for number, (film, rotation) in enumerate(zip(films, rotations, strict=True), first):
                layer(number, film, *rotation)
            del layer  # before the next one is read
        norm = checkpoint.tensor("language_model.model.norm.weight").float()
        finals = [_rms_norm(film.hidden, norm, language.eps) for film in films]
        for number, final in enumerate(finals, first):
            observe(number, 0, output_matrix(checkpoint), final)
    return [[final[tail].clone() for tail in film.tails] for film, final in zip(films, finals, strict=True)]


def output_matrix(checkpoint: Checkpoint) -> str:
    """Canonical name of the matrix that turns hidden states into logits."""
    return f"language_model.{'model.embed_tokens' if checkpoint.tied else 'lm_head'}.weight"


class OutputHead:
    """The output matrix, held as the checkpoint stores it and used in float32 some rows at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._matrix = checkpoint.tensor(output_matrix(checkpoint))

    def logits(self, hidden: torch.Tensor) -> Floats:
        """Logits `[t, vocab]` of hidden states `[t, d]`."""
        with torch.no_grad():
            parts = [
                F.linear(hidden, self._matrix[start : start + HEAD_ROWS].float())
                for start in range(0, len(self._matrix), HEAD_ROWS)
            ]
            logits: Floats = torch.cat(parts, dim=1).numpy()
        return logits


def language_logits(checkpoint: Checkpoint, sequences: Sequence[Sequences]) -> Iterator[list[Floats]]:
    """Logits `[len(tail), vocab]` behind every token of every tail, film by film."""
    head = OutputHead(checkpoint)
    for film in stream_hidden(checkpoint, sequences):
        yield [head.logits(hidden) for hidden in film]
