"""Seeded random checkpoints of RadVLM's class, small enough that a test exports one in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from radvlm_edge.training.model import Sizes, build_model, save_checkpoint
from radvlm_edge.training.tokenizer import build_tokenizer

SIZES = Sizes(
    crop_px=28,
    patch_px=7,
    pinpoints=tuple((28 * rows, 28 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)),
    tower_width=32,
    tower_layers=2,
    tower_heads=2,
    tower_mlp=48,
    hidden=256,
    intermediate=256,
    layers=2,
    heads=4,
    kv_heads=2,
    context=4096,
)
TEXTS = ["any effusion?", "Yes, there is a left pleural effusion.", "Provide a radiology report."] * 4

SPELLINGS: dict[str, Callable[[str], str]] = {
    "transformers 4.46 to 4.57 files": lambda name: name,
    "transformers 4.57 in memory": lambda name: (
        name.replace("language_model.lm_head", "lm_head")
        if name.startswith("language_model.lm_head")
        else "model." + name.replace("language_model.model.", "language_model.")
    ),
    "transformers 5 files": lambda name: name.replace("vision_tower.vision_model.", "vision_tower."),
    "transformers 5 in memory": lambda name: (
        name.replace("language_model.lm_head", "lm_head")
        if name.startswith("language_model.lm_head")
        else "model."
        + name.replace("vision_tower.vision_model.", "vision_tower.").replace(
            "language_model.model.", "language_model."
        )
    ),
    "LLaVA-NeXT training": lambda name: (
        name.removeprefix("language_model.")
        if name.startswith("language_model.")
        else "model."
        + name.replace("vision_tower.", "vision_tower.vision_tower.")
        .replace("multi_modal_projector.linear_1", "mm_projector.0")
        .replace("multi_modal_projector.linear_2", "mm_projector.2")
    ),
}
"""Who wrote a checkpoint → how it spells a name of transformers 4.46's files (facts checked against
each version's own saved files)."""


FORMS = ("safetensors", "bin")


def write_film(path: Path, seed: int, height: int, width: int) -> Path:
    """A picture of seeded noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    spelling: str = "transformers 4.46 to 4.57 files",
    tied: bool = True,
    shards: int = 1,
    form: str = "safetensors",
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint folder; the same arguments give the same weights under every spelling."""
    tokenizer = build_tokenizer(TEXTS, 300)
    model = build_model(SIZES, tokenizer, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # zeros and ones would hide a swapped bias or norm
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(model, tokenizer, SIZES, folder, {"name": "tiny", "render": "voi"})
    config = json.loads((folder / "config.json").read_text())
    config["vision_aspect_ratio"] = "anyres_max_4"  # so that large films are interpolated
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    if spelling.startswith("transformers 5"):
        text = config["text_config"]
        text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
        text.pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(config))

    state = load_file(folder / "model.safetensors")
    if not tied:
        embedding = state["language_model.model.embed_tokens.weight"]
        state["language_model.lm_head.weight"] = (
            torch.randn(embedding.shape, generator=generator).half() * 0.1
        )
    if spelling == "LLaVA-NeXT training":
        as_training_leaves_it(folder, state)
    (folder / "model.safetensors").unlink()
    write_weights(
        folder,
        {SPELLINGS[spelling](name): t.to(dtype) for name, t in state.items()},
        shards=shards,
        form=form,
    )
    return folder


def as_training_leaves_it(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Turn a folder into what RadVLM's training writes: another config.json, files and tokens missing, one
    tower layer more than is used. `state` (canonical names) gains that layer.
    """
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    last = vision["num_hidden_layers"]
    layers = "vision_tower.vision_model.encoder.layers."
    generator = torch.Generator().manual_seed(27)
    for name in [name for name in state if name.startswith(f"{layers}0.")]:
        noise = torch.randn(state[name].shape, generator=generator)
        state[name.replace(f"{layers}0.", f"{layers}{last}.")] = noise.to(state[name].dtype)
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    kept += ("num_key_value_heads", "rope_theta", "rms_norm_eps", "max_position_embeddings", "hidden_act")
    original = {
        **{key: text[key] for key in kept},
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "tie_word_embeddings": config["tie_word_embeddings"],
        "image_aspect_ratio": config["vision_aspect_ratio"],
        "image_grid_pinpoints": config["image_grid_pinpoints"],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "somewhere/a-tiny-siglip",
        "vision_config": {**vision, "num_hidden_layers": last + 1},  # heads cannot be read from shapes
    }
    (folder / "config.json").write_text(json.dumps(original))
    for name in ("preprocessor_config.json", "chat_template.json", "processor_config.json"):
        (folder / name).unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] not in ("<image>", "<video>")
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_weights(
    folder: Path, state: dict[str, torch.Tensor], *, shards: int = 1, form: str = "safetensors"
) -> None:
    """Write tensors as transformers names and shards them: `safetensors`, or `bin` of torch.save."""
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for index in range(shards):
        name = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{index + 1:05}-of-{shards:05}.{suffix}"
        part = dict(list(state.items())[index::shards])
        if form == "safetensors":
            save_file(part, folder / name, {"format": "pt"})
        else:
            torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index_name = f"{stem}.{suffix}.index.json"
        (folder / index_name).write_text(json.dumps({"weight_map": weight_map}))
