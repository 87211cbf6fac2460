"""The naive INT8 tower: everything in it is quantised by MinMax, and it is measured as the gated one is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.int8 import Tower, values_of
from tests.tiny import make_checkpoint

from radvlm_edge.benchmarks import nano_flips
from radvlm_edge.benchmarks.naive_int8 import measure, naive_graph, quantise_everything, reading_floats
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import CheckpointError

pytestmark = pytest.mark.torch


def ranges_of(graph: Path, kinds: tuple[str, ...], crops: np.ndarray) -> dict[str, tuple[float, float]]:
    """Least and largest value, zero included, of what every operator of these kinds puts out."""
    model = onnx.load(str(graph))
    names = [node.output[0] for node in model.graph.node if node.op_type in kinds]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {"crops": crops})
    return {n: (min(0.0, v.min()), max(0.0, v.max())) for n, v in zip(names, values, strict=True)}


def test_everything_is_quantised_with_one_minmax_scale_a_tensor(tower: Tower, tmp_path: Path) -> None:
    crops, naive = tower.crops(), tmp_path / "naive.onnx"
    quantise_everything(tower.graph, naive, crops)
    before = reading_floats(tower.graph)
    assert before["MatMul"] == 2 * 8 + 2 and before["Softmax"] == 2 and before["LayerNormalization"] == 4
    assert before["Conv"] == 1 and before["Tanh"] == 2 and before["Erf"] == 1
    assert not reading_floats(naive)
    values, model = values_of(naive), onnx.load(str(naive))
    kept = [node for node in model.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.op_type for node in kept} == {
        node.op_type for node in onnx.load(str(tower.graph)).graph.node
    }
    scales = {node.input[0]: node.input[1:] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert all(values[name].size == 1 for pair in scales.values() for name in pair)
    expected = ranges_of(tower.graph, ("LayerNormalization", "Tanh", "Conv"), crops)
    assert len(expected) == 4 + 2 + 1
    expected |= dict.fromkeys(ranges_of(tower.graph, ("Softmax",), crops), (0.0, 1.0))  # as known beforehand
    for name, (low, high) in expected.items():
        scale, zero = (values[one] for one in scales[name])
        assert zero.dtype == np.uint8
        np.testing.assert_allclose(scale, (high - low) / 255, rtol=1e-4)
        assert abs(float(zero) + low / float(scale)) <= 0.51


def test_both_are_measured_on_the_same_questions(int8_bundle: Bundle, tower: Tower) -> None:
    folder = int8_bundle.folder
    found = measure(folder, tower.checkpoint.folder, 2, threads=1, calibration_films=2)
    flips = nano_flips.measure(folder, ["vision=int8"], 2, threads=1, tasks=["yesno"])
    naive, gated = found["ways"]["naive"], found["ways"]["int8"]
    assert flips["ways"]["vision=int8"].items() <= gated.items()
    assert naive["yes_no"] == gated["yes_no"] == 10 and naive["moved_most"] > gated["moved_most"] > 0
    assert naive["token_cosine"]["p1"] < gated["token_cosine"]["p1"] < found["default"]["token_cosine"]["p1"]
    assert found["naive"]["reading_floats"] == {} and found["naive"]["bytes"] > 0


def test_another_checkpoints_bundle_is_refused(int8_bundle: Bundle, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="was exported from another checkpoint"):
        naive_graph(int8_bundle, other, tmp_path, films=1)
