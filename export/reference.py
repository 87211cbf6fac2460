"""The checkpoint in transformers, built through our own key map: what parity compares with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from radvlm_edge.export.checkpoint import Checkpoint


def model_config(checkpoint: Checkpoint) -> Any:
    """transformers' configuration of a checkpoint."""
    config, tower, language = checkpoint.config, checkpoint.config.tower, checkpoint.config.language
    geometry = config.geometry
    vision = SiglipVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.mlp,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        layer_norm_eps=tower.eps,
        image_size=geometry.crop_px,
        patch_size=geometry.patch_px,
        vision_use_head=False,
    )
    text = Qwen2Config(
        hidden_size=language.hidden,
        intermediate_size=language.mlp,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads,
        vocab_size=language.vocab,
        rms_norm_eps=language.eps,
        rope_theta=language.rope_theta,
        max_position_embeddings=language.context,
        tie_word_embeddings=checkpoint.tied,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=config.image_token_id,
        image_grid_pinpoints=[list(pair) for pair in geometry.pinpoints],
        vision_aspect_ratio=f"anyres_max_{geometry.max_crops}",
        vision_feature_layer=tower.used_layers,
        vision_feature_select_strategy="full",
        tie_word_embeddings=checkpoint.tied,
    )


def build_reference(checkpoint: Checkpoint) -> Any:
    """transformers' model in float32, every tensor loaded (`strict=True`) under our names.

    The whole model is in memory: for small checkpoints, and to check `streaming_reference` against.
    """
    model = LlavaOnevisionForConditionalGeneration(model_config(checkpoint)).float().eval()
    state = {in_memory(name): checkpoint.tensor(name).float() for name in checkpoint.where}
    if checkpoint.tied:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def in_memory(name: str) -> str:
    """Canonical name → the name inside transformers 4.57's model."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def image_features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projected tokens `[n, tokens, d]` of normalised crops `[n, 3, S, S]`, by transformers' modules."""
    layer = model.config.vision_feature_layer
    with torch.no_grad():
        hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[layer]
        tokens: torch.Tensor = model.model.multi_modal_projector(hidden)
    return tokens


def language_logits(
    model: Any, head: list[int], image: npt.NDArray[np.float32], tail: list[int]
) -> npt.NDArray[np.float32]:
    """transformers' logits `[len(tail), vocab]` behind every token of `tail`.

    The sequence is token ids `head`, embeddings `image` `[t, d]`, token ids `tail`.
    """
    embed = model.get_input_embeddings()
    with torch.no_grad():
        before, behind = (embed(torch.tensor(ids, dtype=torch.long)) for ids in (head, tail))
        whole = torch.cat([before, torch.from_numpy(image), behind])[None]
        hidden = model.model.language_model(inputs_embeds=whole).last_hidden_state
        logits: npt.NDArray[np.float32] = model.lm_head(hidden[0, -len(tail) :]).numpy()
    return logits
