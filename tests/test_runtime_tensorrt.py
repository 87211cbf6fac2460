"""The engine of a bundle's tower: found, kept, compared, refused. TensorRT's runtime is stood in for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.trt_stand_ins import FakeContext, FakeCudaApi, FakeEngine, FakeLibrary, graph_bytes

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BackendError, BundleError, OutputError
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.reseal import reseal
from radvlm_edge.runtime import engine_cache, tensorrt_engines, vision_tensorrt
from radvlm_edge.runtime.cuda import Cuda
from radvlm_edge.runtime.engine_cache import Entry, Key
from radvlm_edge.runtime.golden import LIMITS, compare, load_golden, refusal
from radvlm_edge.runtime.tensorrt_engines import SKIPPED, Target, checked, profile_of
from radvlm_edge.runtime.vision import Plan, open_tower
from radvlm_edge.runtime.vision_fallback import GPU_ORDER, open_best
from radvlm_edge.runtime.vision_tensorrt import TensorRtTower

PROFILE = (1, 4, 7)
KEY = Key("a" * 64, "tensorrt", "10.3.0", "Orin", "8.7", "L4T 36.4.3", (1, 10, 37), ("strongly-typed",))


def test_profiles_are_the_geometrys_least_usual_and_most_crops() -> None:
    assert profile_of(GEOMETRIES["radvlm-7b"]) == (1, 10, 37)
    small = replace(GEOMETRIES["radvlm-7b"], pinpoints=((384, 768), (768, 768)))
    assert profile_of(small) == (1, 5, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"artefact": "b" * 64},
        {"backend": "tensorrt-rtx"},
        {"version": "10.16.1"},
        {"gpu": "NVIDIA Thor"},
        {"compute": "11.0"},
        {"driver": "L4T 36.4.4"},
        {"profile": (1, 10, 31)},
        {"flags": ()},
    ],
)
def test_an_engine_is_found_only_under_all_it_depends_on(change: dict[str, Any]) -> None:
    Entry(KEY).write(b"engine", SKIPPED)
    assert Entry(KEY).read() == b"engine"
    other = Entry(replace(KEY, **change))
    assert other.folder != Entry(KEY).folder and other.facts() is None
    with pytest.raises(
        BackendError, match="no engine is built .* run `radvlm-edge build BUNDLE --backend tens"
    ):
        other.read()
    assert (other.timing == Entry(KEY).timing) == (set(change) <= {"artefact", "profile", "flags"})


def test_facts_of_another_key_are_not_believed() -> None:
    """A folder copied, or a digest that met another's first 20 digits."""
    Entry(KEY).write(b"engine", SKIPPED)
    other = Entry(replace(KEY, version="11.0.0"))
    other.folder.parent.mkdir(exist_ok=True)
    Entry(KEY).folder.rename(other.folder)
    assert other.facts() is None


def test_a_damaged_engine_is_refused_and_a_new_one_replaces_it() -> None:
    entry = Entry(KEY)
    sha = entry.write(b"engine", SKIPPED)
    entry.engine(sha).write_bytes(b"engin3")
    with pytest.raises(BackendError, match="damaged; run `radvlm-edge build"):
        entry.read()
    entry.write(b"second", SKIPPED)
    assert entry.read() == b"second"
    assert len(list(entry.folder.iterdir())) == 2, "the first engine is gone"


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_build_that_dies_while_writing_leaves_the_engine_before_it(
    monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    entry, writes = Entry(KEY), iter(range(1, 9))
    entry.write(b"first", SKIPPED)
    fsync = engine_cache.os.fsync

    def dying(descriptor: int) -> None:
        if next(writes) == dies_at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(engine_cache.os, "fsync", dying)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        entry.write(b"second", SKIPPED)
    assert entry.read() == b"first"
    assert not [p.name for p in entry.folder.iterdir() if p.name.startswith(".")]


def cuda_and_tower(graph: Path, **options: Any) -> tuple[FakeCudaApi, TensorRtTower]:
    api = FakeCudaApi()
    library = FakeLibrary(api, PROFILE)
    plan = Plan(1)
    return api, TensorRtTower(library, Cuda(api), graph_bytes(graph), plan, "stand-in", **options)


def crops_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, 28, 28), dtype=np.uint8)


@pytest.mark.torch
@pytest.mark.parametrize("record", [False, True])
def test_the_tower_moves_bytes_to_the_bit_in_any_order_of_sizes(tiny_bundle: Path, record: bool) -> None:
    graph = tiny_bundle / "vision" / "fp32.onnx"
    reference = open_tower(graph, 1, crops_per_batch=PROFILE[2])
    api, tower = cuda_and_tower(graph, record=record)
    kept = []
    for count in (2, 2, 2, 1, 7, 7, 7, 3, 9, 2):
        crops = crops_of(count)
        tokens = tower.encode(crops)
        kept.append((tokens, tokens.copy()))
        np.testing.assert_array_equal(tokens, reference.encode(crops))
    assert all(np.array_equal(now, then) for now, then in kept), "a later run wrote over tokens handed out"
    assert len(api.memory) == 4, "one buffer for crops, one for tokens, each on both sides"
    assert api.calls.count("cudaGraphInstantiate") == (3 if record else 0)
    assert api.calls.count("cudaGraphLaunch") == (5 if record else 0)
    tower.close()
    assert not api.memory and api.calls.count("cudaStreamDestroy") == 1
    assert api.calls.count("cudaGraphExecDestroy") == api.calls.count("cudaGraphInstantiate")


