"""An ONNX file's nodes and small constants, without the onnx package and without its weights in memory.

The device has no onnx package, and a graph is checked there before an engine's parser sees it.
Source of the field numbers: onnx.proto; of the encoding: protobuf's own description.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from radvlm_edge.errors import BackendError

KINDS = {1: "float", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}
"""TensorProto.DataType, those an exported graph holds."""

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Constant:
    """An initialiser, or a Constant node's value."""

    kind: str
    """Of its numbers, e.g. `int8`; `type 17` for those `KINDS` does not name."""
    dims: tuple[int, ...]
    raw: Bytes
    """Its bytes, unless they are in a file of their own."""
    numbers: tuple[int, ...] = ()
    """Its numbers where they are written as such (int32_data)."""
    external: tuple[str, int, int] | None = None
    """File beside the graph, offset, length in bytes (-1: to its end)."""

    def all_zero(self, folder: Path) -> bool:
        """Whether every byte of it is 0; a file beside the graph is read for it."""
        raw: Bytes = self.raw
        if self.external is not None:
            name, offset, length = self.external
            with (folder / name).open("rb") as file:
                file.seek(offset)
                raw = file.read(length)
        return not any(bytes(raw)) and not any(self.numbers)


@dataclass(frozen=True)
class Node:
    """One operation."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """What a graph is made of."""

    opset: int
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    """Name → kind and dims; -1 where a dim is open. Initialisers that are inputs too are left out."""


def read_outline(source: Path | bytes, name: str | None = None) -> Outline:
    """Read a graph. Raises BackendError for a file that is no ONNX graph or ends too early."""
    shown = name or str(source if isinstance(source, Path) else "graph")
    try:
        if isinstance(source, bytes):
            return _model(memoryview(source))
        with source.open("rb") as file:
            return _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError:
        raise BackendError(f"{shown}: no such file; run `radvlm-edge verify` on its bundle") from None
    except (ValueError, IndexError, KeyError) as error:
        raise BackendError(
            f"{shown}: not an ONNX graph ({error}); run `radvlm-edge verify` on its bundle"
        ) from None


def _model(view: memoryview) -> Outline:
    opset, graphs = 0, []
    for field, value in _fields(view):
        if field == 7:
            graphs.append(_bytes(value))
        elif field == 8:
            parts = dict(_fields(_bytes(value)))
            domain = bytes(_bytes(parts.get(1, memoryview(b"")))).decode()
            if domain in ("", "ai.onnx"):
                opset = _int(parts[2])
    if len(graphs) != 1 or not opset:
        raise ValueError("it holds no graph")
    nodes: list[Node] = []
    constants: dict[str, Constant] = {}
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for field, value in _fields(graphs[0]):
        if field == 1:
            node, held = _node(_bytes(value))
            nodes.append(node)
            if held is not None:
                constants[node.outputs[0]] = held
        elif field == 5:
            name, constant = _tensor(_bytes(value))
            constants[name] = constant
        elif field == 11:
            inputs |= _input(_bytes(value))
    return Outline(opset, tuple(nodes), constants, {k: v for k, v in inputs.items() if k not in constants})


def _node(view: memoryview) -> tuple[Node, Constant | None]:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    held = None
    for field, value in _fields(view):
        if field in texts:
            texts[field].append(bytes(_bytes(value)).decode())
        elif field == 5:  # an attribute, whose field 5 is a tensor
            for inner, tensor in _fields(_bytes(value)):
                if inner == 5:
                    held = _tensor(_bytes(tensor))[1]
    op = "".join(texts[4])
    node = Node(op, "".join(texts[3]), tuple(texts[1]), tuple(texts[2]))
    return node, held if op == "Constant" else None


def _tensor(view: memoryview) -> tuple[str, Constant]:
    name, kind, raw = "", 0, memoryview(b"")
    dims: list[int] = []
    numbers: list[int] = []
    places: dict[str, str] = {}
    external = False
    for field, value in _fields(view):
        if field == 1:
            dims += _ints(value)
        elif field == 2:
            kind = _int(value)
        elif field == 5:
            numbers += _ints(value)
        elif field == 8:
            name = bytes(_bytes(value)).decode()
        elif field == 9:
            raw = _bytes(value)
        elif field == 13:
            entry = {k: bytes(_bytes(v)).decode() for k, v in _fields(_bytes(value))}
            places[entry[1]] = entry.get(2, "")
        elif field == 14:
            external = _int(value) == 1
    beside = None
    if external:
        beside = places["location"], int(places.get("offset", 0)), int(places.get("length", -1))
    return name, Constant(_kind(kind), tuple(dims), raw, tuple(numbers), beside)


def _input(view: memoryview) -> dict[str, tuple[str, tuple[int, ...]]]:
    """ValueInfoProto: name = 1, type = 2, its tensor_type = 1 with elem_type = 1 and shape = 2, dims = 1."""
    info = dict(_fields(view))
    tensor = dict(_fields(_bytes(dict(_fields(_bytes(info[2])))[1])))
    dims = []
    for field, value in _fields(_bytes(tensor.get(2, memoryview(b"")))):
        if field == 1:
            dims.append(_int(dict(_fields(_bytes(value))).get(1, -1)))
    return {bytes(_bytes(info[1])).decode(): (_kind(_int(tensor[1])), tuple(dims))}


def _kind(number: int) -> str:
    return KINDS.get(number, f"type {number}")


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of everything in a message: a number, or the bytes of a field with a length."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, at = _varint(view, at)
            yield field, number
            continue
        if wire not in (1, 2, 5) or field == 0:
            raise ValueError(f"wire type {wire} at byte {at}")
        size, at = _varint(view, at) if wire == 2 else (8 if wire == 1 else 4, at)
        if at + size > len(view):
            raise ValueError("it ends too early")
        yield field, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _ints(value: int | memoryview) -> list[int]:
    """A repeated number, packed or not."""
    if isinstance(value, int):
        return [_int(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_int(number))
    return found
