"""One command for any CUDA machine: the tower, the language model and the K/V fork at full size, as JSON.

    python -m radvlm_edge.benchmarks.gpu WORK -o gpu.json

writes random weights of the 7B geometry to WORK (16 GB, and 6 GB of bundle; made once, kept for the next
run), exports them, builds a TensorRT engine where the library is, and runs torch, ONNX Runtime's CUDA
provider, TensorRT and llama.cpp. What cannot run says why. `--device cpu --geometry tiny` runs all of it
anywhere in a minute. No figures of a GPU have been taken with it yet (docs/gpu.md).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.gpu_language import measure_language
from radvlm_edge.benchmarks.gpu_roof import measure_roof, ratios
from radvlm_edge.benchmarks.gpu_vision import measure_vision
from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.random_checkpoint import SCALES, Scale, write_checkpoint
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import RadvlmError
from radvlm_edge.runtime import gpus
from radvlm_edge.runtime.roofline import Network

FILM_CROPS = {"7b": (2, 5, 10), "0.5b": (2, 5, 10)}
"""Crops of a film capped at 384, 768 and 1152 pixels."""
IMAGE_TOKENS = {"7b": (1377, 3159, 6237), "0.5b": (1377, 3159, 6237)}
"""Image tokens of the same films."""


def measure(
    work: Path,
    *,
    device: str = "cuda",
    geometry: str = "7b",
    language: str = "Q4_K_M",
    answer_tokens: int = 33,
    repeats: int = 5,
    side: int = 8192,
) -> dict[str, Any]:
    """Everything, in order; the report as plain values. Raises SystemExit without the device."""
    scale = SCALES[geometry]
    header = device_header(device)
    checkpoint, bundle = prepare(work, scale, geometry, language, device)
    precision = "fp32" if device == "cpu" else "fp16"
    built = {} if device == "cpu" else build_engines(bundle, precision)
    sizes = FILM_CROPS.get(geometry, (1, 3))
    report: dict[str, Any] = {
        "geometry": geometry,
        "weights": "random",
        "device": header,
        "machine": machine() | {"load": os.getloadavg()[0]},
        "engines_built": built,
        "vision": measure_vision(
            bundle, checkpoint, device, precision=precision, batches=sizes, repeats=repeats
        ),
    }
    artefact = bundle.artefact("language", language)
    report["language"] = measure_language(
        bundle.path(artefact),
        scale.geometry,
        device,
        image_tokens=IMAGE_TOKENS.get(geometry, (40, 90)),
        answer_tokens=answer_tokens,
        repeats=repeats,
    )
    roof = measure_roof(device, side=side)
    report["roof"] = asdict(roof)
    report["of_roof"] = ratios(report, roof, scale.geometry, network_of(scale), artefact.bytes)
    return report


def device_header(device: str) -> dict[str, Any]:
    """Which device this is, and the versions of what drives it. Raises SystemExit where it cannot be used."""
    import llama_cpp
    import torch

    found = gpus.seen()
    header: dict[str, Any] = {
        "kind": device,
        "gpus": [asdict(gpu) for gpu in found],
        "torch": torch.__version__,
        "llama.cpp": llama_cpp.llama_print_system_info().decode().strip(),
    }
    if device == "cuda":
        if not torch.cuda.is_available():
            names = ", ".join(gpu.name for gpu in found) or "no NVIDIA GPU is seen"
            sys.exit(f"--device cuda: torch {torch.__version__} cannot use a GPU here ({names})")
        properties = torch.cuda.get_device_properties(0)
        header |= {
            "name": properties.name,
            "compute": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return header


def prepare(work: Path, scale: Scale, name: str, language: str, device: str) -> tuple[Path, Bundle]:
    """Checkpoint and bundle of random weights, from an earlier run where they are there."""
    from radvlm_edge.export.exporter import export_checkpoint

    checkpoint, out = work / f"random-{name}", work / f"random-{name}-{device}.bundle"
    if not (checkpoint / "model.safetensors.index.json").exists():
        write_checkpoint(scale, checkpoint)
    if not out.exists():
        vision = ("fp32",) if device == "cpu" else ("fp16",)
        export_checkpoint(checkpoint, out, vision=vision, language=(language,), parity="none")
    return checkpoint, Bundle.open(out)


def build_engines(bundle: Bundle, precision: str) -> dict[str, Any]:
    """Engines of the TensorRT libraries that are here, each compared with golden.npz when it is opened."""
    from radvlm_edge.runtime import tensorrt_engines

    artefact = bundle.artefact("vision", precision)
    found: dict[str, Any] = {}
    for backend in ("tensorrt", "tensorrt-rtx"):
        try:
            target = tensorrt_engines.target_of(backend, bundle.path(artefact), artefact.sha256)
            if target.entry.facts() is None:
                tensorrt_engines.build(target)
            found[backend] = target.name
        except RadvlmError as error:
            found[backend] = {"absent": str(error)}
    return found


def network_of(scale: Scale) -> Network:
    """Weights of a scale, counted from its tensors."""
    from radvlm_edge.benchmarks.random_checkpoint import config_json
    from radvlm_edge.export.config import parse_config

    shapes = parse_config(config_json(scale), Path("scale")).tensor_shapes(tied=scale.tied)
    language = sum(math.prod(s) for name, s in shapes.items() if name.startswith("language_model."))
    vision = sum(math.prod(s) for name, s in shapes.items() if name.startswith(("vision", "multi")))
    table = 0 if scale.tied else scale.geometry.vocab * scale.geometry.embed_dim
    return Network(language, table, vision, scale.tower_width, scale.tower_layers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--geometry", choices=sorted(SCALES), default="7b")
    parser.add_argument("--language", default="Q4_K_M")
    parser.add_argument("--answer-tokens", type=int, default=33)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices the roof is measured with")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    report = measure(options.pop("work"), **options)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
