"""The prefill graph: transformers' own K, V and hidden states, in any chunks, in both engines, in INT8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radvlm_edge.calibration import prefill as stage
from radvlm_edge.errors import CheckpointError, ParityError
from radvlm_edge.export import graph_file, probe_films
from radvlm_edge.export.checkpoint import Checkpoint, open_checkpoint
from radvlm_edge.export.int8_table import Table
from radvlm_edge.export.prefill import write_prefill
from radvlm_edge.export.prefill_int8 import PREFILL_GROUPS, write_int8
from radvlm_edge.export.reference import build_reference
from radvlm_edge.export.shared_prefix import Sequences, stream_hidden
from radvlm_edge.runtime.prefill import PrefillEngine
from radvlm_edge.runtime.prefill_onnx import OnnxPrefill

Floats = npt.NDArray[np.float32]
TOKENS = 40


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefill")
    for precision in ("fp32", "fp16"):
        write_prefill(checkpoint, precision, folder / f"{precision}.onnx")
    return folder


@pytest.fixture(scope="module")
def image(checkpoint: Checkpoint) -> Floats:
    shape = (TOKENS, checkpoint.config.language.hidden)
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, image: Floats) -> tuple[list[Floats], Floats]:
    """transformers' K and V `[t, width]` in the graph's order, and its last hidden state."""
    model: Any = build_reference(checkpoint).model.language_model
    with torch.no_grad():
        out = model(inputs_embeds=torch.from_numpy(image)[None], use_cache=True)
    layers = out.past_key_values.layers[: checkpoint.config.language.layers]
    parts = [part for layer in layers for part in (layer.keys, layer.values)]
    kv = [part[0].transpose(0, 1).reshape(TOKENS, -1).numpy() for part in parts]
    return kv, out.last_hidden_state[0, -1].numpy()


def chunked(engine: PrefillEngine, image: Floats, ends: list[int], layers: int) -> list[Any]:
    """K and V of an image run in chunks."""
    kept: list[Any] = []
    for start, end in zip([0, *ends], [*ends, len(image)], strict=True):
        if start == end:
            continue
        past = kept or [np.zeros((0, 128), engine.kv_type)] * (2 * layers)
        found = engine.run(image[start:end], past)
        kept = [np.concatenate(pair) for pair in zip(past, found, strict=True)]
    return kept


def openvino(path: Path, group: int) -> PrefillEngine:
    pytest.importorskip("openvino")
    from radvlm_edge.runtime.prefill_openvino import OpenvinoPrefill

    return OpenvinoPrefill(path, 1, group=group)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_k_and_v_are_transformers_in_any_chunks(
    engine: str,
    folder: Path,
    image: Floats,
    reference: tuple[list[Floats], Floats],
    checkpoint: Checkpoint,
) -> None:
    path = folder / "fp32.onnx"
    opened = OnnxPrefill(path, 1) if engine == "onnxruntime" else openvino(path, 128)
    layers = checkpoint.config.language.layers

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(1, TOKENS - 1), max_size=4))
    def check(ends: list[int]) -> None:
        for ours, theirs in zip(chunked(opened, image, sorted(ends), layers), reference[0], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max(), rtol=0)

    check()


def test_the_last_hidden_state_is_transformers(
    folder: Path, image: Floats, reference: tuple[list[Floats], Floats], checkpoint: Checkpoint
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "fp32.onnx", providers=["CPUExecutionProvider"])
    past = {one.name: np.zeros((0, 128), np.float32) for one in session.get_inputs() if "past" in one.name}
    feed = {"embeddings": image[None], "start": np.array([0]), **past}
    (hidden,) = session.run(["hidden"], feed)
    assert hidden.shape == (1, 1, checkpoint.config.language.hidden)
    np.testing.assert_allclose(hidden[0, 0], reference[1], atol=2e-5)


def test_half_precision_keeps_k_and_v_as_llama_cpp_does(
    folder: Path, image: Floats, reference: tuple[list[Floats], Floats], checkpoint: Checkpoint
) -> None:
    engine = OnnxPrefill(folder / "fp16.onnx", 1)
    assert engine.kv_type == np.float16
    kept = chunked(engine, image, [17], checkpoint.config.language.layers)
    for ours, theirs in zip(kept, reference[0], strict=True):
        np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=5e-3 * np.abs(theirs).max(), rtol=0)


def test_old_parsers_can_read_it(folder: Path) -> None:
    for precision in ("fp32", "fp16"):
        model = onnx.load(str(folder / f"{precision}.onnx"))
        assert model.ir_version <= 10 and [one.version for one in model.opset_import] == [17]
        assert {node.domain for node in model.graph.node} == {""}
        onnx.checker.check_model(model, full_check=True)


def test_large_weights_lie_beside_the_graph(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, image: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = graph_file.write_graph
    path = tmp_path / "fp32.onnx"
    monkeypatch.setattr(
        "radvlm_edge.export.prefill.write_graph", lambda *given: whole(*given, external_from=1)
    )
    write_prefill(checkpoint, "fp32", path)
    assert path.stat().st_size < 200_000 < path.with_name("fp32.onnx.data").stat().st_size
    layers = checkpoint.config.language.layers
    apart = chunked(OnnxPrefill(path, 1), image, [9], layers)
    together = chunked(OnnxPrefill(folder / "fp32.onnx", 1), image, [9], layers)
    assert all(np.array_equal(a, b) for a, b in zip(apart, together, strict=True))


@pytest.fixture(scope="module")
def films(checkpoint: Checkpoint) -> list[probe_films.ProbeFilms]:
    geometry = checkpoint.config.geometry
    return [probe_films.phantoms(2, 900, geometry), probe_films.phantoms(1, 910, geometry)]


@pytest.fixture(scope="module")
def table(checkpoint: Checkpoint, films: list[probe_films.ProbeFilms]) -> Table:
    return stage.calibrate(checkpoint, "source", *films, gate=1.0, say=lambda line: None)


def test_calibration_covers_every_group_of_image_tokens(table: Table, checkpoint: Checkpoint) -> None:
    layers = range(checkpoint.config.language.layers)
    assert set(table.groups) == {f"layers.{i}.{kind}" for i in layers for kind in PREFILL_GROUPS}
    assert table.float_groups == () and table.curve[0]["float_groups"] == 0
    assert all(0 < group.error < 0.05 for group in table.groups.values())
    assert not any(table.groups[f"layers.{i}.o_proj"].shifts for i in layers)


def test_groups_return_to_float_until_the_gate_holds(
    checkpoint: Checkpoint, films: list[probe_films.ProbeFilms], table: Table
) -> None:
    whole = table.curve[0]["rms"]
    asked = stage.dialogues(checkpoint, films[1], seed=1)
    half = stage.until_gate(checkpoint, replace(table, gate=0.6 * whole, curve=()), asked, lambda line: None)
    assert 0 < len(half.float_groups) < len(table.groups)
    assert half.curve[-1]["rms"] <= 0.6 * whole < half.curve[0]["rms"]
    with pytest.raises(ParityError, match="with every layer in float"):
        stage.until_gate(checkpoint, replace(table, gate=-1.0, curve=()), asked, lambda line: None)


@pytest.fixture(scope="module")
def int8(checkpoint: Checkpoint, table: Table, folder: Path) -> Path:
    path = folder / "int8.onnx"
    write_int8(checkpoint, table, path)
    return path


def test_int8_weights_and_smoothing_are_where_they_should_be(
    int8: Path, folder: Path, table: Table, checkpoint: Checkpoint
) -> None:
    stored = {one.name: one for one in onnx.load(str(int8)).graph.initializer}
    linears = sum(map(len, PREFILL_GROUPS.values())) * checkpoint.config.language.layers
    kinds = [one.data_type for one in stored.values() if one.name.endswith("_codes")]
    assert kinds == [onnx.TensorProto.INT8] * linears
    assert int8.stat().st_size < 0.35 * (folder / "fp32.onnx").stat().st_size
    plain = {one.name: one for one in onnx.load(str(folder / "fp32.onnx")).graph.initializer}
    for name, group in table.groups.items():
        if name.endswith("qkv") and group.shifts:
            norm = f"{name.removesuffix('qkv')}norm1.weight"
            smoothed, own = (onnx.numpy_helper.to_array(one[norm]) for one in (stored, plain))
            assert np.array_equal(np.ldexp(smoothed, np.array(group.shifts)), own)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino, calibrated", "openvino"])
def test_int8_is_near_float(
    engine: str, int8: Path, folder: Path, checkpoint: Checkpoint, films: list[probe_films.ProbeFilms]
) -> None:
    """On image tokens of a film no scale was made from."""
    (one,) = stage.dialogues(checkpoint, films[1])
    layers = checkpoint.config.language.layers
    exact = chunked(OnnxPrefill(folder / "fp32.onnx", 1), one.image, [30], layers)
    if engine == "onnxruntime":
        opened: Any = OnnxPrefill(int8, 1)
    else:
        opened = openvino(int8, 0 if "calibrated" in engine else 128)
        groups = (len(PREFILL_GROUPS) * layers, len(PREFILL_GROUPS) * layers + 1)  # the last q on its own
        assert opened.bypassed in (groups if engine == "openvino" else (0,))
    for ours, theirs in zip(chunked(opened, one.image, [30], layers), exact, strict=True):
        error = np.linalg.norm(ours.astype(np.float32) - theirs) / np.linalg.norm(theirs)
        assert 1e-4 < error < 0.1


def test_rounding_in_torch_is_the_graphs(int8: Path, checkpoint: Checkpoint, table: Table) -> None:
    """What the gate is measured with gives the graph's numbers: V of the last layer, image tokens alone."""
    rng = np.random.default_rng(4)
    image = rng.standard_normal((24, checkpoint.config.language.hidden)).astype(np.float32)
    asked = [Sequences([], image, [[5]])]
    seen: dict[str, Floats] = {}
    rounded = stage.RoundedImages(table, asked)
    last = checkpoint.config.language.layers - 1
    name = f"language_model.model.layers.{last}.self_attn.v_proj.weight"

    def multiply(film: int, start: int, matrix: str, values: Any, weight: Any) -> Any:
        product = rounded.multiply(film, start, matrix, values, weight)
        seen[matrix] = product.numpy()
        return product

    stream_hidden(checkpoint, asked, multiply=multiply)
    bias = checkpoint.tensor(name.replace("weight", "bias")).float().numpy()
    ours = chunked(OnnxPrefill(int8, 1), image, [], last + 1)[-1].astype(np.float32)
    theirs = seen[name][:24] + bias
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)  # ties of rounding fall either way


def test_another_models_calibration_is_refused(checkpoint: Checkpoint, table: Table, tmp_path: Path) -> None:
    name = next(n for n, group in table.groups.items() if group.shifts)
    wrong = {**table.groups, name: replace(table.groups[name], shifts=(1, 2, 3))}
    with pytest.raises(CheckpointError, match="another model's"):
        write_int8(checkpoint, replace(table, groups=wrong), tmp_path / "int8.onnx")
