"""The two INT8 vision graphs: their arithmetic, what they leave alone, what refuses them, and the bundle."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests.int8 import Tower, make_tower, phantom, phantoms
from tests.tiny import make_checkpoint

from radvlm_edge.bundle import Bundle
from radvlm_edge.calibration.pieces import Pieces
from radvlm_edge.calibration.sensitivity import cosines
from radvlm_edge.cli import cli
from radvlm_edge.errors import BackendError, CheckpointError, OutputError, ParityError
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.int8_graph import insert_qdq, smoothed_weight
from radvlm_edge.export.int8_table import GROUPS, NORM_BEFORE, Group, Table, load_table
from radvlm_edge.export.tensorrt_check import check_tensorrt_graph
from radvlm_edge.export.vision import write_vision
from radvlm_edge.export.vision_int8 import write_int8
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.vision import open_tower
from radvlm_edge.runtime.vision_onnx import open_session

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tower(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    return make_tower(tiny_checkpoint, tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def table(tower: Tower) -> Table:
    """A calibration in which one group stayed in float."""
    made = tower.calibrate(phantoms(), tower.graph.with_name("unfinished"))
    return replace(made, float_groups=("blocks.1.fc1",))


@pytest.fixture(scope="module")
def graphs(tower: Tower, table: Table) -> dict[str, Path]:
    paths = {"fp32": tower.graph}
    for precision in ("int8", "int8-trt"):
        paths[precision] = tower.graph.with_name(f"{precision}.onnx")
        write_int8(tower.checkpoint, table, precision, paths[precision])
    return paths


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


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
    tower: Tower, table: Table, graphs: dict[str, Path]
) -> None:
    crops = tower.crops()
    emulation = Emulation(values_of(tower.graph), table, tower)
    expected = emulation.tokens(Pieces(tower.graph, 1).start(crops))
    assert len(emulation.codes) == 7
    model = onnx.load(str(graphs["int8"]))
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


def test_every_quantised_layer_runs_in_integer_kernels(graphs: dict[str, Path], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(graphs["int8"]), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["MatMulIntegerToFloat"] == 2 * 6 - 1  # fc1 of block 1 is in float
    assert kinds["QuantizeLinear"] == 2 * 4 - 1 and kinds["DequantizeLinear"] == 0
    floats = [name for node in nodes if node.op_type in ("MatMul", "FusedMatMul") for name in node.input]
    weights = [name for name in floats if name.endswith(".weight")]
    assert sorted(weights) == ["blocks.1.fc1.weight", "linear_1.weight", "linear_2.weight"]


def test_everything_else_is_the_float_graph_to_the_bit(table: Table, graphs: dict[str, Path]) -> None:
    before, after = values_of(graphs["fp32"]), values_of(graphs["int8"])
    smoothed = {
        f"blocks.{name.split('.')[1]}.{NORM_BEFORE[name.split('.')[2]]}.{part}"
        for name, group in table.groups.items()
        if group.shifts and name not in table.float_groups
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

    assert rest(graphs["int8"]) == rest(graphs["fp32"])
    kinds = {values.dtype for name, values in after.items() if name.endswith(("codes", "zero_point"))}
    assert kinds == {np.dtype(np.int8), np.dtype(np.uint8)}


def test_a_table_with_everything_in_float_gives_the_float_graphs_bits(
    tower: Tower, table: Table, tmp_path: Path
) -> None:
    everything = replace(table, float_groups=tuple(table.groups))
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


def test_both_graphs_agree_and_both_are_near_the_float_one(tower: Tower, graphs: dict[str, Path]) -> None:
    crops = tower.crops()
    tokens = {precision: open_tower(path, 1).encode(crops) for precision, path in graphs.items()}
    assert cosines(tokens["int8-trt"], tokens["int8"]).min() > 0.999
    assert np.quantile(cosines(tokens["int8"], tokens["fp32"]), 0.01) > 0.995
    codes = [
        {n: v for n, v in values_of(graphs[p]).items() if n.endswith("weight_codes")}
        for p in ("int8", "int8-trt")
    ]
    assert codes[0].keys() == codes[1].keys() and len(codes[0]) == 11
    assert all(np.array_equal(codes[0][name], codes[1][name]) for name in codes[0])


def test_the_tensorrt_graph_has_int8_zero_points_of_zero_and_half_precision_beside(
    graphs: dict[str, Path],
) -> None:
    assert check_tensorrt_graph(graphs["int8-trt"]) == 2 * 7 + 11
    kinds = Counter(values.dtype.name for values in values_of(graphs["int8-trt"]).values())
    assert set(kinds) == {"int8", "float16"}
    with pytest.raises(BackendError, match="is uint8; TensorRT takes int8 only.*use the int8-trt artefact"):
        check_tensorrt_graph(graphs["int8"])


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


@pytest.fixture(scope="module")
def bundle(tower: Tower, table: Table) -> Bundle:
    return export_checkpoint(
        tower.checkpoint.folder,
        tower.graph.with_name("b"),
        vision=("fp16", "int8"),
        language=("F16",),
        calibration=lambda *_: table,
    )


def test_a_bundle_holds_both_and_answers_with_int8(bundle: Bundle, table: Table, tmp_path: Path) -> None:
    held = {a.precision: a.path for a in bundle.manifest.artefacts if a.role == "vision"}
    assert held == {
        "fp16": "vision/fp16.onnx",
        "int8": "vision/int8.onnx",
        "int8-trt": "vision/int8-trt.onnx",
    }
    bundle.verify()
    assert bundle.manifest.defaults["vision"] == "fp16"
    assert load_table(bundle.folder / "vision" / "int8.json") == table
    said = (bundle.manifest.calibration or {})["vision"]
    assert said["sha256"] == table.sha256() and said["float_groups"] == ["blocks.1.fc1"]
    parity = json.loads((bundle.folder / "parity.json").read_text())["vision"]
    for precision in ("int8", "int8-trt"):
        assert parity[precision]["token_cosine_p1"] >= parity[precision]["gate"] == 0.995
    Image.fromarray(phantom(3).load().pixels).save(tmp_path / "film.png")
    with Reader.open(bundle.folder, Options(vision="int8", max_tokens=4)) as reader:
        answer = reader.look(tmp_path / "film.png").ask("any effusion?")
        assert answer.tokens > 0 and answer.provenance["vision"] == "int8"


def test_parity_holds_int8_to_its_gate(tower: Tower, table: Table, tmp_path: Path) -> None:
    coarse = {
        name: replace(group, thresholds={k: v * 30 for k, v in group.thresholds.items()})
        for name, group in table.groups.items()
    }
    with pytest.raises(ParityError, match="vision int8 has token cosine p1 .* .gate 0.995"):
        export_checkpoint(
            tower.checkpoint.folder,
            tmp_path / "b",
            vision=("int8",),
            language=("F16",),
            calibration=lambda *_: replace(table, groups=coarse),
        )
    assert not list(tmp_path.iterdir())


def test_calibrations_that_do_not_fit_are_refused(
    tower: Tower, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tower.checkpoint.folder
    with pytest.raises(CheckpointError, match="--vision int8 needs a calibration"):
        export_checkpoint(folder, tmp_path / "b", vision=("int8",))
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="another checkpoint's"):
        export_checkpoint(
            other, tmp_path / "b", vision=("int8",), parity="none", calibration=lambda *_: table
        )
    group = table.groups["blocks.0.qkv"]
    wide = replace(table, groups={"blocks.0.qkv": replace(group, shifts=(1,) * 40)})
    with pytest.raises(CheckpointError, match="has 40 channels, this tower 32"):
        write_int8(tower.checkpoint, wide, "int8", tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("no", "not JSON"),
        ("[]", "calibration format None"),
        ('{"format": 7}', "calibration format 7, not 1"),
        ('{"format": 1}', "damaged calibration file"),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CheckpointError, match=complaint):
        load_table(tmp_path / "c.json")
    with pytest.raises(CheckpointError, match="no such file"):
        load_table(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "median"},
        {"thresholds": {"mse": float("nan")}, "method": "mse"},
        {"shifts": [1], "name": "blocks.0.fc2"},
        {"name": "blocks.x.fc2"},
    ],
)
def test_damaged_groups_are_refused(table: Table, tmp_path: Path, change: dict[str, Any]) -> None:
    data = json.loads(table.text())
    name = change.pop("name", "blocks.0.fc1")
    data["groups"][name] = {**data["groups"]["blocks.0.fc2"], **change}
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="damaged calibration file"):
        load_table(tmp_path / "c.json")


def test_large_graphs_keep_their_weights_beside_them(
    tower: Tower, table: Table, tmp_path: Path, graphs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from radvlm_edge.export import graph_file

    monkeypatch.setattr(graph_file.write_graph, "__kwdefaults__", {"external_from": 0})
    write_vision(tower.checkpoint, "fp32", tmp_path / "fp32.onnx")
    write_int8(tower.checkpoint, table, "int8-trt", tmp_path / "int8-trt.onnx")
    write_int8(tower.checkpoint, table, "int8", tmp_path / "int8.onnx")
    assert (tmp_path / "int8-trt.onnx.data").exists()
    crops = tower.crops()
    for precision in ("int8", "int8-trt"):
        tokens = open_tower(tmp_path / f"{precision}.onnx", 1).encode(crops)
        np.testing.assert_array_equal(tokens, open_tower(graphs[precision], 1).encode(crops))
    inside, beside = Pieces(tower.graph, 1), Pieces(tmp_path / "fp32.onnx", 1)
    np.testing.assert_array_equal(inside.start(crops), beside.start(crops))


def test_the_command_line_calibrates_and_exports(
    tower: Tower, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films, out = tmp_path / "films", tmp_path / "c.json"
    films.mkdir()
    for seed in range(4):
        Image.fromarray(phantom(seed).load().pixels).save(films / f"{seed}.png")
    checkpoint = str(tower.checkpoint.folder)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, arguments)

    small = ["--crops", "12", "--held-out", "4", "--threads", "1"]
    result = run("calibrate", checkpoint, str(films), "-o", str(out), *small)
    assert result.exit_code == 0, result.output
    assert "8 of 8 groups of layers in INT8, token cosine p1 0.99" in result.output
    assert {p.name for p in tmp_path.iterdir()} == {"films", "c.json", "c.json.salt"}
    assert (tmp_path / "c.json.salt").stat().st_mode & 0o077 == 0
    made = load_table(out)
    assert isinstance(run("calibrate", checkpoint, str(films), "-o", str(out)).exception, OutputError)
    from_bundle = run("calibrate", str(bundle.folder), str(films), "-o", str(out), "--force", *small)
    assert from_bundle.exit_code == 0, from_bundle.output
    half = load_table(out)  # of the fp16 artefact: the bundle has no fp32
    assert half.source_sha256 == made.source_sha256 and half.films == made.films
    assert half.groups["blocks.0.fc2"].thresholds["minmax"] == pytest.approx(
        made.groups["blocks.0.fc2"].thresholds["minmax"], rel=1e-2
    )
    options = ["--vision", "int8", "--language", "F16", "--parity", "none", "-o", str(tmp_path / "b")]
    result = run("export", checkpoint, *options, "--calibration", str(out))
    assert result.exit_code == 0, result.output
    assert Bundle.open(tmp_path / "b").manifest.defaults["vision"] == "int8"
    refused = run("export", checkpoint, "--calibration", str(out))
    assert refused.exit_code == 2 and "--calibration is for --vision int8" in refused.output


def test_without_a_file_the_export_calibrates_itself(
    tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radvlm_edge.calibration import film_sets, vision

    monkeypatch.delenv("RADVLM_EDGE_DATA", raising=False)
    small = tmp_path / "small.yaml"
    small.write_text(
        "phantoms: {first_seed: 5, count: 3, short_side_crops: [1.8, 2.6]}\nnih_chestxray14: []\n"
    )
    monkeypatch.setattr(film_sets, "OPEN_SET", small)
    monkeypatch.setattr(vision.calibrate, "__kwdefaults__", {**vision.calibrate.__kwdefaults__, "crops": 10})
    arguments = ["export", str(tower.checkpoint.folder), "-o", str(tmp_path / "b"), "--language", "F16"]
    result = CliRunner().invoke(cli, [*arguments, "--vision", "int8", "--parity", "none"])
    assert result.exit_code == 0, result.output
    table = load_table(tmp_path / "b" / "vision" / "int8.json")
    assert table.films["kind"] == "open set" and table.films["films"] == 3
    held = {p.name for p in (tmp_path / "b" / "vision").iterdir()}
    assert held == {"int8.onnx", "int8-trt.onnx", "int8.json", "image_newline.npy"}
