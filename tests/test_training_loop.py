"""A whole run in seconds: killed, resumed to the same weights, saved as a loadable checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the torch world (extra `train`)")
pytest.importorskip("accelerate", reason="needs the torch world (extra `train`)")

import torch

from radvlm_edge.errors import OutputError, RecipeError
from radvlm_edge.runtime.crops import cut
from radvlm_edge.training import train
from radvlm_edge.training.curves import draw as draw_curves
from radvlm_edge.training.curves import load_metrics, points_of
from radvlm_edge.training.instructions import Exchange
from radvlm_edge.training.language import hidden_states, image_tokens_of, see
from radvlm_edge.training.loop import Stage
from radvlm_edge.training.model import CHAT_TEMPLATE, Sizes, build_model
from radvlm_edge.training.packing import HEAD, conversation, pack
from radvlm_edge.training.pointing import POINTED
from radvlm_edge.training.recipe import load_recipe
from radvlm_edge.training.tokenizer import build_tokenizer
from radvlm_edge.training.tower import pixels_of

pytestmark = pytest.mark.torch

RECIPE = """
name: tiny
seed: 3
vocab_size: 400
threads: 1
save_every: 2
evaluate_phantoms: 2
model: {crop_px: 28, patch_px: 14, pinpoints: [[28, 28], [28, 56], [56, 28], [56, 56]],
        tower_width: 32, tower_layers: 1, tower_heads: 2, tower_mlp: 32,
        hidden: 32, intermediate: 32, layers: 2, heads: 2, kv_heads: 1}
