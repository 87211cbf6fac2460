"""Random weights in exactly the files a published checkpoint has: names, shapes, precision, shard sizes.

Shards are written as they are drawn, so that a 16 GB checkpoint takes a few hundred megabytes to make.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.export.config import parse_config
from radvlm_edge.geometry import GEOMETRIES, Geometry

SHARD_BYTES = 5_000_000_000
"""transformers' default largest shard."""
POOL = 1 << 24
"""Random numbers drawn once; every tensor is a stretch of them, scaled."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\n' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "<image>{{ '\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}"
    "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


@dataclass(frozen=True)
class Scale:
    """Sizes of a whole model."""

    geometry: Geometry
    mlp: int
    heads: int
    tied: bool
    tokens: int
    """Ids the tokenizer has; the rows behind them are padding."""
    tower_width: int = 1152
    tower_mlp: int = 4304
    tower_layers: int = 26
    tower_heads: int = 16


def _with_crops(crop_px: int) -> Geometry:
    """7B's geometry with other crops, in the same arrangements."""
    pinpoints = tuple((crop_px * h, crop_px * w) for h in range(1, 7) for w in range(1, 7))
    return replace(GEOMETRIES["radvlm-7b"], crop_px=crop_px, pinpoints=pinpoints)


SCALES = {
    "7b": Scale(GEOMETRIES["radvlm-7b"], 18944, 28, False, 151648),
    "0.5b": Scale(GEOMETRIES["radvlm-0.5b"], 4864, 14, True, 151648),
    "eighth": Scale(
        replace(_with_crops(56), embed_dim=448, layers=4, kv_heads=1, head_dim=64, vocab=19016),
        *(2368, 7, False, 18956, 144, 538, 3, 2),
    ),
    "tiny": Scale(
        replace(
            _with_crops(28),
            patch_px=7,
            embed_dim=256,
            layers=2,
            kv_heads=1,
            head_dim=64,
            context=4096,
            vocab=640,
        ),
        *(512, 4, False, 620, 64, 96, 2, 2),
    ),
}
"""The published models (facts: transformers' configs), 7B with every width an eighth, and one for tests."""


def config_json(scale: Scale) -> dict[str, Any]:
    """config.json as transformers 4.46 writes it for a LLaVA-OneVision of this scale."""
    geometry = scale.geometry
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": scale.tokens - 2,
        "video_token_index": scale.tokens - 1,
        "image_grid_pinpoints": [list(pair) for pair in geometry.pinpoints],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": scale.tied,
        "torch_dtype": "float16",
        "use_image_newline_parameter": True,
        "vision_aspect_ratio": f"anyres_max_{geometry.max_crops}",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": geometry.embed_dim,
            "intermediate_size": scale.mlp,
            "num_hidden_layers": geometry.layers,
            "num_attention_heads": scale.heads,
            "num_key_value_heads": geometry.kv_heads,
            "vocab_size": geometry.vocab,
            "max_position_embeddings": geometry.context,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": scale.tied,
            "hidden_act": "silu",
            "use_sliding_window": False,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": scale.tower_width,
            "intermediate_size": scale.tower_mlp,
            "num_hidden_layers": scale.tower_layers,
            "num_attention_heads": scale.tower_heads,
            "image_size": geometry.crop_px,
            "patch_size": geometry.patch_px,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh",
            "vision_use_head": False,
        },
    }


def write_checkpoint(
    scale: Scale, folder: Path, *, tokenizer: Path | None = None, seed: int = 0
) -> list[int]:
    """Write a checkpoint folder; returns the bytes of its shards.

    `tokenizer` is a full Qwen tokenizer.json to take the vocabulary from; without it a vocabulary of the
    right size is made up, whose tokens are bytes and numbered fillers.
    """
    folder.mkdir(parents=True)
    config = config_json(scale)
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": scale.tokens - 3, "transformers_version": "4.46.0"},
        "chat_template.json": {"chat_template": TEMPLATE},
        "tokenizer.json": _tokenizer(scale, tokenizer),
        "preprocessor_config.json": {
            **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad"), True),
            **{key: [0.5, 0.5, 0.5] for key in ("image_mean", "image_std")},
            "rescale_factor": 1 / 255,
            "resample": 3,
            "size": {"height": scale.geometry.crop_px, "width": scale.geometry.crop_px},
            "image_grid_pinpoints": config["image_grid_pinpoints"],
        },
        "radvlm_edge.json": {"name": "random weights", "licence": "none: random numbers", "render": "mimic"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    shapes = parse_config(config, folder).tensor_shapes(tied=scale.tied)
    shards = _shards(shapes)
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(POOL, dtype=np.float32)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, {n: shapes[n] for n in names}, pool, rng)
        weight_map |= dict.fromkeys(names, name)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json), encoding="utf-8")
    return [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names in transformers' order of saving, a new shard where the next tensor would pass the limit."""
    order = ("image_newline", "vision_tower.", "multi_modal_projector.", "language_model.")
    names = [name for start in order for name in shapes if name.startswith(start)]
    shards: list[list[str]] = [[]]
    size = 0
    for name in names:
        count = 2 * math.prod(shapes[name])
        if shards[-1] and size + count > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += count
    return shards


def _write_shard(
    path: Path, shapes: dict[str, tuple[int, ...]], pool: npt.NDArray[np.float32], rng: np.random.Generator
) -> None:
    """A safetensors file: length of the header, header, values. Source: the format's own description."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for part in _values(name, shape, pool, rng):
                part.tofile(file)


def _values(
    name: str, shape: tuple[int, ...], pool: npt.NDArray[np.float32], rng: np.random.Generator
) -> Iterator[npt.NDArray[np.float16]]:
    """Numbers as large as a trained model's, so that nothing overflows and nothing fades out."""
    if name.endswith("norm.weight") or "norm1.weight" in name or "norm2.weight" in name:
        base, scale = 1.0, 0.1
    elif len(shape) == 1:
        base, scale = 0.0, 0.1
    elif "embed_tokens" in name or "position" in name:
        base, scale = 0.0, 0.05
    else:
        base, scale = 0.0, 0.7 * math.prod(shape[1:]) ** -0.5
    left = math.prod(shape)
    while left:
        start = int(rng.integers(0, len(pool) // 2))
        part = pool[start : start + min(left, len(pool) // 2)]
        yield (base + scale * part).astype(np.float16)
        left -= len(part)


def _tokenizer(scale: Scale, source: Path | None) -> dict[str, Any]:
    """A tokenizer.json of `scale.tokens` ids, the last five of them special."""
    plain = scale.tokens - len(SPECIAL)
    if source is not None:
        data: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        if len(data["model"]["vocab"]) != plain:
            raise ValueError(f"{source}: {len(data['model']['vocab'])} tokens, {plain} are needed")
    else:
        vocab = {symbol: index for index, symbol in enumerate(_byte_symbols())}
        vocab["Ġa"] = len(vocab)  # llama.cpp wants one merge at least
        vocab |= {f"filler{index}": index for index in range(len(vocab), plain)}
        byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        data = {
            "version": "1.0",
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", **byte_level},
            "decoder": {"type": "ByteLevel", **byte_level},
            "model": {"type": "BPE", "vocab": vocab, "merges": ["Ġ a"]},
        }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] = [
        {"id": plain + index, "content": content, **flags, "special": True}
        for index, content in enumerate(SPECIAL)
    ]
    return data


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def describe(scale: Scale) -> dict[str, Any]:
    """Sizes for a report."""
    return {key: value for key, value in asdict(scale).items() if key != "geometry"}
