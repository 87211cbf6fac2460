"""A tuned model → a checkpoint folder that `radvlm-edge export` takes, or an adapter for `export --lora`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from radvlm_edge.export.checkpoint import EMBEDDING, HEAD, Checkpoint, canonical, open_checkpoint
from radvlm_edge.training.finetune_recipe import FinetuneRecipe
from radvlm_edge.training.finetune_trainer import save_adapter

TOKENIZER = (
    "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json",
    "generation_config.json", "processor_config.json",
)  # fmt: skip
"""Files of the starting checkpoint that hold for the tuned one and are copied where they exist."""
SHARD = "5GB"


def card(
    checkpoint: Checkpoint, recipe: FinetuneRecipe, data: Mapping[str, Any], start: str
) -> dict[str, Any]:
    """radvlm_edge.json: what the weights are and what they were trained on.

    Never called redistributable: the recipe cannot know what the films' licences allow.
    """
    text = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    tuned = {
        "start_sha256": start,
        "start": checkpoint.facts["name"],
        "recipe": dataclasses.asdict(recipe),
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "data": {"name": data["name"], "inputs": data["inputs"], "pairs": data["pairs"]},
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }
    facts = {key: checkpoint.facts[key] for key in ("demonstration", "render")}
    return {
        "name": recipe.name,
        **facts,
        "redistributable": False,
        "licence": "as the starting checkpoint's and the films'",
        "trained_on": {"tuned": tuned, "before": checkpoint.facts.get("trained_on")},
    }


def write_checkpoint(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    config: Any,
    checkpoint: Checkpoint,
    save_as: str,
    about: Mapping[str, Any],
) -> Path:
    """Write a folder in transformers' form beside its place, read it as an export would, then move it there.

    `state` holds names as in memory. Raises CheckpointError if what was written is not whole.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    kind = getattr(torch, save_as)
    weights = {
        str(canonical(name)): value.detach().to("cpu", kind).contiguous() for name, value in state.items()
    }
    if config.text_config.tie_word_embeddings and EMBEDDING in weights:
        weights.pop(HEAD, None)
    save_torch_state_dict(weights, partial, max_shard_size=SHARD)
    config.save_pretrained(partial)
    written = json.loads((partial / "config.json").read_text()) | {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "dtype": save_as,
    }
    for name in TOKENIZER:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, partial / name)
    files: dict[str, Any] = {
        "config.json": written,
        "tokenizer.json": checkpoint.tokenizer,
        "preprocessor_config.json": checkpoint.processor,
        "chat_template.json": {"chat_template": checkpoint.prompting.chat_template},
        "radvlm_edge.json": about,
    }
    if not (partial / "generation_config.json").exists():
        files["generation_config.json"] = {"eos_token_id": list(checkpoint.prompting.stop_ids)}
    for name, content in files.items():
        (partial / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    for path in partial.glob("*.safetensors"):
        path.chmod(0o644)
    open_checkpoint(partial)
    partial.rename(folder)
    return folder


def write_adapter(
    folder: Path, model: Any, state: Any, checkpoint: Checkpoint, about: Mapping[str, Any]
) -> Path:
    """Write peft's files beside their place, see that they fit the starting checkpoint, then move them."""
    partial = folder.with_name(f".{folder.name}.partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    save_adapter(model, partial, state)
    settings = json.loads((partial / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(checkpoint.facts["name"])  # a path would be this machine's
    (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (partial / "radvlm_edge.json").write_text(json.dumps(about, indent=2) + "\n")
    (partial / "README.md").unlink(missing_ok=True)  # peft's empty model card
    open_checkpoint(checkpoint.folder, lora=partial)
    partial.rename(folder)
    return folder
