"""A Hugging Face checkpoint folder, whatever spelling its writer used, under one set of names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from radvlm_edge.bundle import Prompting, digest
from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.config import Config, parse_config

if TYPE_CHECKING:
    import torch

SPELLINGS = (
    (re.compile(r"^model\.(?=vision_tower\.|multi_modal_projector\.|image_newline$|language_model\.)"), ""),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
"""In order: what transformers 4.57 and 5 write (in memory or on disk) → the names of 4.46's files."""

DIGESTED = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer.json", "chat_template.*")


def canonical(name: str) -> str | None:
    """One name for a tensor, whoever wrote it; `None` for values no model needs."""
    if name.endswith((".inv_freq", ".position_ids")):
        return None
    for pattern, replacement in SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read from disk when asked for."""

    folder: Path
    config: Config
    prompting: Prompting
    preprocessing: dict[str, Any]
    """`mean`, `std` (three numbers each) and `rescale`, as preprocessor_config.json says."""
    facts: dict[str, Any]
    """radvlm_edge.json, or what holds for a checkpoint without one."""
    where: Mapping[str, tuple[Path, str]]
    """Canonical name → file and the name inside it."""

    @property
    def tied(self) -> bool:
        """True if the output matrix is the embedding matrix."""
        return "language_model.lm_head.weight" not in self.where

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor by canonical name, in the checkpoint's own precision."""
        path, inside = self.where[name]
        with safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(inside)
        return tensor

    def sha256(self) -> str:
        """Digest over the files that make the model: their names and digests, sorted."""
        files = sorted({path for pattern in DIGESTED for path in self.folder.glob(pattern)})
        lines = "".join(f"{digest(path)}  {path.name}\n" for path in files)
        return hashlib.sha256(lines.encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check it is whole.

    Raises CheckpointError: not a folder, another class, files missing, or one line that lists every
    unknown, missing and mis-shaped tensor.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder that holds config.json")
    config = parse_config(read_json(folder / "config.json"), folder)
    where, shapes = _index(folder)
    _check_tensors(folder, config, shapes)
    return Checkpoint(
        folder, config, _prompting(folder, config), _preprocessing(folder), _facts(folder), where
    )


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a checkpoint's folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(f"{path}: missing; the checkpoint folder is not complete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return value


def _index(folder: Path) -> tuple[dict[str, tuple[Path, str]], dict[str, tuple[int, ...]]]:
    """Canonical name → where it is, and → its shape."""
    files = sorted(folder.glob("*.safetensors"))
    index = read_json(folder / "model.safetensors.index.json", optional=True)
    wanted = sorted(set(index.get("weight_map", {}).values()))
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"{folder}: the index names {', '.join(missing)}, not there; copy them again")
    if wanted:
        files = [folder / name for name in wanted]
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors; other weight formats are not read yet")
    where: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for inside in file.keys():  # noqa: SIM118 - not a mapping
                    name = canonical(inside)
                    if name is None:
                        continue
                    if name in where:
                        raise CheckpointError(f"{path.name}: {inside} is {name}, held twice")
                    where[name] = path, inside
                    shapes[name] = tuple(file.get_slice(inside).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    return where, shapes


def _check_tensors(folder: Path, config: Config, shapes: dict[str, tuple[int, ...]]) -> None:
    expected = config.tensor_shapes(tied="language_model.lm_head.weight" not in shapes)
    problems = [f"missing {name}" for name in expected if name not in shapes]
    problems += [f"unknown {name}" for name in shapes if name not in expected]
    problems += [
        f"{name} is {list(shapes[name])}, config says {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems:
        raise CheckpointError(f"{folder}: tensors and config.json disagree: {'; '.join(problems)}")


def _preprocessing(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / "preprocessor_config.json")
    try:
        return {
            "mean": [float(v) for v in raw["image_mean"]],
            "std": [float(v) for v in raw["image_std"]],
            "rescale": float(raw["rescale_factor"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'}: {error!r} missing or malformed"
        ) from error


def _prompting(folder: Path, config: Config) -> Prompting:
    tokenizer = read_json(folder / "tokenizer.json")
    added = {int(t["id"]): str(t["content"]) for t in tokenizer.get("added_tokens", []) if t.get("special")}
    image = added.get(config.image_token_id)
    if image is None:
        raise CheckpointError(
            f"{folder}: image token id {config.image_token_id} of config.json "
            "is no special token of tokenizer.json"
        )
    stop = read_json(folder / "generation_config.json", optional=True).get("eos_token_id")
    if stop is None:
        stop = [i for i, content in added.items() if content == "<|im_end|>"]
    stop_ids = tuple(int(i) for i in (stop if isinstance(stop, list) else [stop]))
    if not stop_ids:
        raise CheckpointError(
            f"{folder}: neither generation_config.json nor <|im_end|> says what ends an answer"
        )
    return Prompting(_chat_template(folder), image, stop_ids, tuple(added.values()))


def _chat_template(folder: Path) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json(folder / name, optional=True).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(f"{folder}: no chat template (chat_template.json or .jinja, tokenizer_config.json)")


def _facts(folder: Path) -> dict[str, Any]:
    unstated = {
        "name": folder.resolve().name,
        "demonstration": False,
        "redistributable": False,
        "licence": "as the checkpoint's",
        "render": "mimic",
    }
    return {**unstated, **read_json(folder / "radvlm_edge.json", optional=True)}