@pytest.mark.torch
def test_what_cuda_refuses_is_one_line_and_frees_what_it_had(tiny_bundle: Path) -> None:
    api, tower = cuda_and_tower(tiny_bundle / "vision" / "fp32.onnx")
    api.fail = "cudaMallocHost"
    with pytest.raises(BackendError, match="CUDA: cudaMallocHost failed: cudaErrorMemoryAllocation"):
        tower.encode(crops_of(1))
    assert not api.memory
    with pytest.raises(BackendError, match="cudaGetDeviceCount failed: cudaErrorInsufficientDriver"):
        Cuda(FakeCudaApi(gpus=0)).device()
    with pytest.raises(BackendError, match="does not load here"):
        TensorRtTower(FakeLibrary(api, PROFILE), Cuda(api), b"damaged", Plan(1), "stand-in")


def test_stand_ins_have_no_name_the_real_packages_lack() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed (x86 only)")
    pairs = [
        (FakeCudaApi, runtime),
        (FakeCudaApi.cudaMemcpyKind, runtime.cudaMemcpyKind),
        (FakeCudaApi.cudaStreamCaptureMode, runtime.cudaStreamCaptureMode),
        (FakeContext, trt.IExecutionContext),
        (FakeEngine, trt.ICudaEngine),
        (FakeLibrary, trt),
    ]
    for ours, theirs in pairs:
        names = {name for name in vars(ours) if not name.startswith("_")}
        assert names and not names - set(dir(theirs)), (theirs, names - set(dir(theirs)))
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")


def sabotage(graph: Path, how: str) -> bytes:
    """The graph as a wrong engine might compute it."""
    model = onnx.load(str(graph))
    products = [node for node in model.graph.node if node.op_type == "Softmax"]
    if how == "softmax over the wrong axis":
        for node in products:
            node.attribute[0].i = -2
    elif how == "attention of one block left out":
        products[0].op_type = "Identity"
        del products[0].attribute[:]
    else:  # q scaled twice: TensorRT issue 4328's kind
        constants = [n for n in model.graph.node if n.op_type == "Constant"]
        scale = next(
            n for n in constants if np.allclose(numpy_helper.to_array(n.attribute[0].t), 16**-0.5, rtol=1e-3)
        )
        values = numpy_helper.to_array(scale.attribute[0].t)
        scale.attribute[0].t.CopyFrom(numpy_helper.from_array((values * values).astype(values.dtype)))
    return model.SerializeToString()


@pytest.fixture
def target(tiny_bundle: Path) -> Target:
    bundle = Bundle.open(tiny_bundle)
    artefact = bundle.artefact("vision", "fp32")
    key = replace(KEY, artefact=artefact.sha256, profile=PROFILE)
    api = FakeCudaApi()
    return Target(bundle, artefact, FakeLibrary(api, PROFILE), Cuda(api), Entry(key))


def opener(target: Target) -> Any:
    return lambda engine, name: TensorRtTower(target.trt, target.cuda, engine, Plan(1), name)