films: {phantoms: 8, short_px: [60, 70], real: false}
patches: {steps: 2, rate: 0.001, patches: 16}
tower: {steps: 4, phantoms: 2, real: 0, rate: 0.001}
decide: {steps: 2, phantoms: 2, real: 0, rate: 0.001}
language: {steps: 4, phantoms: 2, real: 0, rate: 0.001}
joint: {steps: 2, phantoms: 1, real: 0, rate: 0.0005, tower_rate: 0.0001}
"""
TINY = Sizes(
    crop_px=28,
    patch_px=14,
    pinpoints=((28, 28), (28, 56), (56, 28), (56, 56)),
    tower_width=32,
    tower_layers=1,
    tower_heads=2,
    tower_mlp=32,
    hidden=32,
    intermediate=32,
    layers=2,
    heads=2,
    kv_heads=1,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def _weights(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(checkpoint / "model.safetensors"))


@pytest.mark.parametrize("killed_in", ["tower", "language"])
def test_a_killed_run_resumes_to_the_same_weights(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    straight = train.run(recipe, tmp_path / "straight", resume=False)

    class KilledError(Exception):
        pass

    inner = Stage.run

    def run(self: Stage, compute: Any) -> None:
        def dying(step: int) -> Any:
            if self.name == killed_in and step == 3:
                raise KilledError
            return compute(step)

        inner(self, dying)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "run", run)
        with pytest.raises(KilledError):
            train.run(recipe, tmp_path / "killed", resume=False)
    resumed = train.run(recipe, tmp_path / "killed", resume=True)
    first, second = _weights(straight), _weights(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (straight / "tokenizer.json").read_bytes() == (resumed / "tokenizer.json").read_bytes()


def test_the_checkpoint_loads_and_says_what_it_is(recipe: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    folder = train.run(recipe, tmp_path / "out", resume=False)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert model.config.image_token_index == tokenizer.convert_tokens_to_ids("<image>")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert "language_model.lm_head.weight" not in _weights(folder)
    card = json.loads((folder / "radvlm_edge.json").read_text())
    assert card["demonstration"] and card["trained_on"]["real_films"] is None
    assert {"phantoms", "yes_no", "mean_iou"} <= set(json.loads((folder / "metrics.json").read_text()))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "any effusion?"}, {"type": "image"}]}],
        chat_template=CHAT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == "<|im_start|>user\n<image>\nany effusion?<|im_end|>\n<|im_start|>assistant\n"


def test_training_sees_what_inference_sees() -> None:
    """Packed conversations give the logits that transformers gives each prompt on its own."""
    tokenizer = build_tokenizer(["any effusion? Yes, there is."] * 9, 300)
    model = build_model(TINY, tokenizer, 0).eval()
    film = np.random.default_rng(0).integers(0, 255, (61, 75), dtype=np.uint8)
    crops, layout = cut(film, TINY.geometry(300))
    turns = [
        [Exchange("yesno", "any effusion?", "Yes, there is.")],
        [Exchange("report", "report", "No.")] * 2,
    ]
    with torch.no_grad():
        images = image_tokens_of(model, see(model, crops[None, :, 0]), [film.shape])
        assert len(images[0]) == layout.image_tokens
        packed = pack(tokenizer, [len(images[0])], [[conversation(tokenizer, one) for one in turns]])
        taught = packed.weights > 0
        logits = model.lm_head(hidden_states(model, packed, images)[-1][taught])
        at = 0
        for one in turns:
            block = conversation(tokenizer, one)
            image_ids = [model.config.image_token_index] * layout.image_tokens
            ids = torch.tensor([[*tokenizer.encode(HEAD).ids, *image_ids, *block.ids]])
            alone = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels_of(crops[:, 0])[None],
                image_sizes=torch.tensor([film.shape]),
            ).logits[0]
            places = [len(ids[0]) - len(block.ids) + k - 1 for k, w in enumerate(block.weights) if w > 0]
            assert torch.allclose(logits[at : at + len(places)], alone[places], atol=1e-4)
            at += len(places)
        assert at == int(taught.sum())


def test_crops_are_the_reference_processors() -> None:
    from transformers import LlavaOnevisionImageProcessor

    sizes = Sizes()
    film = np.random.default_rng(1).integers(0, 255, (231, 260), dtype=np.uint8)
    processor = LlavaOnevisionImageProcessor(
        size={"height": 112, "width": 112},
        image_grid_pinpoints=[list(pair) for pair in sizes.pinpoints],
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=3,
    )
    theirs = processor(np.repeat(film[..., None], 3, 2), return_tensors="pt")["pixel_values"][0]
    ours = pixels_of(cut(film, sizes.geometry(300))[0][:, 0])
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_folder_with_a_run_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        train.run(recipe, out, resume=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("surprise: 1", "unknown key 'surprise'"),
        ("seed: many", "seed is 'many'"),
        ("tower: 3", "expected a mapping"),
        ("[", "not YAML"),
        ("vocab_size: 100", "need 261"),
    ],
)
def test_a_bad_recipe_is_one_line(recipe: Path, tmp_path: Path, change: str, said: str) -> None:
    recipe.write_text(RECIPE + change + "\n")
    with pytest.raises(RecipeError, match=said) as caught:
        train.run(recipe, tmp_path / "out", resume=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nano", "nano-first", "nano-ci"])
def test_a_shipped_recipe_is_within_its_limits(name: str) -> None:
    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / f"{name}.yaml")
    assert recipe.vocab_size <= 4096
    if name != "nano-ci":  # which nobody quantises
        assert recipe.model.hidden % 256 == 0 and recipe.model.intermediate % 256 == 0
    tokenizer = build_tokenizer(["any effusion?"], 300)
    sizes = dataclasses.replace(recipe.model)
    model = build_model(sizes, tokenizer, 0)
    rows = recipe.vocab_size * sizes.hidden
    assert sum(one.numel() for one in model.parameters()) + rows <= 8_000_000


def test_every_part_learns_in_two_minutes(tmp_path: Path) -> None:
    """The five stages on 200 phantoms: each part's loss falls well below what not looking would cost."""
    recipe = Path(__file__).parent.parent / "recipes" / "nano-ci.yaml"
    train.run(recipe, tmp_path / "out", resume=False)
    lines = load_metrics(tmp_path / "out")
    last = {line["stage"]: line for line in lines}
    # Boxes in units of what the median box costs, here 0.05 of the film on average.
    assert last["tower"]["regions"] < 0.8 and last["tower"]["boxes"] < 0.9
    assert last["decide"]["asked"] < 2.5 < np.log(len(POINTED))
    assert last["decide"]["read"] < 0.6 < np.log(2)
    assert last["language"]["text"] < 4 < np.log(recipe_vocabulary(recipe))
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").is_file()
    draw_curves(tmp_path / "out", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 800
    assert points_of(lines, ("decide", "language"), "text")[0][-1] == 120  # counted on through the stages


def recipe_vocabulary(path: Path) -> int:
    return load_recipe(path).vocab_size
