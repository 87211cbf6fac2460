"""The checkpoint in transformers' own modules, one layer in memory at a time, many prompts a pass.

What parity and golden values compare with (fidelity: shared_prefix.py). A whole 7B model in float32 takes
32 GB; a pass here takes one decoder layer (0.9 GB) and the hidden states of the sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import LlavaOnevisionModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from radvlm_edge.export.checkpoint import EMBEDDING, HEAD, Checkpoint
from radvlm_edge.export.language import MASKED
from radvlm_edge.export.numbers import row_blocks
from radvlm_edge.export.reference import model_config

Floats = npt.NDArray[np.float32]
Part = list[int] | Floats
"""Token ids, or embeddings `[t, d]`."""
Watch = Callable[[str, torch.Tensor], None]
"""Called with a matrix's canonical name and its input `[t, in]` float32, once a sequence."""

TOWER = "vision_tower.vision_model."
CROPS_AT_ONCE = 2


def language_logits(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[Part]],
    *,
    keep: Sequence[int] | None = None,
    watch: Watch | None = None,
    advance: Callable[[int], None] = lambda layers: None,
) -> list[Floats]:
    """transformers' logits `[keep, vocab]` float32 of each sequence, in one pass over the layers.

    A sequence is its parts one after another: token ids and embeddings. `keep` says for each how many of
    its last positions are wanted (all without it). Rows that are no token are `MASKED`, as in the GGUF:
    leave them out (`checkpoint.unused`) before taking a mean or deviation. `advance` is called once a
    layer. Raises ValueError for an empty sequence.
    """
    hidden = language_states(checkpoint, sequences, watch=watch, advance=advance)
    wanted = [len(h) for h in hidden] if keep is None else keep
    rows = torch.cat([h[len(h) - count :] for h, count in zip(hidden, wanted, strict=True)])
    name = EMBEDDING if checkpoint.tied else HEAD
    if watch is not None:
        watch(name, rows)
    logits = np.empty((len(rows), checkpoint.config.language.vocab), np.float32)
    at = 0
    for block in row_blocks(checkpoint.tensor(name)):
        logits[:, at : at + len(block)] = (rows @ block.float().T).numpy()
        at += len(block)
    logits[:, checkpoint.unused] = MASKED
    return np.split(logits, np.cumsum(wanted)[:-1])


def language_states(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[Part]],
    *,
    watch: Watch | None = None,
    advance: Callable[[int], None] = lambda layers: None,
) -> list[torch.Tensor]:
    """Normed last hidden states `[t, d]` float32 of each sequence; see `language_logits`."""
    if not all(sum(len(part) for part in parts) for parts in sequences):
        raise ValueError("a sequence is empty")
    text = model_config(checkpoint).text_config
    text._attn_implementation = "sdpa"
    embedding = checkpoint.tensor(EMBEDDING)
    hidden = [torch.cat([_embed(part, embedding) for part in parts])[None] for parts in sequences]
    rotary = Qwen2RotaryEmbedding(text)
    with torch.no_grad():
        layer = Qwen2DecoderLayer(text, layer_idx=0).float().eval()
        for index in range(checkpoint.config.language.layers):
            prefix = f"language_model.model.layers.{index}."
            _load(layer, checkpoint, prefix)
            with _watched(layer, prefix, watch):
                for number, x in enumerate(hidden):
                    positions = torch.arange(x.shape[1])[None]
                    hidden[number] = _first(
                        layer(
                            x,
                            attention_mask=None,
                            position_ids=positions,
                            position_embeddings=rotary(x, positions),
                        )
                    )
            advance(1)
        norm = Qwen2RMSNorm(text.hidden_size, eps=text.rms_norm_eps).float()
        _load(norm, checkpoint, "language_model.model.norm.")
        normed: list[torch.Tensor] = [norm(x)[0] for x in hidden]
        return normed


def image_features(checkpoint: Checkpoint, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projected tokens `[n, tokens, d]` float32 of normalised crops `[n, 3, S, S]`."""
    config = model_config(checkpoint)
    vision = config.vision_config
    vision._attn_implementation = "sdpa"
    with torch.no_grad():
        embeddings = SiglipVisionEmbeddings(vision).float()
        _load(embeddings, checkpoint, f"{TOWER}embeddings.")
        parts = torch.split(pixel_values.float(), CROPS_AT_ONCE)
        crops = [embeddings(part) for part in parts]
        layer = SiglipEncoderLayer(vision).float().eval()
        for index in range(checkpoint.config.tower.used_layers):
            _load(layer, checkpoint, f"{TOWER}encoder.layers.{index}.")
            crops = [_first(layer(x, attention_mask=None)) for x in crops]
        projector = LlavaOnevisionMultiModalProjector(config).float()
        _load(projector, checkpoint, "multi_modal_projector.")
        tokens: list[torch.Tensor] = [projector(x) for x in crops]
        return torch.cat(tokens)


def pack_image_features(
    checkpoint: Checkpoint, features: torch.Tensor, height: int, width: int, newline: torch.Tensor
) -> Floats:
    """transformers' packing of projected crops `[n, tokens, d]` of a film of `height` × `width` pixels."""
    owner: Any = SimpleNamespace(config=model_config(checkpoint))  # all of the model that it uses
    with torch.no_grad():
        packed, _ = LlavaOnevisionModel.pack_image_features(
            owner,
            [features],
            torch.tensor([[height, width]]),
            image_newline=newline,
            vision_aspect_ratio=f"anyres_max_{checkpoint.config.geometry.max_crops}",
        )
    tokens: Floats = packed[0].numpy()
    return tokens


def normalise(checkpoint: Checkpoint, views: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Crops `[n, 3, S, S]` uint8 → float32 as the reference's tower wants them."""
    values = checkpoint.preprocessing
    mean, std = (torch.tensor(values[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    normalised: torch.Tensor = (torch.from_numpy(views).float() * values["rescale"] - mean) / std
    return normalised


def _embed(part: Part, embedding: torch.Tensor) -> torch.Tensor:
    if isinstance(part, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
    return embedding[torch.tensor(list(part), dtype=torch.long)].float()


def _load(module: nn.Module, checkpoint: Checkpoint, prefix: str) -> None:
    """Copy the checkpoint's tensors into a module's parameters, converting as they go."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(checkpoint.tensor(prefix + name))


def _first(output: Any) -> torch.Tensor:
    """A layer's hidden states: transformers returns a tuple or the tensor, by version."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@contextmanager
def _watched(layer: nn.Module, prefix: str, watch: Watch | None) -> Iterator[None]:
    handles = []
    if watch is not None:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(_hook(f"{prefix}{name}.weight", watch)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, watch: Watch) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        watch(name, inputs[0].reshape(-1, inputs[0].shape[-1]))

    return hook
