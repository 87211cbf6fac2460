"""Sizes → an untrained LLaVA-OneVision of RadVLM's class, and a checkpoint folder in HF's form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from radvlm_edge.errors import RecipeError
from radvlm_edge.geometry import Geometry
from radvlm_edge.training.tokenizer import END_OF_TEXT, IMAGE, TURN_END, VIDEO, save_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""RadVLM's conversation: no system prompt, images before the question's text."""


@dataclass(frozen=True)
class Sizes:
    """What a recipe may choose about the network."""

    crop_px: int = 112
    patch_px: int = 14
    pinpoints: tuple[tuple[int, int], ...] = ((112, 112), (112, 224), (224, 112), (224, 224))
    """Canvas sizes (height, width) in pixels."""
    tower_width: int = 192
    tower_layers: int = 5
    tower_heads: int = 4
    tower_mlp: int = 768
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    context: int = 2048
    """Longest sequence in tokens."""

    def __post_init__(self) -> None:
        sides = {side for pair in self.pinpoints for side in pair}
        if self.crop_px % self.patch_px or any(side % self.crop_px for side in sides):
            raise RecipeError(
                f"crop {self.crop_px} px must be a multiple of patch {self.patch_px} px, "
                f"and pinpoints {self.pinpoints} multiples of the crop"
            )
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise RecipeError(
                f"kv_heads {self.kv_heads} must divide heads {self.heads}, and heads hidden {self.hidden}"
            )

    def geometry(self, vocab: int) -> Geometry:
        """The same sizes as the runtime's crops and packing read them."""
        return Geometry(
            crop_px=self.crop_px,
            patch_px=self.patch_px,
            pinpoints=self.pinpoints,
            max_crops=9,
            embed_dim=self.hidden,
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            context=self.context,
            vocab=vocab,
        )


def _config(sizes: Sizes, tokenizer: Any) -> LlavaOnevisionConfig:
    ids = {token: tokenizer.token_to_id(token) for token in (END_OF_TEXT, TURN_END, IMAGE, VIDEO)}
    vocab = -(-tokenizer.get_vocab_size(with_added_tokens=True) // 64) * 64  # padding rows as in RadVLM
    vision = SiglipVisionConfig(
        hidden_size=sizes.tower_width,
        intermediate_size=sizes.tower_mlp,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=sizes.tower_heads,
        image_size=sizes.crop_px,
        patch_size=sizes.patch_px,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.context,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        use_sliding_window=False,
        tie_word_embeddings=True,
        bos_token_id=ids[END_OF_TEXT],
        pad_token_id=ids[END_OF_TEXT],
        eos_token_id=ids[TURN_END],
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        video_token_index=ids[VIDEO],
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[list(pair) for pair in sizes.pinpoints],
        multimodal_projector_bias=True,
        use_image_newline_parameter=True,
        tie_word_embeddings=True,
    )


def build_model(sizes: Sizes, tokenizer: Any, seed: int) -> LlavaOnevisionForConditionalGeneration:
    """Random weights for these sizes; the vocabulary is padded to a multiple of 64 rows."""
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(_config(sizes, tokenizer))
    model.tie_weights()
    with torch.no_grad():  # transformers' draws are for wide models: a narrow one starts too quiet
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
                # what a layer of the language model adds must not drown a token's embedding
                quiet = "language_model" in name and ("o_proj" in name or "down_proj" in name)
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * (0.05 if quiet else 0.7))
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.05)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.text_config.bos_token_id,
        pad_token_id=model.config.text_config.pad_token_id,
        eos_token_id=model.config.text_config.eos_token_id,
        do_sample=False,
    )
    return model


def _preprocessor(sizes: Sizes) -> dict[str, Any]:
    side = {"height": sizes.crop_px, "width": sizes.crop_px}
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": side,
        "image_grid_pinpoints": [list(pair) for pair in sizes.pinpoints],
    }


def save_checkpoint(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: Any,
    sizes: Sizes,
    folder: Path,
    card: dict[str, Any],
) -> None:
    """Write fp16 weights and every JSON file that readers of the real checkpoint expect.

    `card` becomes radvlm_edge.json: name, licence, and what the weights were trained on.
    """
    save_tokenizer(tokenizer, folder)
    halves = {key: value.detach().to(torch.float16).contiguous() for key, value in model.state_dict().items()}
    halves.pop("lm_head.weight")  # tied: readers take its absence as the proof
    model.save_pretrained(folder, state_dict=halves, safe_serialization=True)
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    files = {
        "config.json": config,
        "preprocessor_config.json": _preprocessor(sizes),
        "processor_config.json": {
            "image_token": IMAGE,
            "num_image_tokens": (sizes.crop_px // sizes.patch_px) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": VIDEO,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_select_strategy": "full",
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "radvlm_edge.json": card,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
