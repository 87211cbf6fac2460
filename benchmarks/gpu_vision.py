"""The tower on one device in every engine it has: milliseconds a crop, distance from the CPU's tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.vision_artefacts import _cosine, _summary
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import RadvlmError
from radvlm_edge.runtime.vision import open_tower

Crops = npt.NDArray[np.uint8]
Encode = Callable[[Crops], npt.NDArray[np.float32]]

ENGINES = {"cpu": ("onnx", "openvino"), "cuda": ("cuda", "tensorrt", "tensorrt-rtx")}
"""Our engines by device; torch comes first on both."""
PARITY_CROPS = 2
"""Compared with the CPU, which takes seconds for each at full size."""


def measure_vision(
    bundle: Bundle,
    checkpoint: Path,
    device: str,
    *,
    precision: str,
    batches: Sequence[int],
    repeats: int,
    warm_up: int = 2,
) -> dict[str, Any]:
    """Each engine in turn, each batch size; engines that do not open here say why under `absent`.

    `parity` is the cosine of projected tokens with ONNX Runtime's on the CPU, of the same artefact.
    """
    geometry = bundle.manifest.geometry
    rng = np.random.default_rng(11)
    shape = (max(batches), 3, geometry.crop_px, geometry.crop_px)
    crops = rng.integers(0, 256, shape, dtype=np.uint8)
    engines, absent = _open(bundle, checkpoint, device, precision)
    expected = open_tower(_graph(bundle, precision)).encode(crops[:PARITY_CROPS])
    results: dict[str, Any] = {}
    for name, encode in engines.items():
        found = encode(crops[:PARITY_CROPS])
        results[name] = {
            "parity": {"against": "onnxruntime CPU", "token_cosine": _cosine(found, expected)},
            "ms_per_crop": {},
        }
    for size in batches:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(warm_up + repeats):
            for name, encode in engines.items():
                began = time.perf_counter()
                encode(crops[:size])
                if turn >= warm_up:
                    times[name].append(1e3 * (time.perf_counter() - began) / size)
        for name, values in times.items():
            results[name]["ms_per_crop"][str(size)] = _summary(values)
    return {"precision": precision, "batches": list(batches), "engines": results, "absent": absent}


def _graph(bundle: Bundle, precision: str) -> Path:
    return bundle.path(bundle.artefact("vision", precision))


def _open(
    bundle: Bundle, checkpoint: Path, device: str, precision: str
) -> tuple[dict[str, Encode], dict[str, str]]:
    engines: dict[str, Encode] = {"torch": torch_tower(checkpoint, device)}
    absent = {}
    for name in ENGINES[device]:
        try:
            engines[name] = open_tower(_graph(bundle, precision), backend=name).encode
        except RadvlmError as error:
            absent[name] = str(error)
    if "tensorrt" in engines:
        engines["tensorrt, CUDA graph"] = _recorded(_graph(bundle, precision))
    return engines, absent


def _recorded(graph: Path) -> Encode:
    from radvlm_edge.runtime.vision import Plan
    from radvlm_edge.runtime.vision_tensorrt import open_with

    return open_with("tensorrt", graph, Plan(1), record=True).encode


def torch_tower(checkpoint: Path, device: str) -> Encode:
    """transformers' own tower and projector: half precision and sdpa on a GPU, float32 on the CPU."""
    import torch
    from transformers.models.llava_onevision.modeling_llava_onevision import (
        LlavaOnevisionMultiModalProjector,
    )
    from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

    from radvlm_edge.export.checkpoint import open_checkpoint
    from radvlm_edge.export.reference import model_config
    from radvlm_edge.export.streaming_reference import TOWER, _first, _load, normalise

    opened = open_checkpoint(checkpoint)
    config = model_config(opened)
    vision = config.vision_config
    vision._attn_implementation = "sdpa"
    dtype = torch.float32 if device == "cpu" else torch.float16
    layer_names = [f"{TOWER}encoder.layers.{i}." for i in range(opened.config.tower.used_layers)]
    parts: list[tuple[Any, str]] = [
        (SiglipVisionEmbeddings(vision), f"{TOWER}embeddings."),
        *((SiglipEncoderLayer(vision), name) for name in layer_names),
        (LlavaOnevisionMultiModalProjector(config), "multi_modal_projector."),
    ]
    modules = []
    for module, prefix in parts:
        _load(module, opened, prefix)
        modules.append(module.to(device, dtype).eval())
    embed, *layers, projector = modules

    def encode(crops: Crops) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            x = embed(normalise(opened, crops).to(device, dtype))
            for layer in layers:
                x = _first(layer(x, attention_mask=None))
            tokens: npt.NDArray[np.float32] = projector(x).float().cpu().numpy()  # waits for the device
        return tokens

    return encode
