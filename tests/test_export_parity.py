"""Parity holds for random weights, and fails for every fault that is put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import make_checkpoint

from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import CheckpointError, OutputError, ParityError
from radvlm_edge.export import exporter, parity_language
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.vision import VisionGraph
from radvlm_edge.runtime import anyres, crops
from radvlm_edge.runtime.selftest import self_test

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("seed", "tied"), [(1, True), (2, False)])
def test_random_weights_pass_full_parity(tmp_path: Path, seed: int, tied: bool) -> None:
    folder = make_checkpoint(tmp_path / "c", seed=seed, tied=tied)
    bundle = export_checkpoint(folder, tmp_path / "b", language=("F16", "Q8_0"), parity="full")
    figures = json.loads((bundle.folder / "parity.json").read_text())
    assert figures["answers"]["asked"] == 50
    assert figures["answers"]["identical"] + figures["answers"]["ties"] == 50
    assert figures["vision"]["fp32"]["largest_difference"] < 1e-5
    assert (
        figures["language"]["F16"]["largest_difference"]
        < 0.01
        < figures["language"]["Q8_0"]["largest_difference"]
    )


def test_exporting_twice_gives_the_same_bytes(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    again = export_checkpoint(tiny_checkpoint, tmp_path / "again").folder
    files = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tiny_bundle) for p in tiny_bundle.rglob("*") if p.is_file())
    for name in files:
        assert (again / name).read_bytes() == (tiny_bundle / name).read_bytes(), name


def test_manifest_says_what_the_checkpoint_said(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    checkpoint = open_checkpoint(tiny_checkpoint)
    assert (manifest.name, manifest.render, manifest.demonstration) == ("tiny", "voi", False)
    assert manifest.geometry == checkpoint.config.geometry
    assert manifest.prompting == checkpoint.prompting
    assert manifest.source["sha256"] == checkpoint.sha256()
    assert manifest.defaults == {"vision": "fp16", "language": "Q8_0"}


def test_graphs_are_readable_by_the_oldest_engines(tiny_bundle: Path) -> None:
    for path in (tiny_bundle / "vision").glob("*.onnx"):
        model = onnx.load(path)
        assert model.ir_version <= 10
        assert all(entry.version <= 19 for entry in model.opset_import)
        (crops_in,), (tokens_out,) = model.graph.input, model.graph.output
        assert crops_in.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert tokens_out.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert crops_in.type.tensor_type.shape.dim[0].dim_param == "n"


def test_attention_scales_q_alone(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """The first product of each attention takes a Mul on its left side and none on its right."""
    model = onnx.load(tiny_bundle / "vision" / "fp32.onnx")
    made_by = {output: node for node in model.graph.node for output in node.output}
    feeding = [made_by[node.input[0]] for node in model.graph.node if node.op_type == "Softmax"]
    assert len(feeding) == open_checkpoint(tiny_checkpoint).config.tower.used_layers
    for product in feeding:
        assert product.op_type == "MatMul"
        assert [made_by[name].op_type for name in product.input] == ["Mul", "Transpose"]


def test_self_test_passes_here_and_fails_on_other_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    assert len(list(self_test(Bundle.open(tiny_bundle), 1))) == 5
    other = export_checkpoint(make_checkpoint(tmp_path / "c", seed=9), tmp_path / "b")
    (other.folder / "golden.npz").write_bytes((tiny_bundle / "golden.npz").read_bytes())
    with pytest.raises(Exception, match="computes this bundle wrongly"):
        list(self_test(other, 1))


Fault = Callable[[pytest.MonkeyPatch], None]


def swapped_tiles(patch: pytest.MonkeyPatch) -> None:
    cut = crops.cut

    def wrong(pixels: Any, geometry: Any) -> Any:
        views, layout = cut(pixels, geometry)
        return np.concatenate([views[1:], views[:1]]), layout

    patch.setattr(crops, "cut", wrong)


def no_newline(patch: pytest.MonkeyPatch) -> None:
    pack = anyres.pack
    patch.setattr(anyres, "pack", lambda f, layout, newline: pack(f, layout, newline * 1.01))


def columns_first(patch: pytest.MonkeyPatch) -> None:
    pack = anyres.pack
    patch.setattr(
        anyres,
        "pack",
        lambda f, layout, newline: pack(f.swapaxes(0, 1).copy().swapaxes(0, 1)[::-1], layout, newline),
    )


def coarse_interpolation(patch: pytest.MonkeyPatch) -> None:
    def nothing_between(source: int, target: int) -> Any:
        return np.arange(target), np.arange(target), np.zeros(target, np.float32)

    patch.setattr(anyres, "_taps", nothing_between)


def one_layer_less(patch: pytest.MonkeyPatch) -> None:
    class Short(VisionGraph):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.blocks = self.blocks[:-1]

    patch.setattr(exporter.vision_stage, "VisionGraph", Short)


def changed_weight(patch: pytest.MonkeyPatch) -> None:
    convert = exporter.language_stage._Values._convert

    def wrong(self: Any, block: Any) -> Any:
        return convert(self, block) * (1.02 if "layers.1.mlp.down" in self.name else 1)

    patch.setattr(exporter.language_stage._Values, "_convert", wrong)


def wrong_rope(patch: pytest.MonkeyPatch) -> None:
    add = exporter.language_stage._add_sizes

    def wrong(writer: Any, checkpoint: Any) -> None:
        add(writer, checkpoint)
        writer.kv_data[0]["qwen2.rope.freq_base"].value *= 2

    patch.setattr(exporter.language_stage, "_add_sizes", wrong)


def lost_merge(patch: pytest.MonkeyPatch) -> None:
    add = exporter.language_stage._add_tokenizer

    def wrong(writer: Any, checkpoint: Any) -> None:
        model = checkpoint.tokenizer["model"]
        add(
            writer,
            replace(
                checkpoint,
                tokenizer={**checkpoint.tokenizer, "model": {**model, "merges": model["merges"][3:]}},
            ),
        )

    patch.setattr(exporter.language_stage, "_add_tokenizer", wrong)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (swapped_tiles, "crops of a .* film are not the processor's"),
        (no_newline, "image tokens of a .* film differ"),
        (columns_first, "image tokens of a .* film differ"),
        (coarse_interpolation, "image tokens of a .* film differ"),
        (one_layer_less, "vision fp32 differs"),
        (changed_weight, "language F16 logits differ"),
        (wrong_rope, "language F16 logits differ"),
        (lost_merge, "token ids differ"),
    ],
)
def test_every_fault_is_caught_and_nothing_is_left(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, complaint: str
) -> None:
    fault(monkeypatch)
    with pytest.raises(ParityError, match=complaint) as error:
        export_checkpoint(tiny_checkpoint, tmp_path / "b", language=("F16",))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_full_parity_alone_sees_answers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = parity_language.LanguageModel.generate

    def wrong(self: Any, tail: Any, **options: Any) -> Any:
        for index, token in enumerate(generate(self, tail, **options)):
            yield token if index != 1 else (token + 1) % 300

    monkeypatch.setattr(parity_language.LanguageModel, "generate", wrong)
    with pytest.raises(ParityError, match="leaves transformers' at token 1"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", language=("F16",), parity="full")
    export_checkpoint(tiny_checkpoint, tmp_path / "b", language=("F16",), parity="quick")


def test_several_mismatches_come_in_one_error(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_layer_less(monkeypatch)
    wrong_rope(monkeypatch)
    with pytest.raises(ParityError, match="vision fp32 .*; .*language F16"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", language=("F16",))


def test_gates_apply_even_to_what_is_not_shipped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(tiny_checkpoint, tmp_path / "b", vision=("fp16",), language=("Q4_0", "Q6_K"))
    assert {a.precision for a in bundle.manifest.artefacts} == {"fp16", "Q4_0", "Q6_K"}
    figures = json.loads((bundle.folder / "parity.json").read_text())
    assert "fp32" in figures["vision"] and "F16" in figures["language"]
    assert bundle.manifest.defaults == {"vision": "fp16", "language": "Q6_K"}


def test_unknown_names_and_existing_folders(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--language Q3: choose from F16, Q8_0"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", language=("Q3",))
    with pytest.raises(CheckpointError, match=r"--vision \(empty\)"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", vision=())
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b")


def test_values_f16_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c")
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    state["language_model.model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj.weight holds values f16 cannot"):
        export_checkpoint(folder, tmp_path / "b")
    state["language_model.model.layers.0.mlp.up_proj.weight"][0, 0] = 0
    state["multi_modal_projector.linear_1.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="linear_1.weight holds values torch.float32 cannot"):
        export_checkpoint(folder, tmp_path / "b")
