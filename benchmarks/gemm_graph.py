"""An ONNX file of one matrix product, written byte by byte: the base install has no `onnx` to write it with.

Field numbers are onnx.proto3's (ModelProto 1, 7, 8; GraphProto 1, 2, 5, 11, 12; NodeProto 1, 2, 4;
TensorProto 1, 2, 8, 9; ValueInfoProto 1, 2); wire format: protobuf encoding, varints and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from radvlm_edge.export.wire import length_key, varint

FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6
"""TensorProto.DataType."""
TYPES = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int32": INT32}
IR_VERSION, OPSET = 8, 17


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _block(field: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return length_key(field) + varint(len(raw)) + raw


def _tensor(name: str, values: npt.NDArray[np.generic]) -> bytes:
    dims = b"".join(_number(1, size) for size in values.shape)
    kind = _number(2, TYPES[values.dtype.name])
    return dims + kind + _block(8, name) + _block(9, np.ascontiguousarray(values).tobytes())


def _value(name: str, kind: int, shape: Sequence[int]) -> bytes:
    dims = b"".join(_block(1, _number(1, size)) for size in shape)
    tensor_type = _number(1, kind) + _block(2, dims)
    return _block(1, name) + _block(2, _block(1, tensor_type))


def matmul_graph(rows: int, weights: npt.NDArray[np.generic]) -> bytes:
    """A model `a [rows, k] → out [rows, n]` that multiplies by `weights` `[k, n]`.

    float32 weights: MatMul of float32. int8 weights: MatMulInteger of uint8 by int8 into int32.
    """
    integer = weights.dtype == np.int8
    kinds = (UINT8, INT32) if integer else (FLOAT, FLOAT)
    operator = "MatMulInteger" if integer else "MatMul"
    node = _block(1, "a") + _block(1, "weights") + _block(2, "out") + _block(4, operator)
    inner, columns = weights.shape
    graph = (
        _block(1, node)
        + _block(2, "product")
        + _block(5, _tensor("weights", weights))
        + _block(11, _value("a", kinds[0], (rows, inner)))
        + _block(12, _value("out", kinds[1], (rows, columns)))
    )
    return _number(1, IR_VERSION) + _block(7, graph) + _block(8, _block(1, "") + _number(2, OPSET))
