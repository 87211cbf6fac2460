"""ONNX Runtime and OpenVINO on the same files: the same tokens, however crops are batched."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from radvlm_edge.benchmarks.vision_backends import AGREE_INT8
from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime import openvino_core, vision_choice
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.vision import ENGINES, VisionTower, open_tower

openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed (extra `openvino`)"
)
BOTH = [pytest.param(name, marks=[openvino] if name == "openvino" else []) for name in ("onnx", "openvino")]
FLOAT_LIMIT = {"fp32": 1e-4, "fp16": 2e-3}
"""Largest difference of a token between engines, as a fraction of the largest token."""


def difference(tokens: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest difference as a fraction of the largest token."""
    return float(np.abs(tokens - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> dict[str, Path]:
    """Float vision graphs: of the demonstration bundle, and of a tiny checkpoint."""
    demo, tiny = Bundle.open(demo_bundle()), Bundle.open(tiny_bundle)
    found = {"demo fp16": demo.path(demo.artefact("vision", "fp16"))}
    return found | {f"tiny {p}": tiny.path(tiny.artefact("vision", p)) for p in ("fp32", "fp16")}


def crops_for(path: Path, count: int = 5) -> npt.NDArray[np.uint8]:
    side = 144 if "demo" in str(path) else 28
    return np.random.default_rng(7).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


@openvino
@pytest.mark.parametrize("name", ["demo fp16", "tiny fp32", "tiny fp16"])
def test_both_engines_give_the_same_tokens(graphs: dict[str, Path], name: str) -> None:
    crops = crops_for(graphs[name])
    expected = open_tower(graphs[name], 1).encode(crops)
    tokens = open_tower(graphs[name], 1, backend="openvino").encode(crops)
    assert tokens.shape == expected.shape and tokens.dtype == expected.dtype == np.float32
    assert difference(tokens, expected) <= FLOAT_LIMIT[name.split()[1]]
    assert not np.array_equal(tokens, expected), "two engines that agree to the bit are one engine"


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("name", ["demo fp16", "tiny fp32"])
def test_how_crops_are_batched_changes_no_bit(graphs: dict[str, Path], name: str, backend: str) -> None:
    crops = crops_for(graphs[name], 5)
    whole = open_tower(graphs[name], 1, backend=backend, crops_per_batch=5).encode(crops)
    for size in (1, 2, 4):
        tower = open_tower(graphs[name], 1, backend=backend, crops_per_batch=size)
        first = tower.encode(crops)
        assert np.array_equal(first, whole)
        tower.encode(crops[::-1])  # what one run returned is not overwritten by the next
        assert np.array_equal(first, whole)
        assert np.array_equal(tower.encode(crops[::2]), whole[::2])  # a view that is not contiguous


@pytest.mark.parametrize("backend", BOTH)
def test_a_damaged_graph_is_one_line_naming_the_engine(
    graphs: dict[str, Path], backend: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(graphs["demo fp16"].read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"damaged\.onnx: \S+.* cannot load this graph: \S+") as error:
        open_tower(damaged, 1, backend=backend)
    assert "\n" not in str(error.value)


def test_an_engine_that_is_missing_names_its_extra(
    graphs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else find(name, *rest)
    )
    with pytest.raises(BackendError, match=r"openvino, not installed.*pip install 'radvlm-edge\[openvino\]'"):
        open_tower(graphs["tiny fp32"], backend="openvino")
    with pytest.raises(BackendError, match="no vision backend 'mlx'; choose one of onnx, openvino"):
        open_tower(graphs["tiny fp32"], backend="mlx")


@pytest.mark.parametrize("backend", BOTH)
def test_the_reader_says_which_engine_ran(tiny_bundle: Path, backend: str) -> None:
    with Reader.open(tiny_bundle, Options(vision_backend=backend, threads=1)) as reader:
        tower: VisionTower = reader.tower
        assert tower.backend.startswith(ENGINES[backend].package) and tower.plan.threads == 1
        assert tower.plan.sha256 == reader.vision_artefact.sha256
        assert reader.vision_plan()["chosen"] == "asked for; nothing measured"


@openvino
@pytest.mark.torch
class TestInt8:
    """The CPU's graph (uint8 codes, int8 weights), calibrated on phantoms."""

    @pytest.fixture(scope="class")
    def int8(
        self, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, npt.NDArray[np.uint8]]:
        from tests.int8 import make_tower, phantoms

        from radvlm_edge.export.vision_int8 import write_int8

        tower = make_tower(tiny_checkpoint, tmp_path_factory.mktemp("int8"))
        table = tower.calibrate(phantoms(), tower.graph.with_name("unfinished"))
        write_int8(tower.checkpoint, table, "int8", tower.graph.with_name("int8.onnx"))
        return tower.graph.with_name("int8.onnx"), tower.crops()

    def test_both_engines_give_the_same_tokens_on_any_cpu(
        self, int8: tuple[Path, npt.NDArray[np.uint8]]
    ) -> None:
        path, crops = int8
        expected = open_tower(path, 1).encode(crops)
        tower = open_tower(path, 1, backend="openvino")
        assert tower.backend.endswith("INT8 in float") != openvino_core.sums_exactly()
        assert difference(tower.encode(crops), expected) <= AGREE_INT8 / 2
        alone = open_tower(path, 1, backend="openvino", crops_per_batch=1).encode(crops)
        assert np.array_equal(alone, tower.encode(crops))
        assert np.array_equal(open_tower(path, 1, crops_per_batch=1).encode(crops), expected)

    def test_integer_kernels_read_scales_and_zero_points_as_onnx_runtime_does(
        self, int8: tuple[Path, npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights of seven bits cannot saturate, so this holds with and without VNNI."""
        import onnx
        from onnx import numpy_helper

        path, crops = int8
        model = onnx.load(str(path))
        values = {tensor.name: tensor for tensor in model.graph.initializer}
        for name in [name for name in values if name.endswith("weight_codes")]:
            halved = np.trunc(numpy_helper.to_array(values[name]) / 2).astype(np.int8)
            scale = values[name.replace("codes", "scale")]
            doubled = 2 * numpy_helper.to_array(scale)
            values[name].CopyFrom(numpy_helper.from_array(halved, name))
            scale.CopyFrom(numpy_helper.from_array(doubled, scale.name))
        onnx.save(model, str(tmp_path / "seven.onnx"))
        monkeypatch.setattr(openvino_core, "sums_exactly", lambda: True)
        compiled, _ = openvino_core.compile_graph(str(tmp_path / "seven.onnx"), 1)
        nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        integer = [i for i in nodes if i["layerType"].astype(str) == "FullyConnected"]
        assert sum(i["runtimePrecision"].astype(str) in ("u8", "i8") for i in integer) == 2 * 6
        tokens = open_tower(tmp_path / "seven.onnx", 1, backend="openvino").encode(crops)
        expected = open_tower(tmp_path / "seven.onnx", 1).encode(crops)
        assert difference(tokens, expected) <= AGREE_INT8 / 2

    def test_products_that_saturate_are_found_out(
        self, int8: tuple[Path, npt.NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if openvino_core.sums_exactly():
            pytest.skip("this CPU adds INT8 products exactly (VNNI)")
        path, crops = int8
        expected = open_tower(path, 1).encode(crops)
        monkeypatch.setattr(openvino_core, "sums_exactly", lambda: True)
        wrong = open_tower(path, 1, backend="openvino").encode(crops)
        assert difference(wrong, expected) > 2 * AGREE_INT8

    def test_an_openvino_that_cannot_help_it_refuses(
        self, int8: tuple[Path, npt.NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Core:
            def __init__(self) -> None:
                self.read_model = openvino_core._openvino().Core().read_model

            def compile_model(self, model: object, device: str, settings: dict[str, object]) -> object:
                assert settings["LP_TRANSFORMS_MODE"] == "NO"
                raise RuntimeError("NotFound: Unsupported property LP_TRANSFORMS_MODE by CPU plugin.")

        monkeypatch.setattr(openvino_core, "sums_exactly", lambda: False)
        monkeypatch.setattr(openvino_core, "open_core", Core)
        with pytest.raises(BackendError, match="saturates.*--vision-backend onnx, or a float artefact"):
            open_tower(int8[0], 1, backend="openvino")


@openvino
def test_what_saturates_is_what_the_cpu_lacks() -> None:
    """The instruction sets with exact sums, as Linux names them (Intel SDM: VPDPBUSD, TDPBUSD)."""
    flags = vision_choice._cpu_features().split()
    if "avx2" not in flags:
        pytest.skip("no x86 CPU with AVX2")
    exact = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)
    assert openvino_core.sums_exactly() == bool(exact)


QUIET = """
import sys, os
seen = []
sys.addaudithook(lambda name, given: seen.append(name) if name.startswith("socket.") else None)
from pathlib import Path
from radvlm_edge.runtime.vision import open_tower
before = os.sched_getaffinity(0)
open_tower(Path(sys.argv[1]), 1, backend="openvino")
assert os.sched_getaffinity(0) == before, "OpenVINO tied this process to other CPUs"
loaded = [name for name in sys.modules if name.startswith(("openvino_telemetry", "multiprocessing"))]
print(seen, loaded, os.listdir(os.environ["HOME"]))
"""


@openvino
def test_openvino_reports_nothing_to_its_maker(graphs: dict[str, Path], tmp_path: Path) -> None:
    code = [sys.executable, "-c", QUIET, str(graphs["tiny fp32"])]
    result = subprocess.run(code, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[] [] []", result.stderr
