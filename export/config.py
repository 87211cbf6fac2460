"""config.json, as transformers 4 or 5 wrote it → the sizes an export depends on.

Nothing is defaulted that transformers has ever defaulted differently: it is read or refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.errors import CheckpointError
from radvlm_edge.geometry import Geometry

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"


@dataclass(frozen=True)
class Tower:
    """SigLIP's sizes."""

    width: int
    mlp: int
    layers: int
    """Layers in the file."""
    used_layers: int
    """Layers that run: `vision_feature_layer` picks an encoder output before post_layernorm."""
    heads: int
    eps: float


@dataclass(frozen=True)
class Language:
    """Qwen2's sizes."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    eps: float
    rope_theta: float
    context: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Config:
    """Everything of config.json that matters here."""

    geometry: Geometry
    tower: Tower
    language: Language
    image_token_id: int
    raw: dict[str, Any]

    def tensor_shapes(self, *, tied: bool) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of every tensor a whole checkpoint holds."""
        shapes = {**self._tower_shapes(), **self._language_shapes()}
        d, w = self.language.hidden, self.tower.width
        shapes |= {
            "multi_modal_projector.linear_1.weight": (d, w),
            "multi_modal_projector.linear_1.bias": (d,),
            "multi_modal_projector.linear_2.weight": (d, d),
            "multi_modal_projector.linear_2.bias": (d,),
            "image_newline": (d,),
        }
        if not tied:
            shapes["language_model.lm_head.weight"] = (self.language.vocab, d)
        return shapes

    def _tower_shapes(self) -> dict[str, tuple[int, ...]]:
        w, m, patch = self.tower.width, self.tower.mlp, self.geometry.patch_px
        root = "vision_tower.vision_model."
        shapes: dict[str, tuple[int, ...]] = {
            f"{root}embeddings.patch_embedding.weight": (w, 3, patch, patch),
            f"{root}embeddings.patch_embedding.bias": (w,),
            f"{root}embeddings.position_embedding.weight": (self.geometry.tokens_per_crop, w),
            f"{root}post_layernorm.weight": (w,),
            f"{root}post_layernorm.bias": (w,),
        }
        for i in range(self.tower.layers):
            layer = f"{root}encoder.layers.{i}."
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{layer}{norm}.weight": (w,), f"{layer}{norm}.bias": (w,)}
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= {f"{layer}self_attn.{name}.weight": (w, w), f"{layer}self_attn.{name}.bias": (w,)}
            shapes |= {f"{layer}mlp.fc1.weight": (m, w), f"{layer}mlp.fc1.bias": (m,)}
            shapes |= {f"{layer}mlp.fc2.weight": (w, m), f"{layer}mlp.fc2.bias": (w,)}
        return shapes

    def _language_shapes(self) -> dict[str, tuple[int, ...]]:
        lm = self.language
        d, kv = lm.hidden, lm.kv_heads * lm.head_dim
        root = "language_model.model."
        shapes: dict[str, tuple[int, ...]] = {
            f"{root}embed_tokens.weight": (lm.vocab, d),
            f"{root}norm.weight": (d,),
        }
        for i in range(lm.layers):
            layer = f"{root}layers.{i}."
            for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
                shapes |= {
                    f"{layer}self_attn.{name}.weight": (rows, d),
                    f"{layer}self_attn.{name}.bias": (rows,),
                }
            shapes |= {
                f"{layer}self_attn.o_proj.weight": (d, d),
                f"{layer}mlp.gate_proj.weight": (lm.mlp, d),
                f"{layer}mlp.up_proj.weight": (lm.mlp, d),
                f"{layer}mlp.down_proj.weight": (d, lm.mlp),
                f"{layer}input_layernorm.weight": (d,),
                f"{layer}post_attention_layernorm.weight": (d,),
            }
        return shapes


