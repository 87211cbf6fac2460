"""What TensorRT is given: read without the onnx package, and judged as TensorRT-RTX's own parser does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.int8 import make_tower, phantoms

from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.cli import cli
from radvlm_edge.errors import BackendError, BundleError
from radvlm_edge.export.vision import write_vision
from radvlm_edge.export.vision_int8 import write_int8
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.engine_cache import root
from radvlm_edge.runtime.golden import LIMITS, compare, load_golden, refusal
from radvlm_edge.runtime.onnx_outline import KINDS, read_outline
from radvlm_edge.runtime.tensorrt_engines import try_build
from radvlm_edge.runtime.tensorrt_graph import check_graph
from radvlm_edge.runtime.tensorrt_library import build_engine, make_logger
from radvlm_edge.runtime.vision import open_tower

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def rtx() -> Any:
    """The real builder and parser; it needs neither GPU nor driver."""
    return pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed (extra `tensorrt-rtx`; x86 only)"
    )


@pytest.fixture(scope="module")
def graphs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every vision graph an export writes."""
    tower = make_tower(tiny_checkpoint, tmp_path_factory.mktemp("graphs"))
    found = {name: tower.graph.with_name(f"{name}.onnx") for name in ("fp32", "fp16", "int8", "int8-trt")}
    write_vision(tower.checkpoint, "fp16", found["fp16"])
    table = tower.calibrate(phantoms(3), tower.graph.with_name("unfinished"), crops=12)
    for precision in ("int8", "int8-trt"):
        write_int8(tower.checkpoint, table, precision, found[precision])
    return found


@pytest.fixture(scope="module")
def geometry(tiny_bundle: Path) -> Geometry:
    return Bundle.open(tiny_bundle).manifest.geometry


def check_against_onnx(path: Path) -> None:
    ours, theirs = read_outline(path), onnx.load(str(path))
    assert ours.opset == theirs.opset_import[0].version
    nodes = [(n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in theirs.graph.node]
    assert [(n.op, n.name, n.inputs, n.outputs) for n in ours.nodes] == nodes
    held = {t.name: t for t in theirs.graph.initializer}
    held |= {n.output[0]: n.attribute[0].t for n in theirs.graph.node if n.op_type == "Constant"}
    assert ours.constants.keys() == held.keys()
    for name, tensor in held.items():
        constant = ours.constants[name]
        assert (constant.kind, constant.dims) == (KINDS[tensor.data_type], tuple(tensor.dims)), name
        zero = not np.any(numpy_helper.to_array(tensor))
        if constant.kind.startswith(("int", "uint")):
            assert constant.all_zero(path.parent) == zero, name
    assert set(ours.inputs) == {"crops"} and ours.inputs["crops"][0] == "uint8"


def test_graphs_read_as_the_onnx_package_reads_them(graphs: dict[str, Path]) -> None:
    for path in (*graphs.values(), demo_bundle() / "vision" / "fp16.onnx"):
        check_against_onnx(path)


def small(zero: Any = None, *, bias: bool = False, how: str = "raw", opset: int = 19) -> onnx.ModelProto:
    """y = x · W + b, x and W quantised around `zero`; with `bias`, b is a dequantised INT32."""
    rng = np.random.default_rng(3)
    kind = np.int8 if zero is None else zero.dtype.type
    arrays = {
        "scale": np.array(0.02, np.float32),
        "zero": np.zeros((), np.int8) if zero is None else zero,
        "codes": rng.integers(0, 100, (16, 8)).astype(kind),
        "bias_codes": rng.integers(-9, 9, 8).astype(np.int32),
    }
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    if how == "numbers":
        value = arrays["zero"]
        number = helper.np_dtype_to_tensor_dtype(value.dtype)
        held[1] = helper.make_tensor("zero", number, (), [int(value)])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantise"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], "weights"),
        helper.make_node("MatMul", ["d", "w"], ["m"], "product"),
    ]
    if bias:
        nodes.append(helper.make_node("DequantizeLinear", ["bias_codes", "scale"], ["b"], "bias"))
        nodes.append(helper.make_node("Add", ["m", "b"], ["y"], "add"))
    else:
        held, nodes = held[:3], [*nodes, helper.make_node("Identity", ["m"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def parses(rtx: Any, model: onnx.ModelProto) -> bool:
    log = make_logger(rtx)
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return bool(rtx.OnnxParser(network, log).parse(model.SerializeToString()))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (small(), None),
        (small(how="numbers"), None),
        (small(np.array(128, np.uint8)), "quantise: is uint8"),
        (small(np.array(128, np.uint8), how="numbers"), "quantise: is uint8"),
        (small(np.array(-3, np.int8)), "quantise: its zero point is not 0"),
        (small(np.array(-3, np.int8), how="numbers"), "quantise: its zero point is not 0"),
        (small(bias=True), "bias: dequantises an INT32 bias"),
    ],
)
def test_our_check_and_tensorrts_parser_refuse_the_same(
    rtx: Any, model: onnx.ModelProto, complaint: str | None
) -> None:
    assert parses(rtx, model) == (complaint is None), "the parser's own verdict changed"
    if complaint is None:
        check_graph(model.SerializeToString(), "small")
        return
    with pytest.raises(BackendError, match=f"small: not a graph TensorRT takes: {complaint}"):
        check_graph(model.SerializeToString(), "small")


WHOLE = small(np.array(-3, np.int8)).SerializeToString()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.booleans())
def test_damaged_files_are_one_line_and_no_traceback(at: int, byte: int, cut: bool) -> None:
    damaged = WHOLE[:at] if cut else WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :]
    try:
        check_graph(damaged, "damaged")
    except BackendError as error:
        assert str(error).startswith("damaged: ") and "\n" not in str(error)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-trt"])
