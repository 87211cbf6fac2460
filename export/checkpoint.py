"""A checkpoint folder, whatever layout its writer used, under one set of names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.bundle import Prompting, digest
from radvlm_edge.errors import CheckpointError
from radvlm_edge.export import original
from radvlm_edge.export.config import Config, parse_config
from radvlm_edge.export.lora import Adapter, open_adapter
from radvlm_edge.export.weights import Shape, Weights
from radvlm_edge.export.weights import read_json as read_json

if TYPE_CHECKING:
    import torch

SPELLINGS = (
    *original.SPELLINGS,
    (re.compile(r"^model\.(?=vision_tower\.|multi_modal_projector\.|image_newline$|language_model\.)"), ""),
    (re.compile(r"^vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^language_model\.(?!model\.|lm_head\.)"), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
"""In order: what LLaVA-NeXT, transformers 4.57 and 5 write (in memory or on disk) → the names of 4.46's
files."""

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
ROWS_OF_TOKENS = (EMBEDDING, HEAD)
DIGESTED = ("*.index.json", "*config.json", "tokenizer.json", "chat_template.*")
DIGESTED_TOKENIZER = ("vocab.json", "merges.txt", "added_tokens.json")
"""Read only where there is no tokenizer.json."""
UNUSED_HEAD = "vision_tower.vision_model.head."
"""SigLIP's pooling head: some files hold it, no LLaVA runs it."""


def canonical(name: str) -> str | None:
    """One name for a tensor, whoever wrote it; `None` for values no model needs."""
    if name.endswith((".inv_freq", ".position_ids")):
        return None
    for pattern, replacement in SPELLINGS:
        name = pattern.sub(replacement, name)
    return None if name.startswith(UNUSED_HEAD) else name


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read from disk when asked for."""

    folder: Path
    config: Config
    prompting: Prompting
    processor: dict[str, Any]
    """preprocessor_config.json."""
    tokenizer: dict[str, Any]
    """tokenizer.json."""
    facts: dict[str, Any]
    """radvlm_edge.json, or what holds for a checkpoint without one."""
    weights: Weights
    adapter: Adapter | None = None

    @property
    def where(self) -> Mapping[str, tuple[Path, str]]:
        """Canonical name → file and the name inside it."""
        return self.weights.where

    @property
    def tied(self) -> bool:
        """True if the output matrix is the embedding matrix."""
        return HEAD not in self.where

    @property
    def preprocessing(self) -> dict[str, Any]:
        """`mean`, `std` (three numbers each) and `rescale`."""
        return {
            "mean": [float(v) for v in self.processor["image_mean"]],
            "std": [float(v) for v in self.processor["image_std"]],
            "rescale": float(self.processor["rescale_factor"]),
        }

    @cached_property
    def unused(self) -> npt.NDArray[np.bool_]:
        """`[vocab]`: True for rows that stand for no token; they are never to be produced."""
        unused = np.ones(self.config.language.vocab, dtype=np.bool_)
        unused[list(token_ids(self.tokenizer))] = False
        return unused

    def shape(self, name: str) -> Shape:
        """Shape of a tensor by canonical name, as `tensor` gives it."""
        return self._shapes[name]

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return self.config.tensor_shapes(tied=self.tied)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor by canonical name, in the checkpoint's own precision: a view of mapped pages.

        With an adapter, what it changes comes merged and in memory. A copy of an embedding matrix can
        take gigabytes: convert it by rows.
        """
        tensor = self.weights.tensor(name)
        if self.adapter is not None:
            tensor = self.adapter.apply(name, tensor)
        return tensor[: self.config.language.vocab] if name in ROWS_OF_TOKENS else tensor

    def sha256(self) -> str:
        """Digest over the files that make the model: their names and digests, sorted."""
        files = {path for pattern in DIGESTED for path in self.folder.glob(pattern)}
        if not (self.folder / "tokenizer.json").exists():
            files |= {self.folder / name for name in DIGESTED_TOKENIZER if (self.folder / name).exists()}
        files |= set(self.weights.paths)
        files = {path for path in files if not path.name.startswith("adapter_")}
        lines = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(files))
        if self.adapter is not None:
            lines += "".join(f"{digest(path)}  lora/{path.name}\n" for path in sorted(self.adapter.paths))
        return hashlib.sha256(lines.encode()).hexdigest()


