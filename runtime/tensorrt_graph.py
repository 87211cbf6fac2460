"""Refuse, in our words, an ONNX graph that TensorRT's parser would refuse or misread.

TensorRT takes explicit Q/DQ with int8 and a zero point of 0 only ("Non-zero zero point is not supported"),
no INT32 bias behind a DequantizeLinear, and JetPack 6's 10.3 no opset above 19.
"""

from __future__ import annotations

from pathlib import Path

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.onnx_outline import Constant, Node, Outline, read_outline

NEWEST_OPSET = 19
QDQ = ("QuantizeLinear", "DequantizeLinear")


def check_graph(source: Path | bytes, name: str | None = None, folder: Path | None = None) -> Outline:
    """Return what the graph is made of; raise BackendError naming every node TensorRT would not take."""
    outline = read_outline(source, name)
    shown_name = name or (str(source) if isinstance(source, Path) else "graph")
    place = folder or (source.parent if isinstance(source, Path) else Path())
    found = []
    if outline.opset > NEWEST_OPSET:
        found.append(f"opset {outline.opset} is above {NEWEST_OPSET}, the newest TensorRT 10.3 parses")
    found += [
        f"{node.name or node.outputs[0]}: {complaint}"
        for node in quantisers(outline)
        if (complaint := _complaint(node, outline.constants, place))
    ]
    if found:
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise BackendError(
            f"{shown_name}: not a graph TensorRT takes: {shown}; use the int8-trt artefact, or export anew"
        )
    return outline


def quantisers(outline: Outline) -> list[Node]:
    """The Q/DQ nodes of a graph."""
    return [node for node in outline.nodes if node.op in QDQ]


def _complaint(node: Node, constants: dict[str, Constant], folder: Path) -> str:
    source = constants.get(node.inputs[0])
    if node.op == "DequantizeLinear" and source is not None and source.kind == "int32":
        return "dequantises an INT32 bias; TensorRT keeps biases in float"
    if len(node.inputs) < 3 or not node.inputs[2]:
        if node.op == "QuantizeLinear":
            return "has no zero point, which means uint8; TensorRT takes int8 only"
        return "" if source is None or source.kind == "int8" else "dequantises other than int8"
    zero = constants.get(node.inputs[2])
    if zero is None:
        return f"its zero point {node.inputs[2]} is computed; TensorRT takes constants only"
    if zero.kind != "int8":
        return f"is {zero.kind}; TensorRT takes int8 only"
    return "" if zero.all_zero(folder) else "its zero point is not 0"
