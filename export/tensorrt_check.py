"""The check of runtime/tensorrt_graph.py on graphs as export has them."""

from __future__ import annotations

from pathlib import Path

import onnx

from radvlm_edge.runtime.tensorrt_graph import NEWEST_OPSET as NEWEST_OPSET
from radvlm_edge.runtime.tensorrt_graph import check_graph, quantisers


def check_tensorrt_graph(graph: Path | onnx.ModelProto) -> int:
    """Return the number of Q/DQ nodes; raise BackendError naming every node TensorRT would not take."""
    if isinstance(graph, Path):
        return len(quantisers(check_graph(graph)))
    return len(quantisers(check_graph(graph.SerializeToString(), "graph")))
