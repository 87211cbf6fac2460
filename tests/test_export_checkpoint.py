"""Checkpoint folders: every writer's spelling, and one line that lists all that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import SPELLINGS, make_checkpoint
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.reference import build_reference

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_checkpoint(tmp_path: Path, spelling: str, tied: bool) -> None:
    plain = open_checkpoint(make_checkpoint(tmp_path / "plain", tied=tied))
    other = open_checkpoint(make_checkpoint(tmp_path / "other", tied=tied, spelling=spelling, shards=3))
    assert set(other.where) >= set(plain.where) and other.tied is tied  # training keeps an unused layer
    for name in plain.where:
        assert torch.equal(other.tensor(name), plain.tensor(name)), name
    assert other.config.geometry == plain.config.geometry
    assert other.config.language.rope_theta == plain.config.language.rope_theta


def test_our_reference_is_what_transformers_itself_loads(tiny_checkpoint: Path) -> None:
    ours = build_reference(open_checkpoint(tiny_checkpoint))
    theirs = LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    assert torch.equal(theirs.lm_head.weight, theirs.get_input_embeddings().weight)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_template_and_stop_come_from_the_checkpoint(tiny_checkpoint: Path) -> None:
    prompting = open_checkpoint(tiny_checkpoint).prompting
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert prompting.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert prompting.image_token == "<image>" and "<|im_start|>" in prompting.special_tokens
    (tiny_checkpoint / "chat_template.jinja").write_text("other")
    assert open_checkpoint(tiny_checkpoint).prompting.chat_template == "other"
    (tiny_checkpoint / "chat_template.jinja").unlink()


def test_all_wrong_tensors_are_listed_in_one_line(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c")
    state = load_file(folder / "model.safetensors")
    state["surprise"] = torch.zeros(1)
    del state["image_newline"]
    state["multi_modal_projector.linear_1.bias"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    text = str(error.value)
    assert "\n" not in text
    for part in ("missing image_newline", "unknown surprise", "linear_1.bias is [3], config says [256]"):
        assert part in text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"architectures": ["LlavaForConditionalGeneration"]},
            "architecture LlavaForConditionalGeneration; only",
        ),
        ({"architectures": None}, "architecture none"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy is 'default'"),
        ({"vision_feature_layer": 9}, "vision_feature_layer 9 is none"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'"),
        ({"image_grid_pinpoints": [[30, 30]]}, "do not divide"),
        ({"text_config": {}}, "is not stated"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    folder = make_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=complaint):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "chat_template.json"],
)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_incomplete_folders_name_the_file(tmp_path: Path, name: str, damage: str) -> None:
    folder = make_checkpoint(tmp_path / "c")
    path = folder / name
    if damage == "missing":
        path.unlink()
        (folder / "vocab.json").unlink(missing_ok=True)  # read in place of a missing tokenizer.json
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=f"{name}|safetensors|chat template") as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="config.json: missing"):
        open_checkpoint(tmp_path)
