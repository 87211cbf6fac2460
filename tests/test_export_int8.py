"""The INT8 vision graph: its arithmetic, what runs in integers, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.int8 import Tower, values_of

from radvlm_edge.calibration.pieces import Pieces
from radvlm_edge.calibration.sensitivity import cosines
from radvlm_edge.export.int8_graph import insert_qdq, smoothed_weight
from radvlm_edge.export.int8_table import GROUPS, NORM_BEFORE, Group, Table
from radvlm_edge.export.vision import write_vision
from radvlm_edge.export.vision_int8 import write_int8
from radvlm_edge.runtime.vision import open_tower
from radvlm_edge.runtime.vision_onnx import open_session

pytestmark = pytest.mark.torch


class Emulation:
    """The INT8 tower in numpy, from the float graph's weights and the table alone."""

    def __init__(self, weights: dict[str, np.ndarray], table: Table, tower: Tower) -> None:
        self.weights, self.table = weights, table
        self.heads = tower.checkpoint.config.tower.heads
        self.eps = tower.checkpoint.config.tower.eps
        self.codes: dict[str, np.ndarray] = {}

    def tokens(self, hidden: np.ndarray) -> np.ndarray:
        w = self.weights
        for block in range(2):
            hidden = self.block(f"blocks.{block}", hidden)
        x = hidden @ w["linear_1.weight"] + w["linear_1.bias"]
        x = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
        return x @ w["linear_2.weight"] + w["linear_2.bias"]

    def block(self, root: str, x: np.ndarray) -> np.ndarray:
        n, t, width = x.shape
        y = self.norm(f"{root}.norm1", x)
        q, k, v = (
            part.reshape(n, t, self.heads, -1).transpose(0, 2, 1, 3)
            for part in self.linears(f"{root}.qkv", y)
        )
        logits = (q * np.float32(q.shape[-1] ** -0.5)) @ k.transpose(0, 1, 3, 2)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        (out,) = self.linears(f"{root}.out_proj", mixed.transpose(0, 2, 1, 3).reshape(n, t, width))
        x = x + out
        (wide,) = self.linears(f"{root}.fc1", self.norm(f"{root}.norm2", x))
        bent = torch.nn.functional.gelu(torch.from_numpy(wide), approximate="tanh").numpy()
        (out,) = self.linears(f"{root}.fc2", bent)
        return np.asarray(x + out, np.float32)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return np.asarray(unit * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"], np.float32)

    def linears(self, name: str, x: np.ndarray) -> list[np.ndarray]:
        """x @ W + b of every layer of a group, as DequantizeLinear(QuantizeLinear(x)) @ Dequantize(W)."""
        root, _, kind = name.rpartition(".")
        names = [f"{root}.{linear}" for linear in GROUPS[kind]]
        pairs = [(self.weights[f"{one}.weight"], self.weights[f"{one}.bias"]) for one in names]
        if name in self.table.float_groups:
            return [x @ weight + bias for weight, bias in pairs]
        group = self.table.groups[name]
        factors = np.float32(2) ** np.array(group.shifts or [0] * x.shape[-1], np.float32)
        codes = np.clip(np.rint(x / factors / group.scale), -128, 127)
        self.codes[name] = codes
        out = []
        for weight, bias in pairs:
            smoothed = weight * factors[:, None]
            steps = np.maximum(np.abs(smoothed).max(0) / 127, 2.0**-20).astype(np.float16).astype(np.float32)
            integers = np.clip(np.rint(smoothed / steps), -127, 127)
            product = codes.astype(np.int64) @ integers.astype(np.int64)
            out.append((product * (group.scale * steps) + bias).astype(np.float32))
        return out


def test_the_graph_is_the_numpy_emulation_of_its_arithmetic(
    tower: Tower, int8_table: Table, int8_graphs: dict[str, Path]
) -> None:
    crops = tower.crops()
    emulation = Emulation(values_of(tower.graph), int8_table, tower)
    expected = emulation.tokens(Pieces(tower.graph, 1).start(crops))
    assert len(emulation.codes) == 7
    model = onnx.load(str(int8_graphs["int8"]))
    for name in emulation.codes:
        value = helper.make_tensor_value_info(f"{name}.input_codes", TensorProto.UINT8, None)
        model.graph.output.append(value)
    for mapped in (True, False):  # without and with ONNX Runtime's own rewriting
        session = open_session(model.SerializeToString(), 1, mapped=mapped)
        tokens, *codes = session.run(None, {"crops": crops})
        for (name, ours), theirs in zip(emulation.codes.items(), codes, strict=True):
            steps = np.abs(theirs.astype(np.int64) - 128 - ours)
            assert steps.max() <= 1 and (steps > 0).mean() < 2e-3, name
        assert cosines(tokens, expected).min() > 0.9999


def test_every_quantised_layer_runs_in_integer_kernels(int8_graphs: dict[str, Path], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(int8_graphs["int8"]), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["MatMulIntegerToFloat"] == 2 * 6 - 1  # fc1 of block 1 is in float
    assert kinds["QuantizeLinear"] == 2 * 4 - 1 and kinds["DequantizeLinear"] == 0
    floats = [name for node in nodes if node.op_type in ("MatMul", "FusedMatMul") for name in node.input]
    weights = [name for name in floats if name.endswith(".weight")]
    assert sorted(weights) == ["blocks.1.fc1.weight", "linear_1.weight", "linear_2.weight"]


def test_everything_else_is_the_float_graph_to_the_bit(
    int8_table: Table, int8_graphs: dict[str, Path]
) -> None:
    before, after = values_of(int8_graphs["fp32"]), values_of(int8_graphs["int8"])
    smoothed = {
        f"blocks.{name.split('.')[1]}.{NORM_BEFORE[name.split('.')[2]]}.{part}"
        for name, group in int8_table.groups.items()
        if group.shifts and name not in int8_table.float_groups
        for part in ("weight", "bias")
    }
    shared = before.keys() & after.keys()
    gone = before.keys() - after.keys()
    assert len(gone) == 11 and all(
        name.endswith(("_proj.weight", "fc1.weight", "fc2.weight")) for name in gone
    )
    assert smoothed and "blocks.1.fc1.weight" in shared and "blocks.1.norm2.weight" not in smoothed
    for name in shared - smoothed:
        assert before[name].tobytes() == after[name].tobytes(), name

    def rest(path: Path) -> list[tuple[Any, ...]]:
        nodes = onnx.load(str(path)).graph.node
        kept = [node for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
        return [
            (n.op_type, n.name, list(n.output), [a.SerializeToString() for a in n.attribute]) for n in kept
        ]

    assert rest(int8_graphs["int8"]) == rest(int8_graphs["fp32"])
    kinds = {values.dtype for name, values in after.items() if name.endswith(("codes", "zero_point"))}
    assert kinds == {np.dtype(np.int8), np.dtype(np.uint8)}


def test_a_table_with_everything_in_float_gives_the_float_graphs_bits(
    tower: Tower, int8_table: Table, tmp_path: Path
) -> None:
    everything = replace(int8_table, float_groups=tuple(int8_table.groups))
    write_int8(tower.checkpoint, everything, "int8", tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").read_bytes() == tower.graph.read_bytes()


def test_smoothing_folded_into_the_norm_changes_no_bit(tower: Tower) -> None:
    model = onnx.load(str(tower.graph))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    rng = np.random.default_rng(1)
    groups = {
        f"blocks.{block}.{kind}": Group(
            {"minmax": 1.0}, "minmax", 0.5, tuple(rng.integers(-8, 9, 32).tolist())
        )
        for block in range(2)
        for kind in NORM_BEFORE
    }
    rewrite = insert_qdq(
        onnx.ModelProto.FromString(model.SerializeToString()),
        Table("", groups),
        {name: array.shape for name, array in values.items()},
        "cpu",
    )
    folded = {n: one.values(values.__getitem__) for n, one in rewrite.derived.items() if "norm" in n}
    assert len(folded) == 8
    for name, group in groups.items():
        root, _, kind = name.rpartition(".")
        for linear in GROUPS[kind]:
            weight = f"{root}.{linear}.weight"
            folded[weight] = smoothed_weight(values[weight], group.shifts)
    del model.graph.initializer[:]
    arrays = {**values, **folded}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    crops = tower.crops()
    (tokens,) = open_session(model.SerializeToString(), 1).run(None, {"crops": crops})
    expected = open_tower(tower.graph, 1).encode(crops)
    np.testing.assert_allclose(tokens, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(tokens, expected)


def test_both_graphs_agree_and_both_are_near_the_float_one(
    tower: Tower, int8_graphs: dict[str, Path]
) -> None:
    crops = tower.crops()
    tokens = {precision: open_tower(path, 1).encode(crops) for precision, path in int8_graphs.items()}
    assert cosines(tokens["int8-trt"], tokens["int8"]).min() > 0.999
    assert np.quantile(cosines(tokens["int8"], tokens["fp32"]), 0.01) > 0.995
    codes = [
        {n: v for n, v in values_of(int8_graphs[p]).items() if n.endswith("weight_codes")}
        for p in ("int8", "int8-trt")
    ]
    assert codes[0].keys() == codes[1].keys() and len(codes[0]) == 11
    assert all(np.array_equal(codes[0][name], codes[1][name]) for name in codes[0])


def test_large_graphs_keep_their_weights_beside_them(
    tower: Tower,
    int8_table: Table,
    tmp_path: Path,
    int8_graphs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from radvlm_edge.export import graph_file

    monkeypatch.setattr(graph_file.write_graph, "__kwdefaults__", {"external_from": 0})
    write_vision(tower.checkpoint, "fp32", tmp_path / "fp32.onnx")
    write_int8(tower.checkpoint, int8_table, "int8-trt", tmp_path / "int8-trt.onnx")
    write_int8(tower.checkpoint, int8_table, "int8", tmp_path / "int8.onnx")
    assert (tmp_path / "int8-trt.onnx.data").exists()
    crops = tower.crops()
    for precision in ("int8", "int8-trt"):
        tokens = open_tower(tmp_path / f"{precision}.onnx", 1).encode(crops)
        np.testing.assert_array_equal(tokens, open_tower(int8_graphs[precision], 1).encode(crops))
    inside, beside = Pieces(tower.graph, 1), Pieces(tmp_path / "fp32.onnx", 1)
    np.testing.assert_array_equal(inside.start(crops), beside.start(crops))
