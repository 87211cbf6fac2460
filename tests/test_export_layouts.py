"""One model in every layout that exists: the same artefacts. And the folders that are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import FORMS, SPELLINGS, make_checkpoint

from radvlm_edge.errors import CheckpointError
from radvlm_edge.export import original
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.language import write_f16
from radvlm_edge.export.vision import write_vision
from radvlm_edge.runtime import prompts

pytestmark = pytest.mark.torch

NEXT = "LLaVA-NeXT training"


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor of a GGUF: name → type, and its bytes."""
    return {t.name: (t.tensor_type.name, np.asarray(t.data).tobytes()) for t in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def plain(request: Any, tmp_path_factory: Any) -> tuple[bool, dict[str, tuple[str, bytes]], bytes]:
    """Tied or not; the GGUF tensors and the vision graph of the published layout."""
    folder = tmp_path_factory.mktemp("plain")
    checkpoint = open_checkpoint(make_checkpoint(folder / "c", tied=request.param))
    write_f16(checkpoint, folder / "a.gguf")
    write_vision(checkpoint, "fp16", folder / "v.onnx")
    return request.param, tensors(folder / "a.gguf"), (folder / "v.onnx").read_bytes()


LAYOUTS = [
    *((spelling, "safetensors", 3) for spelling in SPELLINGS),
    *((spelling, form, shards) for spelling in ("transformers 4.57 in memory", NEXT)
      for form in FORMS for shards in (1, 2) if (form, shards) != ("safetensors", 2)),
]  # fmt: skip


@pytest.mark.parametrize(("spelling", "form", "shards"), LAYOUTS)
def test_every_layout_gives_the_same_bytes(
    tmp_path: Path, plain: Any, spelling: str, form: str, shards: int
) -> None:
    tied, language, vision = plain
    folder = make_checkpoint(tmp_path / "c", tied=tied, spelling=spelling, form=form, shards=shards)
    checkpoint = open_checkpoint(folder)
    write_f16(checkpoint, tmp_path / "a.gguf")
    assert tensors(tmp_path / "a.gguf") == language
    if form == "safetensors":
        write_vision(checkpoint, "fp16", tmp_path / "v.onnx")
        assert (tmp_path / "v.onnx").read_bytes() == vision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_layouts_agree_in_every_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    found = []
    for spelling, form in (("transformers 5 files", "safetensors"), (NEXT, "bin")):
        folder = make_checkpoint(tmp_path / form, spelling=spelling, form=form, dtype=dtype)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tensor("image_newline").dtype == dtype
        write_f16(checkpoint, tmp_path / f"{form}.gguf")
        found.append(tensors(tmp_path / f"{form}.gguf"))
    assert found[0] == found[1]


def test_a_tied_head_that_was_written_is_the_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c")
    state = load_file(folder / "model.safetensors")
    head, embedding = "language_model.lm_head.weight", state["language_model.model.embed_tokens.weight"]
    save_file({**state, head: embedding.clone()}, folder / "model.safetensors")
    assert open_checkpoint(folder).tied
    save_file({**state, head: embedding + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head and embed_tokens differ"):
        open_checkpoint(folder)


def test_what_training_leaves_out_is_what_the_converter_adds(tmp_path: Path) -> None:
    ours = open_checkpoint(make_checkpoint(tmp_path / "n", spelling=NEXT))
    hf = open_checkpoint(make_checkpoint(tmp_path / "h"))
    assert ours.config.geometry == hf.config.geometry
    assert ours.config.image_token_id == hf.config.image_token_id
    assert ours.preprocessing == hf.preprocessing
    assert ours.prompting.stop_ids == hf.prompting.stop_ids
    assert set(ours.prompting.special_tokens) == set(hf.prompting.special_tokens)
    assert (ours.config.tower.layers, ours.config.tower.used_layers) == (3, 2)
    turns = [prompts.Turn("any effusion?", "No."), prompts.Turn("sure?")]
    assert prompts.render(turns, ours.prompting) == prompts.render(turns, hf.prompting)


def test_authors_evaluation_prompt(tmp_path: Path) -> None:
    """uzh-dqbm-cmi/RadVLM, radvlm/evaluation/models_loading_inference.py: one turn and two."""
    prompting = open_checkpoint(make_checkpoint(tmp_path / "n", spelling=NEXT)).prompting
    one = prompts.render([prompts.Turn("Q?")], prompting)
    assert "<image>".join(one) == "<|im_start|>user\n<image>\nQ?<|im_end|>\n<|im_start|>assistant\n"
    two = prompts.render([prompts.Turn("Q?", "A."), prompts.Turn("R?")], prompting)
    assert "<image>".join(two) == (
        "<|im_start|>user\n<image>\nQ?<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>\n"
        "<|im_start|>user\nR?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_deleted_last_layer_is_the_same_model(tmp_path: Path) -> None:
    """siglip_encoder.py deletes the layer that never runs; some writers keep it."""
    folder = make_checkpoint(tmp_path / "c", spelling=NEXT)
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if ".encoder.layers.2." not in name}
    save_file(kept, folder / "model.safetensors")
    tower = open_checkpoint(folder).config.tower
    assert (tower.layers, tower.used_layers) == (2, 2)


def test_published_tower_is_known_by_its_name() -> None:
    raw = {
        **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"), 64),
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2),
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
    }
    names = [f"vision_tower.vision_model.encoder.layers.{i}.layer_norm1.bias" for i in range(27)]
    hf = original.as_hugging_face(raw, names, 151646)
    assert hf["vision_config"]["num_attention_heads"] == 16
    assert (hf["vision_config"]["num_hidden_layers"], hf["vision_feature_layer"]) == (27, 26)
    assert hf["image_grid_pinpoints"] == [[384 * h, 384 * w] for h in range(1, 7) for w in range(1, 7)]
    with pytest.raises(ValueError, match=r"'openai/clip' is not known .* vision_config"):
        original.as_hugging_face({**raw, "mm_vision_tower": "openai/clip"}, names, 151646)
    with pytest.raises(ValueError, match="needs 26 tower layers, the files hold 20"):
        original.as_hugging_face(raw, names[:20], 151646)
    with pytest.raises(ValueError, match="mm_patch_merge_type is 'flat'"):
        original.as_hugging_face({**raw, "mm_patch_merge_type": "flat"}, names, 151646)


def test_pinpoints_are_width_first_in_the_original() -> None:
    assert original.pinpoints([[384, 768]], 384) == [[768, 384]]
    both = [[384, 768], [768, 384]]
    assert original.pinpoints(both, 384) == both
    with pytest.raises(ValueError, match="neither a list nor"):
        original.pinpoints("(1x1)", 384)


def test_vocabulary_files_do_for_a_tokenizer(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c")
    before = open_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    after = open_checkpoint(folder)
    assert after.prompting == before.prompting
    assert after.tokenizer["model"]["vocab"] == before.tokenizer["model"]["vocab"]
    assert [list(m) for m in after.tokenizer["model"]["merges"]] == [
        m.split(" ") if isinstance(m, str) else list(m) for m in before.tokenizer["model"]["merges"]
    ]


class Malice:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_does_things_is_refused_unrun(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", form="bin")
    state: dict[str, Any] = dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    torch.save({**state, "extra": Malice(tmp_path / "owned")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors") as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value) and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shards", [1, 2])
def test_cut_shards_are_refused(tmp_path: Path, form: str, shards: int) -> None:
    folder = make_checkpoint(tmp_path / "c", form=form, shards=shards)
    path = sorted(folder.glob("*model*.safetensors" if form == "safetensors" else "*model*.bin"))[-1]
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{path.name}: not a whole") as error:
            open_checkpoint(folder)
        assert "\n" not in str(error.value)


def test_wrong_index_is_one_line(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(index.values()))
    moved = next(name for name in index if index[name] == first)
    path.write_text(json.dumps({"weight_map": {**index, moved: second, "ghost": first}}))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    assert f"{moved} is in {first}, the index says {second}" in str(error.value)
    assert f"the index says ghost is in {first}, it is not" in str(error.value)
    path.write_text(json.dumps({"weight_map": {**index, moved: "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names \.\./elsewhere.safetensors, not there"):
        open_checkpoint(folder)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c")
    state = load_file(folder / "model.safetensors")
    state["image_newline"] = torch.zeros(256, dtype=torch.int8)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="image_newline is I8, not one of F16, BF16, F32"):
        open_checkpoint(folder)
