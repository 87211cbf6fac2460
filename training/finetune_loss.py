"""A batch through the model → the weighted sum of its targets' cross entropies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F


def pixels_of(crops: torch.Tensor, preprocessing: Mapping[str, Any]) -> torch.Tensor:
    """Grey crops `[B, n, S, S]` uint8 → the tower's input `[B, n, 3, S, S]` float32, as the processor."""
    mean, std = (
        torch.tensor(preprocessing[name], dtype=torch.float32, device=crops.device)[:, None, None]
        for name in ("mean", "std")
    )
    return (crops.to(torch.float32)[:, :, None] * float(preprocessing["rescale"]) - mean) / std


def weighted_loss(model: Any, batch: Mapping[str, torch.Tensor], preprocessing: Mapping[str, Any]) -> Any:
    """Sum over a batch (see `finetune_batch.Collator`) of weight times cross entropy, in float32.

    Logits are computed where they are needed only: the vocabulary is 150 times as wide as an answer is long.
    """
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        pixel_values=pixels_of(batch["crops"], preprocessing),
        image_sizes=batch["image_sizes"],
        logits_to_keep=batch["kept"],
    )
    taught = batch["weights"] > 0
    each = F.cross_entropy(outputs.logits[taught].float(), batch["targets"][taught], reduction="none")
    return (each * batch["weights"][taught]).sum()
