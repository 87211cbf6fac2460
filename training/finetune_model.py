"""A checkpoint in any layout → transformers' model, its parts frozen, adapted and grouped by a recipe."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import torch
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from radvlm_edge.errors import CheckpointError, RecipeError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.reference import in_memory, model_config
from radvlm_edge.training.finetune_recipe import PARTS, FinetuneRecipe, Lora

LINEAR = {
    "tower": r".*vision_tower\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    "projector": r".*multi_modal_projector\.linear_[12]",
    "language": r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
}
"""Part → the linear layers that get adapters, as a pattern of module names."""


def part_of(name: str) -> str:
    """The part a parameter belongs to, by its name in transformers' model (wrapped or not)."""
    if "vision_tower." in name:
        return "tower"
    return "projector" if "multi_modal_projector." in name else "language"


def load_model(checkpoint: Checkpoint, recipe: FinetuneRecipe) -> Any:
    """The whole model, through our own key map, so that every layout and spelling loads.

    Weights are float32, which updates need; frozen ones under adapters are bfloat16 where the recipe
    computes in it. Raises CheckpointError for a tensor that found no place.
    """
    config = model_config(checkpoint)
    config.video_token_index = _video_id(checkpoint)
    config.use_cache = config.text_config.use_cache = False
    dtype = torch.bfloat16 if recipe.lora and recipe.precision == "bf16" else torch.float32
    state = {in_memory(name): checkpoint.tensor(name) for name in checkpoint.where}
    if checkpoint.tied:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    quantised: dict[str, Any] = _four_bits() if recipe.lora and recipe.lora.quantised else {}
    model, found = LlavaOnevisionForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        attn_implementation="sdpa",
        output_loading_info=True,
        **quantised,
    )
    problems = [f"missing {name}" for name in sorted(found["missing_keys"]) if name != "lm_head.weight"]
    problems += [f"unknown {name}" for name in sorted(found["unexpected_keys"])]
    problems += [f"mis-shaped {name}" for name in found["mismatched_keys"]]
    if problems:
        raise CheckpointError(f"{checkpoint.folder}: did not load into transformers: {'; '.join(problems)}")
    return model


def _video_id(checkpoint: Checkpoint) -> int:
    """The id of `<video>`, which is never used; one that no text has where there is none."""
    for token in checkpoint.tokenizer.get("added_tokens", []):
        if token["content"] == "<video>":
            return int(token["id"])
    return checkpoint.config.language.vocab


def _four_bits() -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise RecipeError("lora, quantised: needs an NVIDIA GPU (torch sees none); set quantised: false")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("lora, quantised: needs bitsandbytes; pip install 'radvlm-edge[qlora]'")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )
    return {"quantization_config": settings, "device_map": {"": torch.cuda.current_device()}}


def never_run(name: str, used_layers: int) -> bool:
    """Parameters no answer depends on: what lies behind the tower's layer whose output is taken."""
    layer = re.search(r"vision_tower\..*encoder\.layers\.(\d+)\.", name)
    return "post_layernorm." in name or (layer is not None and int(layer[1]) >= used_layers)


def prepare(model: Any, recipe: FinetuneRecipe, used_layers: int) -> Any:
    """Freeze what has no rate, put adapters where the recipe says; returns the model to train."""
    if recipe.lora:
        model = _adapted(model, recipe.lora, recipe)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained = recipe.rates.of(part) is not None and not never_run(name, used_layers)
        if recipe.lora:  # peft decided which halves and whole modules are trained
            trained = trained and parameter.requires_grad
        if parameter.is_floating_point():  # four-bit weights are not
            parameter.requires_grad_(trained)
            if trained:
                parameter.data = parameter.data.float()
    if recipe.checkpointing and recipe.lora:
        model.enable_input_require_grads()
    return model


def _adapted(model: Any, lora: Lora, recipe: FinetuneRecipe) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise RecipeError("lora: needs peft; pip install 'radvlm-edge[train]'")
    import peft

    if lora.quantised:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.checkpointing)
    whole = "projector" not in lora.parts and recipe.rates.projector is not None
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(f"({LINEAR[part]})" for part in lora.parts),
        modules_to_save=["multi_modal_projector"] if whole else None,
    )
    return peft.get_peft_model(model, settings)


def _is_matrix(name: str) -> bool:
    return name.endswith("weight") and "norm" not in name


def groups(model: nn.Module, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """AdamW's parameter groups: a part's rate, weight decay on matrices only; each names its part."""
    made = []
    for part in PARTS:
        own = {
            name: one for name, one in model.named_parameters() if one.requires_grad and part_of(name) == part
        }
        for matrix in (True, False):
            # by name: FSDP has flattened them
            chosen = [one for name, one in own.items() if _is_matrix(name) == matrix]
            if chosen:
                decay = recipe.decay if matrix else 0.0
                made.append(
                    {"params": chosen, "lr": recipe.rates.of(part), "weight_decay": decay, "part": part}
                )
    return made


def counts(model: nn.Module) -> dict[str, int]:
    """Trained parameters of each part."""
    found = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[part_of(name)] += parameter.numel()
    return found
