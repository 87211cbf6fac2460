"""The INT8 graph for TensorRT, and graphs TensorRT would refuse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.int8 import Tower, values_of

from radvlm_edge.errors import BackendError
from radvlm_edge.export.tensorrt_check import check_tensorrt_graph

pytestmark = pytest.mark.torch


def test_the_tensorrt_graph_has_int8_zero_points_of_zero_and_half_precision_beside(
    int8_graphs: dict[str, Path],
) -> None:
    assert check_tensorrt_graph(int8_graphs["int8-trt"]) == 2 * 7 + 11
    kinds = Counter(values.dtype.name for values in values_of(int8_graphs["int8-trt"]).values())
    assert set(kinds) == {"int8", "float16"}
    with pytest.raises(BackendError, match="is uint8; TensorRT takes int8 only.*use the int8-trt artefact"):
        check_tensorrt_graph(int8_graphs["int8"])


def qdq_model(
    zero: np.ndarray | None, source: np.ndarray | None = None, opset: int = 19, computed: bool = False
) -> onnx.ModelProto:
    """One QuantizeLinear with its DequantizeLinear, or a DequantizeLinear of a constant."""
    nodes, initializers = [], [numpy_helper.from_array(np.array(0.1, np.float32), "scale")]
    inputs = ["scale"]
    if zero is not None:
        inputs.append("zero")
        if computed:
            nodes.append(helper.make_node("Identity", ["stored_zero"], ["zero"]))
        name = "stored_zero" if computed else "zero"
        initializers.append(numpy_helper.from_array(zero, name))
    if source is None:
        nodes.append(helper.make_node("QuantizeLinear", ["x", *inputs], ["q"], "quantise"))
    else:
        initializers.append(numpy_helper.from_array(source, "q"))
    nodes.append(helper.make_node("DequantizeLinear", ["q", *inputs], ["d"], "dequantise"))
    nodes.append(helper.make_node("Add", ["x", "d"], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (qdq_model(np.array(128, np.uint8)), "quantise: is uint8"),
        (qdq_model(np.array(3, np.int8)), "quantise: its zero point is not 0"),
        (qdq_model(None), "quantise: has no zero point, which means uint8"),
        (qdq_model(np.array(0, np.int8), computed=True), "zero point zero is computed"),
        (qdq_model(np.array(0, np.int32), np.array([1, 2, 3], np.int32)), "dequantises an INT32 bias"),
        (qdq_model(None, np.array([1, 2, 3], np.uint8)), "dequantises other than int8"),
        (qdq_model(np.array(0, np.int8), opset=20), "opset 20 is above 19"),
    ],
)
def test_graphs_tensorrt_refuses_are_refused_before(
    model: onnx.ModelProto, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=complaint):
        check_tensorrt_graph(model)
    onnx.save(
        model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0
    )
    with pytest.raises(BackendError, match=f"m.onnx: not a graph TensorRT takes: .*{complaint}") as error:
        check_tensorrt_graph(tmp_path / "m.onnx")
    assert "\n" not in str(error.value)


def test_graphs_tensorrt_takes_are_not_refused(tower: Tower) -> None:
    assert check_tensorrt_graph(qdq_model(np.array(0, np.int8))) == 2
    assert check_tensorrt_graph(tower.graph) == 0
