"""Refuse, in our words, an ONNX graph that TensorRT's parser would refuse or misread.

TensorRT takes explicit Q/DQ with int8 and a zero point of 0 only ("Non-zero zero point is not supported"),
no INT32 bias behind a DequantizeLinear, and JetPack 6's 10.3 no opset above 19.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from radvlm_edge.errors import BackendError

NEWEST_OPSET = 19
QDQ = ("QuantizeLinear", "DequantizeLinear")


def check_tensorrt_graph(graph: Path | onnx.ModelProto) -> int:
    """Return the number of Q/DQ nodes; raise BackendError naming every node TensorRT would not take."""
    if isinstance(graph, Path):
        name, folder = str(graph), str(graph.parent)
        model = onnx.load(str(graph), load_external_data=False)
    else:
        name, folder, model = "graph", "", graph
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    found = []
    if opset > NEWEST_OPSET:
        found.append(f"opset {opset} is above {NEWEST_OPSET}, the newest TensorRT 10.3 parses")
    constants = _constants(model)
    nodes = [node for node in model.graph.node if node.op_type in QDQ]
    found += [
        f"{node.name or node.output[0]}: {complaint}"
        for node in nodes
        if (complaint := _complaint(node, constants, folder))
    ]
    if found:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise BackendError(
            f"{name}: not a graph TensorRT takes: {shown}; use the int8-trt artefact, or export anew"
        )
    return len(nodes)


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _complaint(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], folder: str) -> str:
    source = constants.get(node.input[0])
    if node.op_type == "DequantizeLinear" and source is not None and source.data_type == TensorProto.INT32:
        return "dequantises an INT32 bias; TensorRT keeps biases in float"
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            return "has no zero point, which means uint8; TensorRT takes int8 only"
        return "" if source is None or source.data_type == TensorProto.INT8 else "dequantises other than int8"
    zero = constants.get(node.input[2])
    if zero is None:
        return f"its zero point {node.input[2]} is computed; TensorRT takes constants only"
    if zero.data_type != TensorProto.INT8:
        kind = TensorProto.DataType.Name(zero.data_type).lower()
        return f"is {kind}; TensorRT takes int8 only"
    if zero.data_location == TensorProto.EXTERNAL:
        zero = onnx.TensorProto.FromString(zero.SerializeToString())
        external_data_helper.load_external_data_for_tensor(zero, folder)
    if np.any(numpy_helper.to_array(zero) != 0):
        return "its zero point is not 0"
    return ""
