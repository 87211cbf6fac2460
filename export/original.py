"""The layout RadVLM's own training writes (LLaVA-NeXT's): what its folder leaves out, as data.

Such a folder has no vision section, preprocessor, chat template or `<image>` token; the code that
trained it holds them. Sources: uzh-dqbm-cmi/RadVLM finetuning/llava (siglip_encoder.py, mm_utils.py),
and its converter radvlm/evaluation/convert_llava_onevision_weights_to_hf.py, whose result the authors
evaluate and publish.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

ARCHITECTURES = ("LlavaQwenForCausalLM",)

SPELLINGS = (
    (re.compile(r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?"), "vision_tower.vision_model."),
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^model\.(?=embed_tokens\.|layers\.|norm\.)"), "language_model.model."),
)
"""Names in its files → the names of transformers 4.46's files."""

TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
    },
}
"""`mm_vision_tower`'s last part → the tower's config.json (google/siglip-so400m-patch14-384)."""

OPTIONAL = (
    *("rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "use_sliding_window"),
    *("max_position_embeddings", "hidden_act", "tie_word_embeddings"),
)
"""Settings of the language model that stand beside its sizes."""

IMAGE, VIDEO = "<image>", "<video>"
"""Tokens the converter adds, in this order, at the tokenizer's first free ids."""

PROCESSOR: dict[str, Any] = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "resample": 3,
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
}
"""google/siglip-so400m-patch14-384's preprocessor_config.json, which the converter copies."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
"""Renders the prompts of radvlm/evaluation/models_loading_inference.py: no system prompt, the image
before the question."""


def is_original(raw: Mapping[str, Any]) -> bool:
    """True for a config.json of LLaVA-NeXT's training code."""
    return (raw.get("architectures") or [None])[0] in ARCHITECTURES


def as_hugging_face(raw: Mapping[str, Any], names: Iterable[str], image_token_id: int) -> dict[str, Any]:
    """A config.json of the training code → what transformers would call the same model.

    `names` are the canonical tensor names: the tower's layers are counted there, as some writers keep
    the last layer and some delete it; it never runs. Raises KeyError or ValueError for what is not known.
    """
    refuse_variants(raw)
    tower = dict(_tower(raw))
    used = int(tower["num_hidden_layers"]) + 1 + int(raw.get("mm_vision_select_layer", -2))
    held = {int(n.split(".")[4]) for n in names if n.startswith("vision_tower.vision_model.encoder.layers.")}
    if used < 1 or not held or used > max(held) + 1:
        raise ValueError(
            f"mm_vision_select_layer {raw.get('mm_vision_select_layer', -2)} needs {used} tower layers, "
            f"the files hold {len(held)}"
        )
    tower["num_hidden_layers"] = max(held) + 1
    text = {key: raw[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {key: raw[key] for key in ("num_attention_heads", "num_key_value_heads", "vocab_size")}
    text |= {key: raw[key] for key in OPTIONAL if key in raw}
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "original_architecture": raw["architectures"][0],
        "text_config": text,
        "vision_config": tower,
        "vision_feature_layer": used,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": raw["image_aspect_ratio"],
        "image_grid_pinpoints": pinpoints(raw["image_grid_pinpoints"], int(tower["image_size"])),
        "image_token_index": image_token_id,
        "projector_hidden_act": "gelu",
    }


def refuse_variants(raw: Mapping[str, Any]) -> None:
    """Settings under which the training code computes something else than what is exported."""
    accepted = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_vision_select_feature": "patch",
        "mm_resampler_type": None,
        "mm_use_im_start_end": False,
    }
    for name, value in accepted.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{name} is {raw[name]!r}; only {value!r} is exported")


def _tower(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(raw.get("vision_config"), dict):
        return dict(raw["vision_config"])
    name = str(raw["mm_vision_tower"]).rstrip("/").rsplit("/", 1)[-1]
    if name not in TOWERS:
        raise ValueError(
            f"mm_vision_tower {raw['mm_vision_tower']!r} is not known (known: {', '.join(TOWERS)}); "
            "put its config's sizes into config.json as vision_config"
        )
    return TOWERS[name]


def pinpoints(stated: Any, crop_px: int) -> list[list[int]]:
    """Canvas sizes as (height, width) in pixels, from a list of pairs or `(1x1),...,(6x6)`.

    LLaVA-NeXT lists (width, height). A set that holds both of every pair is left in its order, as the
    authors' converter leaves it; any other is turned round.
    """
    if isinstance(stated, str):
        corners = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", stated)]
        if len(corners) != 2 or "..." not in stated:
            raise ValueError(f"image_grid_pinpoints {stated!r} is neither a list nor '(1x1),...,(6x6)'")
        (w0, h0), (w1, h1) = corners
        pairs = [[w * crop_px, h * crop_px] for w in range(w0, w1 + 1) for h in range(h0, h1 + 1)]
    else:
        pairs = [[int(a), int(b)] for a, b in stated]
    if {(a, b) for a, b in pairs} == {(b, a) for a, b in pairs}:
        return pairs
    return [[b, a] for a, b in pairs]


def with_image_tokens(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json's content with `<image>` and `<video>` as the converter adds them."""
    added = list(tokenizer.get("added_tokens", []))
    held = {token["content"] for token in added}
    free = 1 + max([*tokenizer["model"]["vocab"].values(), *(int(token["id"]) for token in added)])
    for content in (IMAGE, VIDEO):
        if content not in held:
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": free, "content": content, **plain, "special": True})
            free += 1
    return {**tokenizer, "added_tokens": added}