def parse_config(raw: dict[str, Any], folder: Path) -> Config:
    """Read a config.json's content.

    Raises CheckpointError for another architecture, a missing size, or a variant not exported.
    """
    architecture = (raw.get("architectures") or ["none"])[0]
    if architecture != ARCHITECTURE:
        raise CheckpointError(
            f"{folder / 'config.json'}: architecture {architecture}; only {ARCHITECTURE} is exported"
        )
    try:
        tower, language = _tower(raw), _language(raw["text_config"])
        _refuse_variants(raw)
        geometry = _geometry(raw, language)
        token = raw["image_token_index"] if "image_token_index" in raw else raw["image_token_id"]
        return Config(geometry, tower, language, int(token), raw)
    except KeyError as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: {error} is not stated, and is never guessed"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def _tower(raw: dict[str, Any]) -> Tower:
    vision = raw["vision_config"]
    layers, feature = int(vision["num_hidden_layers"]), raw.get("vision_feature_layer", -1)
    if not isinstance(feature, int) or not -layers <= feature <= layers:
        raise ValueError(f"vision_feature_layer {feature!r} is none of the tower's {layers} layers")
    return Tower(
        width=int(vision["hidden_size"]),
        mlp=int(vision["intermediate_size"]),
        layers=layers,
        used_layers=feature if feature >= 0 else layers + 1 + feature,
        heads=int(vision["num_attention_heads"]),
        eps=float(vision.get("layer_norm_eps", 1e-6)),
    )


def _language(text: dict[str, Any]) -> Language:
    rope = text.get("rope_parameters") or {}
    scaling = text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        raise ValueError(f"rope scaling {kind!r} is not exported, only plain RoPE")
    if text.get("use_sliding_window"):
        raise ValueError("use_sliding_window is true; only full attention is exported")
    return Language(
        hidden=int(text["hidden_size"]),
        mlp=int(text["intermediate_size"]),
        layers=int(text["num_hidden_layers"]),
        heads=int(text["num_attention_heads"]),
        kv_heads=int(text["num_key_value_heads"]),
        vocab=int(text["vocab_size"]),
        eps=float(text.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope["rope_theta"] if rope else text["rope_theta"]),
        context=int(text.get("max_position_embeddings", 32768)),
    )


def _refuse_variants(raw: dict[str, Any]) -> None:
    """Values under which the exported graphs would say something else than the checkpoint."""
    stated = {
        "vision_feature_select_strategy": (raw.get("vision_feature_select_strategy", "full"), "full"),
        "projector_hidden_act": (raw.get("projector_hidden_act", "gelu"), "gelu"),
        "multimodal_projector_bias": (raw.get("multimodal_projector_bias", True), True),
        "vision_config.hidden_act": (
            raw["vision_config"].get("hidden_act", "gelu_pytorch_tanh"),
            "gelu_pytorch_tanh",
        ),
        "text_config.hidden_act": (raw["text_config"].get("hidden_act", "silu"), "silu"),
        "vision_config.model_type": (
            raw["vision_config"].get("model_type", "siglip_vision_model"),
            "siglip_vision_model",
        ),
        "text_config.model_type": (raw["text_config"].get("model_type", "qwen2"), "qwen2"),
    }
    for name, (value, accepted) in stated.items():
        if value != accepted:
            raise ValueError(f"{name} is {value!r}; only {accepted!r} is exported")


def _geometry(raw: dict[str, Any], language: Language) -> Geometry:
    vision = raw["vision_config"]
    ratio = re.fullmatch(r"anyres_max_(\d+)", str(raw.get("vision_aspect_ratio", "anyres_max_9")))
    if ratio is None:
        raise ValueError(
            f"vision_aspect_ratio is {raw['vision_aspect_ratio']!r}; only anyres_max_N is exported"
        )
    crop, patch = int(vision["image_size"]), int(vision["patch_size"])
    pinpoints = tuple((int(h), int(w)) for h, w in raw["image_grid_pinpoints"])
    if not 0 < patch <= crop or any(side % crop for pair in pinpoints for side in pair):
        raise ValueError(
            f"pinpoints {pinpoints} are not made of crops of {crop} px, or a patch of {patch} px is larger; "
            "they do not divide"
        )
    return Geometry(
        crop_px=crop,
        patch_px=patch,
        pinpoints=pinpoints,
        max_crops=int(ratio[1]),
        embed_dim=language.hidden,
        layers=language.layers,
        kv_heads=language.kv_heads,
        head_dim=language.head_dim,
        context=language.context,
        vocab=language.vocab,
    )