def open_checkpoint(folder: Path, *, lora: Path | None = None, trim_vocab: bool = False) -> Checkpoint:
    """Open a checkpoint folder and check it is whole.

    `lora` is a folder of peft's whose adapter is merged; `trim_vocab` leaves out the embedding rows behind
    the last token. Raises CheckpointError: not a folder, another class, files missing, or one line that
    lists every unknown, missing and mis-shaped tensor.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder that holds config.json")
    raw = read_json(folder / "config.json")
    tokenizer = None
    if original.is_original(raw):
        weights = Weights(folder, canonical)
        tokenizer = original.with_image_tokens(_tokenizer(folder))
        raw = _translated(raw, weights, tokenizer, folder)
        config = parse_config(raw, folder)
    else:
        config = parse_config(raw, folder)
        weights = Weights(folder, canonical)
    _drop_tied_head(folder, raw, weights)
    shapes = weights.shapes()
    _check_tensors(folder, config, shapes)
    tokenizer = tokenizer or _tokenizer(folder)
    rows = 1 + max(token_ids(tokenizer))
    if rows > config.language.vocab:
        raise CheckpointError(
            f"{folder}: the tokenizer's id {rows - 1} has no row in an embedding of {config.language.vocab}"
        )
    adapter = open_adapter(lora, canonical, shapes) if lora else None
    if trim_vocab:
        config = replace(
            config,
            language=replace(config.language, vocab=rows),
            geometry=replace(config.geometry, vocab=rows),
        )
    return Checkpoint(
        folder,
        config,
        _prompting(folder, config, tokenizer),
        _processor(folder, config),
        tokenizer,
        _facts(folder),
        weights,
        adapter,
    )


def _translated(
    raw: dict[str, Any], weights: Weights, tokenizer: dict[str, Any], folder: Path
) -> dict[str, Any]:
    ids = {token["content"]: int(token["id"]) for token in tokenizer["added_tokens"]}
    try:
        return original.as_hugging_face(raw, weights.where, ids[original.IMAGE])
    except KeyError as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: {error} is not stated, and is never guessed"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def _drop_tied_head(folder: Path, raw: dict[str, Any], weights: Weights) -> None:
    """A tied output matrix that was written all the same is the embedding; two different ones are refused."""
    tied = raw["text_config"].get("tie_word_embeddings", raw.get("tie_word_embeddings", False))
    if not tied or HEAD not in weights.where or EMBEDDING not in weights.where:
        return
    head, embedding = weights.tensor(HEAD), weights.tensor(EMBEDDING)
    if head.shape != embedding.shape or not bool((head == embedding).all()):
        raise CheckpointError(
            f"{folder}: config.json says tie_word_embeddings, but lm_head and embed_tokens differ; "
            "correct the one that is wrong"
        )
    weights.drop(HEAD)


def token_ids(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    """Id → spelling of every token of a tokenizer.json."""
    ids = {int(i): str(text) for text, i in tokenizer["model"]["vocab"].items()}
    return ids | {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens", [])}


def _tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json, or what transformers makes of vocab.json and merges.txt.

    Raises CheckpointError for what is not Qwen2's byte-level BPE.
    """
    path = folder / "tokenizer.json"
    if not path.exists() and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = _slow_tokenizer(folder)
    else:
        tokenizer = read_json(path)
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"{path}: a {model.get('type')} tokenizer; only Qwen2's byte-level BPE is exported"
        )
    return tokenizer


def _slow_tokenizer(folder: Path) -> dict[str, Any]:
    import json

    from transformers import AddedToken, Qwen2TokenizerFast

    fast = Qwen2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    stated = read_json(folder / "added_tokens.json", optional=True)
    added = sorted((int(i), text) for text, i in stated.items())
    tokens = [AddedToken(text, special=True, normalized=False) for _, text in added]
    fast.add_tokens(tokens, special_tokens=True)
    made = fast.convert_tokens_to_ids([text for _, text in added])
    if made != [i for i, _ in added]:
        raise CheckpointError(f"{folder / 'added_tokens.json'}: its ids do not follow vocab.json's")
    content: dict[str, Any] = json.loads(fast.backend_tokenizer.to_str())
    return content


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


def _processor(folder: Path, config: Config) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.exists() and "original_architecture" in config.raw:
        side = {"height": config.geometry.crop_px, "width": config.geometry.crop_px}
        pinpoints = [list(pair) for pair in config.geometry.pinpoints]
        return {**original.PROCESSOR, "size": side, "image_grid_pinpoints": pinpoints}
    raw = read_json(path)
    try:
        lengths = [len([float(v) for v in raw[key]]) for key in ("image_mean", "image_std")]
        float(raw["rescale_factor"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error!r} missing or malformed") from error
    if lengths != [3, 3]:
        raise CheckpointError(f"{path}: image_mean and image_std have {lengths} values, not three each")
    return raw


def _prompting(folder: Path, config: Config, tokenizer: dict[str, Any]) -> Prompting:
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
    return Prompting(_chat_template(folder, config), image, stop_ids, tuple(added.values()))


def _chat_template(folder: Path, config: Config) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    names = ["chat_template.json", "processor_config.json", "tokenizer_config.json"]
    is_original = "original_architecture" in config.raw
    if is_original:
        names.remove("tokenizer_config.json")  # Qwen2's own template, which places no image
    for name in names:
        template = read_json(folder / name, optional=True).get("chat_template")
        if isinstance(template, str):
            return template
    if is_original:
        return original.CHAT_TEMPLATE
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
