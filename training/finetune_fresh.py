"""A checkpoint with its tower kept and everything behind it drawn anew: where comparisons begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.training.finetune_model import load_model, part_of
from radvlm_edge.training.finetune_recipe import FinetuneRecipe, Rates
from radvlm_edge.training.finetune_save import write_checkpoint


def redraw(start: Path, out: Path, seed: int) -> Path:
    """Write `start` to `out`, projector and language model drawn as `model.build_model` draws small ones."""
    checkpoint = open_checkpoint(start)
    model = load_model(checkpoint, FinetuneRecipe(kind="finetune", name="fresh", rates=Rates()))
    draw_behind_the_tower(model, seed)
    about = {**checkpoint.facts, "redistributable": False, "trained_on": {"tower": checkpoint.facts["name"]}}
    return write_checkpoint(out, model.state_dict(), model.config, checkpoint, "float32", about)


def draw_behind_the_tower(model: Any, seed: int) -> None:
    """Matrices by their width, what a layer of the language model adds twenty times smaller; norms are 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part_of(name) == "tower":
                continue
            if "embed_tokens" in name or "lm_head" in name:
                nn.init.normal_(weight, std=0.05)
            elif "image_newline" in name:
                nn.init.normal_(weight, std=len(weight) ** -0.5)
            elif weight.ndim == 2:
                quiet = "o_proj" in name or "down_proj" in name
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * (0.05 if quiet else 0.7))
            else:
                nn.init.constant_(weight, 1.0 if "norm" in name else 0.0)
