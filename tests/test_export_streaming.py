"""One tensor, one layer at a time: the same numbers, in little memory."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.tiny import SIZES, make_checkpoint

from radvlm_edge.benchmarks.memory import Sampler, run
from radvlm_edge.benchmarks.random_checkpoint import SCALES, write_checkpoint
from radvlm_edge.errors import CheckpointError
from radvlm_edge.export import graph_file, language, reference
from radvlm_edge.export import streaming_reference as streamed
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.config import parse_config
from radvlm_edge.export.numbers import row_blocks
from radvlm_edge.export.progress import Progress
from radvlm_edge.export.vision import write_vision
from radvlm_edge.runtime.vision import open_tower

pytestmark = pytest.mark.torch
MIB = 1 << 20


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("s") / "c", seed=3, tied=request.param))


def test_streamed_logits_are_the_whole_models(checkpoint: Any) -> None:
    whole = reference.build_reference(checkpoint)
    image = np.random.default_rng(0).standard_normal((9, SIZES.hidden)).astype(np.float32)
    sequences: list[list[streamed.Part]] = [[[1, 2, 3], image, [7, 8]], [image[:2], [4]], [[9] * 20]]
    found = streamed.language_logits(checkpoint, sequences, keep=[2, 1, 20])
    real = ~checkpoint.unused
    expected = [
        reference.language_logits(whole, [1, 2, 3], image, [7, 8]),
        reference.language_logits(whole, [], image[:2], [4]),
        reference.language_logits(whole, [], image[:0], [9] * 20),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours[:, real], theirs[:, real], atol=2e-5)
        assert (ours[:, ~real] == language.MASKED).all()
    with pytest.raises(ValueError, match="empty"):
        streamed.language_logits(checkpoint, [[[], []]])


def test_watch_sees_every_matrix_once_a_sequence(checkpoint: Any) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {}
    streamed.language_logits(
        checkpoint,
        [[[1, 2, 3]], [[4, 5]]],
        watch=lambda name, x: seen.setdefault(name, []).append(tuple(x.shape)),
    )
    layers = [n for n in checkpoint.where if ".layers." in n and n.startswith("language_")]
    matrices = {name for name in layers if len(checkpoint.shape(name)) == 2}
    assert matrices <= seen.keys() and len(seen) == len(matrices) + 1
    for name in matrices:
        width = checkpoint.shape(name)[1]
        assert seen[name] == [(3, width), (2, width)]


def test_streamed_image_tokens_are_the_whole_models(checkpoint: Any) -> None:
    whole = reference.build_reference(checkpoint)
    views = np.random.default_rng(1).integers(0, 256, (5, 3, 28, 28), dtype=np.uint8)
    pixels = streamed.normalise(checkpoint, views)
    ours, theirs = streamed.image_features(checkpoint, pixels), reference.image_features(whole, pixels)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    features = torch.randn(10, 16, SIZES.hidden, generator=torch.Generator().manual_seed(0))
    newline = checkpoint.tensor("image_newline").float()
    packed, _ = whole.model.pack_image_features(
        [features],
        torch.tensor([[84, 84]]),
        image_newline=whole.model.image_newline,
        vision_aspect_ratio="anyres_max_4",
    )
    mine = streamed.pack_image_features(checkpoint, features, 84, 84, newline)
    assert np.array_equal(mine, packed[0].detach().numpy())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_streamed_file_is_what_onnx_would_have_written(
    checkpoint: Any, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    write_vision(checkpoint, precision, tmp_path / "one.onnx", counted.append)
    model = onnx.load(str(tmp_path / "one.onnx"))
    assert (tmp_path / "one.onnx").read_bytes() == model.SerializeToString()
    assert sum(counted) == sum(len(t.raw_data) for t in model.graph.initializer)
    monkeypatch.setitem(graph_file.write_graph.__kwdefaults__, "external_from", 0)
    write_vision(checkpoint, precision, tmp_path / "two.onnx")
    views = np.random.default_rng(1).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8)
    whole = open_tower(tmp_path / "one.onnx").encode(views)
    assert np.array_equal(open_tower(tmp_path / "two.onnx").encode(views), whole)
    np.testing.assert_allclose(
        open_tower(tmp_path / "two.onnx", mapped=True).encode(views), whole, atol=2e-3 * np.abs(whole).max()
    )
    (entry,) = onnx.load(str(tmp_path / "two.onnx")).metadata_props
    from radvlm_edge.bundle import digest

    assert entry.value == digest(tmp_path / "two.onnx.data")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers, 100 MiB in f16: one layer is 4 % of it."""
    scale = SCALES["eighth"]
    geometry = replace(scale.geometry, layers=24, vocab=4096)
    folder = tmp_path_factory.mktemp("deep") / "c"
    write_checkpoint(replace(scale, geometry=geometry, tied=True, tokens=4000), folder)
    return folder


