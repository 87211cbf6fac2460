"""Checkpoint → the prefill graph's file: nodes of prefill_graph.py, weights one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from onnx import TensorProto

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.graph_file import Initializer, write_graph
from radvlm_edge.export.prefill_graph import build, parameters, source
from radvlm_edge.export.vision import PRECISIONS, TYPES, tensor_blocks

KV_KINDS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT16}
"""Type of K and V at the graph's edge. llama.cpp keeps f16; fp32 is to be compared exactly."""


def write_prefill(
    checkpoint: Checkpoint, precision: str, path: Path, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Write the graph in `fp32` or `fp16` (weights and arithmetic; norms and angles stay in float32).

    One file, or two (`….onnx.data`) where the weights are large. `advance` is told the bytes of weights
    written. Raises CheckpointError for a tensor whose values the precision cannot hold.
    """
    dtype = PRECISIONS[precision]
    language = checkpoint.config.language
    model = build(language, TYPES[dtype], KV_KINDS[precision])
    shapes = parameters(language)
    write_graph(model, [initializer(checkpoint, name, shapes[name], dtype) for name in shapes], path, advance)


def initializer(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Initializer:
    """A parameter as the float graph holds it."""
    return Initializer(
        name, shape, TYPES[dtype], tensor_blocks(checkpoint, source(name), dtype, len(shape) == 2)
    )


def weight_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of weights a graph holds, nearly so for int8, for telling progress."""
    count = sum(math.prod(shape) for shape in parameters(checkpoint.config.language).values())
    return count * (1 if precision == "int8" else PRECISIONS[precision].itemsize)
