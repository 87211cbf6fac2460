"""ONNX Runtime and OpenVINO on the same files: the same tokens, however crops are batched."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from radvlm_edge.bundle import Bundle, demo_bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.reader import Options, Reader
from radvlm_edge.runtime.vision import ENGINES, VisionTower, open_tower

openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed (extra `openvino`)"
)
BOTH = [pytest.param(name, marks=[openvino] if name == "openvino" else []) for name in ("onnx", "openvino")]
FLOAT_LIMIT = {"fp32": 1e-4, "fp16": 2e-3}
"""Largest difference of a token between engines, as a fraction of the largest token."""


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
    assert np.abs(tokens - expected).max() <= FLOAT_LIMIT[name.split()[1]] * np.abs(expected).max()
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
