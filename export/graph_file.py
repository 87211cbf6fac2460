"""An ONNX file whose weights are written one at a time.

onnx.save wants every tensor in memory, twice. A protobuf message is its fields one after another, so a
graph's weights can be written as they come; the bytes are those onnx.save would have written.
Source of the field numbers: onnx.proto (ModelProto.graph, GraphProto.initializer, TensorProto.raw_data).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import torch

from radvlm_edge.export.wire import length_key, varint

EXTERNAL_FROM = 256 << 20
"""Bytes of weights from which they go into a file of their own, which engines map instead of parsing."""
ALIGNMENT = 4096
"""Of a tensor in that file: a page, so that it can be mapped."""

BYTES = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT8: 1,
}

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
BEHIND_GRAPH = ("opset_import", "metadata_props", "training_info", "functions", "configuration")
BEHIND_INITIALIZERS = ("doc_string", "input", "output", "value_info", "quantization_annotation")


@dataclass(frozen=True)
class Initializer:
    """A weight of a graph, not yet read."""

    name: str
    dims: tuple[int, ...]
    kind: int
    """onnx.TensorProto's FLOAT, FLOAT16, INT8 or UINT8."""
    blocks: Callable[[], Iterator[torch.Tensor]]
    """Its values, contiguous, in order."""

    @property
    def bytes(self) -> int:
        size = BYTES[self.kind]
        for dim in self.dims:
            size *= dim
        return size

    def header(self) -> onnx.TensorProto:
        return onnx.TensorProto(dims=self.dims, data_type=self.kind, name=self.name)


def write_graph(
    model: onnx.ModelProto,
    initializers: Sequence[Initializer],
    path: Path,
    advance: Callable[[int], None],
    *,
    external_from: int = EXTERNAL_FROM,
) -> None:
    """Write `model` (without weights) and its weights to `path`, large ones to `path`.data beside it.

    The graph then names the digest of that file in its metadata, so that the graph's own digest covers it.
    """
    if sum(weight.bytes for weight in initializers) < external_from:
        with path.open("wb") as file:
            _write_whole(model, initializers, file, advance)
    else:
        data = path.with_name(path.name + ".data")
        model.graph.initializer.extend(_write_data(initializers, data, advance, model))
        path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def _write_data(
    initializers: Sequence[Initializer], path: Path, advance: Callable[[int], None], model: onnx.ModelProto
) -> list[onnx.TensorProto]:
    sha, headers = hashlib.sha256(), []
    with path.open("wb") as file:
        for weight in initializers:
            padding = bytes(-file.tell() % ALIGNMENT)
            sha.update(padding)
            file.write(padding)
            header = weight.header()
            header.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": path.name, "offset": str(file.tell()), "length": str(weight.bytes)}
            for key, value in place.items():
                header.external_data.add(key=key, value=value)
            headers.append(header)
            for block in _raw(weight):
                sha.update(block)
                file.write(block)
                advance(len(block))
    model.metadata_props.add(key=f"sha256 of {path.name}", value=sha.hexdigest())
    return headers


def _write_whole(
    model: onnx.ModelProto,
    initializers: Sequence[Initializer],
    file: BinaryIO,
    advance: Callable[[int], None],
) -> None:
    before, behind = _split(model, BEHIND_GRAPH)
    before.ClearField("graph")
    graph_before, graph_behind = _split(model.graph, BEHIND_INITIALIZERS)
    graph_before.ClearField("initializer")
    head, tail = graph_before.SerializeToString(), graph_behind.SerializeToString()
    heads = []
    for weight in initializers:
        start = weight.header().SerializeToString() + length_key(RAW_DATA) + varint(weight.bytes)
        heads.append(length_key(INITIALIZER) + varint(len(start) + weight.bytes) + start)
    size = len(head) + len(tail) + sum(map(len, heads)) + sum(weight.bytes for weight in initializers)
    file.write(before.SerializeToString() + length_key(GRAPH) + varint(size) + head)
    for start, weight in zip(heads, initializers, strict=True):
        file.write(start)
        for block in _raw(weight):
            file.write(block)
            advance(len(block))
    file.write(tail + behind.SerializeToString())


def _raw(weight: Initializer) -> Iterator[memoryview]:
    """The bytes of a weight; a wrong count would break the file, so it is checked."""
    written = 0
    for block in weight.blocks():
        values: Any = block.numpy().reshape(-1)
        raw = memoryview(values).cast("B")
        written += len(raw)
        yield raw
    if written != weight.bytes:
        raise ValueError(f"{weight.name}: {written} bytes instead of {weight.bytes}")


def _split(message: Any, behind: Sequence[str]) -> tuple[Any, Any]:
    """A message's fields in two messages: those not named, and those named."""
    first, second = type(message)(), type(message)()
    first.CopyFrom(message)
    second.CopyFrom(message)
    for field, _ in message.ListFields():
        (first if field.name in behind else second).ClearField(field.name)
    return first, second