@pytest.mark.torch
def test_an_engine_is_compared_once_and_its_figures_are_kept(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.entry.write(graph_bytes(target.graph), None)
    tower = checked(target, opener(target))
    assert tower.backend == "tensorrt 10.3.0 on Orin"
    golden = (target.entry.facts() or {})["golden"]
    assert golden["cosine"] > 0.99999 and golden["error"] < 1e-3 and golden["batches"] == list(PROFILE)
    monkeypatch.setattr(tensorrt_engines, "compare", None)
    checked(target, opener(target))  # nothing is compared again


@pytest.mark.torch
@pytest.mark.parametrize(
    "how", ["softmax over the wrong axis", "attention of one block left out", "q scaled twice"]
)
def test_a_wrong_engine_is_refused_with_its_figures_and_removed(target: Target, how: str) -> None:
    target.entry.write(sabotage(target.graph, how), None)
    with pytest.raises(BackendError, match=r"computes .*fp32.onnx wrongly: token cosine -?\d") as error:
        checked(target, opener(target))
    assert "limits for fp32: cosine 0.9999, error 0.01" in str(error.value) and "\n" not in str(error.value)
    assert target.entry.facts() is None and not list(target.entry.folder.glob("*.engine"))
    assert not target.cuda.api.memory, "its buffers are freed"


@pytest.mark.torch
def test_an_engine_nobody_wanted_compared_says_so(target: Target) -> None:
    target.entry.write(graph_bytes(target.graph), SKIPPED)
    assert checked(target, opener(target)).backend.endswith(", not compared")


@pytest.mark.torch
def test_bundles_without_golden_crops_are_refused(tiny_bundle: Path, target: Target, tmp_path: Path) -> None:
    import io
    import shutil

    old = tmp_path / "old"
    shutil.copytree(tiny_bundle, old)
    with np.load(old / "golden.npz") as file:
        held = {name: file[name] for name in file.files if not name.startswith("film_")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **held)
    bundle = Bundle.open(old)
    bundle = reseal(bundle, bundle.manifest, {"golden.npz": buffer.getvalue()})
    bundle.verify()
    with pytest.raises(BundleError, match=r"export the checkpoint anew, or pass --no-golden"):
        tensorrt_engines.build(replace(target, bundle=bundle))
    assert target.entry.facts() is None


@pytest.mark.torch
def test_golden_figures_of_right_engines_are_far_inside_the_limits(tiny_bundle: Path) -> None:
    golden = load_golden(tiny_bundle)
    assert golden.crops.shape == (3, 3, 28, 28) and golden.tokens.shape[:2] == (3, len(golden.rows))
    assert len({crop.tobytes() for crop in golden.crops}) == 3
    for precision in ("fp32", "fp16"):
        tower = open_tower(tiny_bundle / "vision" / f"{precision}.onnx", 1)
        found = compare(golden, tower.encode, (1, 4))
        limit = LIMITS[precision]
        assert 1 - found.cosine < 0.1 * (1 - limit.cosine) and found.error < 0.5 * limit.error, found
        assert refusal(found, precision) is None
    nothing = compare(golden, lambda crops: np.full((len(crops), 16, 256), np.nan, np.float32), (1,))
    assert refusal(nothing, "int8-trt") is not None
    with pytest.raises(BackendError, match="returned tokens"):
        compare(golden, lambda crops: np.zeros((len(crops), 16, 3), np.float32), (1,))


@pytest.mark.torch
def test_the_artefact_for_cpus_is_no_engines(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    cpu = replace(bundle.artefact("vision", "fp32"), precision="int8")
    odd = replace(bundle, manifest=replace(bundle.manifest, artefacts=(cpu,)))
    with pytest.raises(
        BackendError, match="vision int8 is a graph for CPUs; TensorRT takes fp32, fp16, int8-trt"
    ):
        tensorrt_engines.artefact_of(odd, "int8")


class Named:
    """A tower with a name."""

    plan = Plan(1)

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def encode(self, crops: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("broken", "runs", "said"),
    [
        ((), "tensorrt", ["the first choice on the Orin"]),
        (("tensorrt",), "tensorrt-rtx", ["tensorrt: no tensorrt"]),
        (("tensorrt", "tensorrt-rtx"), "cuda", ["tensorrt: no tensorrt | tensorrt-rtx: no tensorrt-rtx"]),
        (GPU_ORDER, "onnx", ["cuda: no cuda"]),
    ],
)
def test_auto_falls_back_in_order_and_says_why(broken: tuple[str, ...], runs: str, said: list[str]) -> None:
    def open_engine(name: str) -> Any:
        if name in broken:
            raise BackendError(f"no {name}")
        return Named(name)

    opened = open_best(GPU_ORDER, open_engine, gpu="Orin", cpu="onnx")
    assert opened.tower.backend == runs and opened.line is not None
    assert opened.line.startswith(f"vision runs on {runs}; ") and "\n" not in opened.line
    assert all(text in opened.line for text in said)


def test_auto_without_a_gpu_tries_and_says_nothing() -> None:
    tried = []

    def open_engine(name: str) -> Any:
        tried.append(name)
        return Named(name)

    assert open_best(GPU_ORDER, open_engine, gpu=None, cpu="onnx").line is None
    assert tried == ["onnx"]


def test_auto_with_a_graph_for_cpus_says_so() -> None:
    line = open_best((), Named, gpu="Orin", cpu="onnx").line
    assert line == "vision runs on onnx; passed over: every GPU engine: this artefact is for CPUs"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("backend", "complaint"),
    [
        ("cuda", "no CUDA provider"),
        ("tensorrt", "needs tensorrt, not installed|CUDA|cuda-bindings|no engine is built"),
        ("tensorrt-rtx", "needs tensorrt_rtx, not installed|CUDA|cuda-bindings|no engine is built"),
    ],
)
def test_an_engine_asked_for_by_name_is_used_or_an_error(
    tiny_bundle: Path, backend: str, complaint: str
) -> None:
    from radvlm_edge.runtime.gpus import seen

    if seen():
        pytest.skip("this machine has a GPU; there the engine may well open")
    with pytest.raises(BackendError, match=complaint):
        open_tower(tiny_bundle / "vision" / "fp32.onnx", 1, backend=backend)


def test_facts_are_plain_json() -> None:
    Entry(KEY).write(b"engine", {"cosine": 1.0})
    facts = json.loads((Entry(KEY).folder / "facts.json").read_text())
    assert set(facts) == {"format", "key", "engine_sha256", "golden"} and facts["key"]["profile"] == [
        1,
        10,
        37,
    ]
    assert vision_tensorrt.INPUT == "crops"
