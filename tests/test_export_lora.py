"""LoRA adapters merged while reading: the tensors of a checkpoint merged by hand, or one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import SPELLINGS, make_checkpoint

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.checkpoint import open_checkpoint

pytestmark = pytest.mark.torch
RANK, ALPHA = 4, 12
TARGETS = (
    "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.1.mlp.down_proj",
    "vision_tower.vision_model.encoder.layers.1.mlp.fc1",
    "multi_modal_projector.linear_2",
)
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False}


def make_adapter(folder: Path, base: Path, spelling: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Write peft's files; returns the halves by canonical module name with `.A` and `.B`."""
    folder.mkdir()
    shapes = {name: value.shape for name, value in load_file(base / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    halves, files = {}, {}
    for module in TARGETS:
        name = SPELLINGS[spelling](f"{module}.weight").removesuffix(".weight")
        rows, columns = shapes[f"{name}.weight"]
        for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            halves[f"{module}.{part}"] = torch.randn(shape, generator=generator) * 0.1
            files[f"base_model.model.{name}.lora_{part}.weight"] = halves[f"{module}.{part}"]
    save_file(files, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return halves


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("spelling", ["transformers 4.57 in memory", "LLaVA-NeXT training"])
def test_merge_is_w_plus_scale_b_a(tmp_path: Path, spelling: str, rslora: bool) -> None:
    base = make_checkpoint(tmp_path / "c", spelling=spelling)
    halves = make_adapter(tmp_path / "l", base, spelling, {**CONFIG, "use_rslora": rslora})
    plain, merged = open_checkpoint(base), open_checkpoint(base, lora=tmp_path / "l")
    scale = ALPHA / (RANK**0.5 if rslora else RANK)
    for name in plain.where:
        expected = plain.tensor(name)
        module = name.removesuffix(".weight")
        if module in TARGETS:
            expected = expected.double() + scale * (
                halves[f"{module}.B"].double() @ halves[f"{module}.A"].double()
            )
            torch.testing.assert_close(merged.tensor(name), expected.float(), atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(merged.tensor(name), expected)
    assert merged.sha256() != plain.sha256()


@pytest.mark.parametrize("infix", ["", ".modules_to_save"])
def test_whole_modules_replace(tmp_path: Path, infix: str) -> None:
    base = make_checkpoint(tmp_path / "c", tied=False)
    make_adapter(tmp_path / "l", base, "transformers 4.46 to 4.57 files", CONFIG)
    path = tmp_path / "l" / "adapter_model.safetensors"
    head = torch.randn(320, 256)
    save_file({**load_file(path), f"base_model.model.language_model.lm_head{infix}.weight": head}, path)
    merged = open_checkpoint(base, lora=tmp_path / "l")
    assert torch.equal(merged.tensor("language_model.lm_head.weight"), head)


def test_peft_itself_agrees(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed; the formula is tested without it")
    from transformers import LlavaOnevisionForConditionalGeneration

    base = make_checkpoint(tmp_path / "c", dtype=torch.float32)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=["q_proj", "fc1", "linear_2"], use_rslora=True
    )
    adapted = peft.get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(tmp_path / "l")
    expected = adapted.merge_and_unload().state_dict()
    merged = open_checkpoint(base, lora=tmp_path / "l")
    from radvlm_edge.export.reference import in_memory

    assert merged.adapter is not None and len(merged.adapter.low_rank) == 2 + 2 + 2 + 1
    for name in merged.where:
        torch.testing.assert_close(merged.tensor(name), expected[in_memory(name)], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"use_dora": True}, "use_dora is True; only False is merged"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"lora_alpha": None}, "lora_alpha is not stated"),
    ],
)
def test_other_methods_are_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    base = make_checkpoint(tmp_path / "c")
    make_adapter(tmp_path / "l", base, "transformers 4.46 to 4.57 files", {**CONFIG, **change})
    with pytest.raises(CheckpointError, match=complaint):
        open_checkpoint(base, lora=tmp_path / "l")


def test_everything_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "c")
    make_adapter(tmp_path / "l", base, "transformers 4.46 to 4.57 files", CONFIG)
    path = tmp_path / "l" / "adapter_model.safetensors"
    state = load_file(path)
    del state["base_model.model.multi_modal_projector.linear_2.lora_B.weight"]
    state["base_model.model.elsewhere.lora_A.weight"] = torch.zeros(4, 8)
    state["base_model.model.elsewhere.lora_B.weight"] = torch.zeros(8, 4)
    state["base_model.model.image_newline"] = torch.zeros(3)
    save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(base, lora=tmp_path / "l")
    text = str(error.value)
    assert "\n" not in text
    for part in ("linear_2.weight has only lora_A", "elsewhere", "image_newline is [3]"):
        assert part in text