def test_tensorrt_rtx_builds_every_graph_meant_for_it(
    rtx: Any, graphs: dict[str, Path], geometry: Geometry, precision: str
) -> None:
    """On a CPU, by the real parser and builder: nothing is run."""
    phases: dict[str, int] = {}

    def report(phase: str, done: int, total: int) -> None:
        phases[phase] = max(phases.get(phase, 0), done)

    facts = try_build("tensorrt-rtx", graphs[precision], geometry, workspace_mib=256, report=report)
    assert facts["version"] == rtx.__version__ and facts["engine_bytes"] > 100_000
    assert facts["input"] == ["uint8", -1, 3, geometry.crop_px, geometry.crop_px]
    assert phases, "the builder told no progress"


def test_the_graph_for_cpus_is_refused_by_us_before_the_parser_would(
    rtx: Any, graphs: dict[str, Path], geometry: Geometry
) -> None:
    with pytest.raises(BackendError, match="is uint8; TensorRT takes int8 only"):
        try_build("tensorrt-rtx", graphs["int8"], geometry)
    with pytest.raises(BackendError, match="cannot parse this graph: .*zero point is not supported"):
        build_engine(rtx, graphs["int8"], (1, 2, 3))


def test_int8_for_tensorrt_is_well_inside_what_an_engine_may_be_off(
    graphs: dict[str, Path], tiny_bundle: Path
) -> None:
    """Computed by ONNX Runtime; the bundle is of the same checkpoint."""
    golden = load_golden(tiny_bundle)
    found = compare(golden, open_tower(graphs["int8-trt"], 1).encode, (1, 3))
    limit = LIMITS["int8-trt"]
    assert 1 - found.cosine < 0.5 * (1 - limit.cosine) and found.error < 0.5 * limit.error, found
    assert refusal(found, "int8-trt") is None and refusal(found, "fp32") is not None


def test_the_command_builds_without_a_gpu_when_nothing_is_kept(rtx: Any, tiny_bundle: Path) -> None:
    dry = ["build", str(tiny_bundle), "--backend", "tensorrt-rtx", "--dry-run"]
    result = CliRunner().invoke(cli, [*dry, "--vision", "fp16"])
    assert result.exit_code == 0, result.output
    assert (
        f"tensorrt-rtx {rtx.__version__} takes its" in result.output and "not kept, not run" in result.output
    )
    assert not root().exists()
    missing = CliRunner().invoke(cli, [*dry, "--vision", "int8-trt"])
    assert isinstance(missing.exception, BundleError)
    assert "no vision artefact 'int8-trt'; this bundle has fp32, fp16" in str(missing.exception)


def test_ctrl_c_in_the_progress_ends_the_build(rtx: Any, graphs: dict[str, Path]) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx, graphs["fp32"], (1, 2, 3), report=interrupt)
