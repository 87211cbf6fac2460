"""A LoRA adapter (peft's files) merged into a checkpoint's tensors as they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.weights import FLOATS, Shape, WeightFile, open_file, read_json

PART = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight$")
WHOLE = re.compile(r"\.modules_to_save(?:\.default)?\.")

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "init_lora_weights": (True, False, "gaussian", None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "use_qalora": (False, None),
}
"""adapter_config.json's settings under which a merge is W + scale · B·A and nothing else."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to each canonical tensor."""

    folder: Path
    paths: tuple[Path, ...]
    """Files whose digest belongs to the source."""
    low_rank: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
    """Canonical name → B `[out, r]`, A `[r, in]` and the scale of their product."""
    whole: Mapping[str, torch.Tensor]
    """Canonical name → the tensor trained in full (`modules_to_save`)."""

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The merged tensor, float32 where a product was added (source: peft's Linear.merge)."""
        if name in self.whole:
            return self.whole[name]
        if name not in self.low_rank:
            return tensor
        b, a, scale = self.low_rank[name]
        return torch.addmm(tensor.float(), b.float(), a.float(), alpha=scale)


def open_adapter(
    folder: Path, canonical: Callable[[str], str | None], shapes: Mapping[str, Shape]
) -> Adapter:
    """Open peft's `adapter_config.json` and `adapter_model.safetensors` (or `.bin`) for a checkpoint.

    `shapes` are the checkpoint's, by canonical name. Raises CheckpointError for a method that is no
    plain LoRA, or one line that lists every tensor that finds no place.
    """
    config_path = folder / "adapter_config.json"
    config = read_json(config_path)
    for key, accepted in PLAIN.items():
        if config.get(key, accepted[0]) not in accepted:
            raise CheckpointError(
                f"{config_path}: {key} is {config[key]!r}; only {accepted[0]!r} is merged. "
                "Merge it with peft (merge_and_unload) and export the result"
            )
    paths = [folder / n for n in ("adapter_model.safetensors", "adapter_model.bin") if (folder / n).exists()]
    if not paths:
        raise CheckpointError(f"{folder}: no adapter_model.safetensors or adapter_model.bin there")
    paths = [paths[0], *(p for p in [folder / "non_lora_trainables.bin"] if p.exists())]
    parts, whole, problems = _sort(paths, canonical)
    low_rank = _pairs(parts, config, config_path, shapes, problems)
    for name, tensor in whole.items():
        if shapes.get(name) != tuple(tensor.shape):
            problems.append(f"{name} is {list(tensor.shape)}, the checkpoint's {list(shapes.get(name, ()))}")
    if problems:
        raise CheckpointError(f"{folder}: the adapter does not fit: {'; '.join(problems)}")
    return Adapter(folder, (config_path, *paths), low_rank, whole)


Parts = dict[str, dict[str, torch.Tensor]]


def _sort(
    paths: list[Path], canonical: Callable[[str], str | None]
) -> tuple[Parts, dict[str, torch.Tensor], list[str]]:
    """Every tensor of the adapter's files: halves of products by canonical name, whole ones, the rest."""
    parts: Parts = {}
    whole: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    for file in (open_file(path) for path in paths):
        for inside in file.shapes:
            name = inside.removeprefix("base_model.model.")
            half = PART.match(name)
            if file.kinds[inside] not in FLOATS:
                problems.append(f"{inside} is {file.kinds[inside]}, not one of {', '.join(FLOATS)}")
            elif half:
                target = canonical(half["module"] + ".weight") or half["module"]
                parts.setdefault(target, {})[half["part"]] = _finite(file, inside)
            elif "lora_" in name:
                problems.append(f"{inside} is no lora_A or lora_B of a matrix")
            else:
                whole[canonical(WHOLE.sub(".", name)) or name] = _finite(file, inside)
    return parts, whole, problems


def _pairs(
    parts: Parts, config: Mapping[str, Any], path: Path, shapes: Mapping[str, Shape], problems: list[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    try:
        alpha = float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: lora_alpha is not stated as a number") from error
    pairs = {}
    for name, halves in parts.items():
        if set(halves) != {"A", "B"}:
            problems.append(f"{name} has only lora_{'/'.join(halves)}")
            continue
        a, b = halves["A"], halves["B"]
        rank = a.shape[0]
        if b.shape[1] != rank or shapes.get(name) != (b.shape[0], a.shape[1]):
            problems.append(
                f"{name}: B {list(b.shape)} · A {list(a.shape)} on {list(shapes.get(name, ())) or 'nothing'}"
            )
            continue
        pairs[name] = b, a, alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return pairs


def _finite(file: WeightFile, name: str) -> torch.Tensor:
    tensor = file.tensor(name)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"adapter tensor {name} holds values that are not finite")
    return tensor