def test_a_pass_never_holds_the_model(deep: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(deep)
    size = language.f16_bytes(checkpoint)
    assert size > 170 * MIB
    streamed.language_logits(checkpoint, [[[1, 2]]])  # whatever torch keeps for itself
    with Sampler() as sampler:
        language.write_f16(checkpoint, tmp_path / "a.gguf")
        streamed.language_logits(checkpoint, [[[1, 2, 3]]])
    assert sampler.samples > 2
    assert sampler.growth_bytes < size // 2, sampler.growth_bytes / MIB
    ctypes.CDLL(None).malloc_trim(0)  # else what earlier tests freed would be filled first
    with Sampler() as control:
        whole = [checkpoint.tensor(name).float() for name in checkpoint.where]
    assert whole and control.growth_bytes > 1.5 * size


def test_sampler_sees_children() -> None:
    code = "x = bytearray(64 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(0.4)"
    import sys

    found = run(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    )
    assert found.status == 0 and 64 * MIB < found.peak_anonymous_bytes < 200 * MIB


@pytest.mark.parametrize("shape", [(7,), (5, 3), (1, 100), (64, 32), ()])
def test_blocks_cover_a_tensor(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    blocks = list(row_blocks(tensor, 10))
    assert torch.equal(torch.cat(blocks) if shape else blocks[0], tensor)


def test_progress_says_bytes_and_time_left() -> None:
    now, said = [0.0], []
    progress = Progress(said.append, clock=lambda: now[0])
    progress.stage("language F16", 4_000_000_000)
    for second in range(1, 5):
        now[0] = float(second)
        progress.advance(500_000_000)
    assert said == [
        "language F16",
        "language F16: 1.00 of 4.00 GB, 6 s left",
        "language F16: 2.00 of 4.00 GB, 4 s left",
    ]


@pytest.mark.parametrize(("scale", "count"), [("7b", 8_030_807_552), ("0.5b", 893_721_088)])
def test_published_geometries_are_accepted(scale: str, count: int) -> None:
    """384 is no multiple of 14: 27 patches a side, the last 6 pixels unseen. Parameters of the HF files."""
    from radvlm_edge.benchmarks.random_checkpoint import config_json

    sizes = SCALES[scale]
    config = parse_config(config_json(sizes), Path("c"))
    assert config.geometry == sizes.geometry and config.geometry.tokens_per_crop == 729
    total = sum(int(np.prod(shape)) for shape in config.tensor_shapes(tied=sizes.tied).values())
    assert abs(total - count) < 0.001 * count


def test_nan_and_overflow_name_their_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "c", dtype=torch.bfloat16)
    for name, value in (
        ("vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias", float("nan")),
        ("vision_tower.vision_model.embeddings.position_embedding.weight", 1e6),
        ("language_model.model.embed_tokens.weight", float("inf")),
        ("language_model.model.layers.0.input_layernorm.weight", float("nan")),
    ):
        state = load_file(folder / "model.safetensors")
        damaged = {**state, name: state[name].clone()}
        damaged[name].view(-1)[-1] = value
        save_file(damaged, folder / "model.safetensors")
        checkpoint = open_checkpoint(folder)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as error:
            write_vision(checkpoint, "fp16", tmp_path / "v.onnx")
            language.write_f16(checkpoint, tmp_path / "l.gguf")
        assert "\n" not in str(error.value)
        save_file(state, folder / "model.safetensors")
