"""The two INT8 vision graphs of a checkpoint, from one calibration: for CPUs and for TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.graph_file import Initializer, write_graph
from radvlm_edge.export.int8_graph import Derived, Fetch, insert_qdq
from radvlm_edge.export.int8_table import Table
from radvlm_edge.export.partial import ResumableWriter
from radvlm_edge.export.progress import Progress
from radvlm_edge.export.tensorrt_check import NEWEST_OPSET, check_tensorrt_graph
from radvlm_edge.export.vision import halve, outline_of, weight_bytes, write_vision

INT8_TABLE = "vision/int8.json"
TARGETS = {"int8": "cpu", "int8-trt": "tensorrt"}
"""Precision of the artefact → target of the graph."""


def write_int8(
    checkpoint: Checkpoint,
    table: Table,
    precision: str,
    path: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write `int8` (the rest float32) or `int8-trt` (the rest float16, opset 19 for half-precision steps).

    One weight is in memory at a time. Raises CheckpointError for a calibration of another tower.
    """
    target = TARGETS[precision]
    outline = outline_of(checkpoint)
    rewrite = insert_qdq(outline.model, table, outline.shapes, target)
    dtype = torch.float32
    if target == "tensorrt":
        dtype = torch.float16
        halve(outline.model)
        outline.model.opset_import[0].version = NEWEST_OPSET

    def fetch(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        blocks = list(outline.initializer(checkpoint, name, torch.float32).blocks())
        return torch.cat([block.reshape(-1) for block in blocks]).reshape(outline.shapes[name]).numpy()

    kept = [n for n in outline.shapes if n not in rewrite.derived and n not in rewrite.removed]
    initializers = [outline.initializer(checkpoint, name, dtype) for name in kept]
    initializers += [_initializer(one, fetch, dtype) for one in rewrite.derived.values()]
    write_graph(outline.model, initializers, path, advance)
    if target == "tensorrt":
        check_tensorrt_graph(path)


def check_source(checkpoint: Checkpoint, source_sha256: str, table: Table) -> None:
    """Raise CheckpointError for a calibration that was made of another checkpoint than this digest's."""
    if table.source_sha256 != source_sha256:
        raise CheckpointError(
            f"{checkpoint.folder}: the calibration is another checkpoint's (its source digest differs); "
            "make one of this checkpoint with `radvlm-edge calibrate`, with the same --lora if one is merged"
        )


def fp32_graph(checkpoint: Checkpoint, writer: ResumableWriter, report: Progress) -> Path:
    """The fp32 graph, shipped or not, written now if it is not there yet."""
    shipped = writer.place("vision/fp32.onnx")
    if writer.finished(shipped):
        return shipped
    spare = writer.place("vision/fp32.onnx", shipped=False)
    report.stage("vision fp32", weight_bytes(checkpoint, "fp32"))
    writer.make(spare, partial(write_vision, checkpoint, "fp32", advance=report.advance))
    return spare


def write_both(
    checkpoint: Checkpoint, source: str, table: Table, writer: ResumableWriter, report: Progress
) -> dict[str, Path]:
    """Both INT8 graphs, and the calibration they were made with beside them."""
    check_source(checkpoint, source, table)
    paths = {}
    for precision in TARGETS:
        name = f"vision/{precision}.onnx"
        paths[precision] = writer.place(name)
        report.stage(f"vision {precision}")
        write = partial(write_int8, checkpoint, table, precision)
        writer.make(paths[precision], write, f"calibration {table.sha256()}")
        writer.add("vision", precision, "onnx", name)
    writer.path(INT8_TABLE).write_text(table.text(), encoding="utf-8")
    return paths


def told(table: Table) -> dict[str, Any]:
    """What bundle.json says of the calibration; all of it is in vision/int8.json."""
    kept = ("kind", "films", "crops", "held_out_crops")
    return {
        "vision": {
            "sha256": table.sha256(),
            "file": INT8_TABLE,
            **{key: table.films[key] for key in kept if key in table.films},
            "gate": table.gate,
            "float_groups": list(table.float_groups),
            "held_out": table.curve[-1] if table.curve else None,
        }
    }


def _initializer(derived: Derived, fetch: Fetch, dtype: torch.dtype) -> Initializer:
    kind = derived.kind
    if kind == TensorProto.FLOAT and dtype == torch.float16:
        kind = TensorProto.FLOAT16

    def blocks() -> Iterator[torch.Tensor]:
        values = torch.from_numpy(np.ascontiguousarray(derived.values(fetch)))
        values = values.to(dtype) if values.is_floating_point() else values
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise CheckpointError(f"{derived.name} holds values {dtype} cannot")
        yield values

    return Initializer(derived.name, derived.dims, kind, blocks)
