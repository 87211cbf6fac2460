"""Seeded random checkpoints of RadVLM's class, small enough that a test exports one in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
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
}
"""Who wrote a checkpoint → how it spells a name of transformers 4.46's files (facts checked against
each version's own saved files)."""


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    spelling: str = "transformers 4.46 to 4.57 files",
    tied: bool = True,
    shards: int = 1,
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
    state = {SPELLINGS[spelling](name): tensor for name, tensor in state.items()}
    (folder / "model.safetensors").unlink()
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(state.items())[index::shards])
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
