"""What is taught to look is the model's own attention, at the right places."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the torch world (extra `train`)")
pytest.importorskip("accelerate", reason="needs the torch world (extra `train`)")

import torch

from radvlm_edge.runtime.crops import cut
from radvlm_edge.training.instructions import Exchange, labels_of, locate_finding, yes_no
from radvlm_edge.training.language import hidden_states, image_tokens_of, see
from radvlm_edge.training.model import Sizes, build_model
from radvlm_edge.training.packing import conversation, pack
from radvlm_edge.training.phantom import make_phantom
from radvlm_edge.training.pointing import NAMES, POINTED, Aids, aiding_losses, patches_of, pointing_layer
from radvlm_edge.training.targets import film_targets
from radvlm_edge.training.tokenizer import build_tokenizer

pytestmark = pytest.mark.torch

SIZES = Sizes(
    crop_px=56,
    patch_px=14,
    pinpoints=((56, 56), (56, 112), (112, 56), (112, 112)),
    tower_width=32,
    tower_layers=1,
    tower_heads=2,
    tower_mlp=32,
    hidden=32,
    intermediate=32,
    layers=3,
    heads=2,
    kv_heads=1,
)


def test_the_head_that_is_taught_is_the_models_own_attention() -> None:
    tokenizer = build_tokenizer(["any effusion? Yes, there is. [0.12, 0.3, 0.45, 0.67]"] * 9, 300)
    model = build_model(SIZES, tokenizer, 0).eval()
    model.model.language_model.config._attn_implementation = "eager"  # the one that returns attention
    geometry = SIZES.geometry(300)
    phantom = next(one for one in map(make_phantom, range(40)) if one.has("cardiomegaly"))
    targets, size = film_targets(phantom, geometry), phantom.pixels.shape
    rng = np.random.default_rng(0)
    absent = Exchange("yesno", "any edema?", "No, there is none.", "edema")
    asked = [locate_finding(rng, labels_of(phantom), "cardiomegaly"), absent]
    with torch.no_grad():
        images = image_tokens_of(model, see(model, cut(phantom.pixels, geometry)[0][None, :, 0]), [size])
        packed = pack(tokenizer, [len(images[0])], [[conversation(tokenizer, [one], NAMES) for one in asked]])
        patches = patches_of(model, torch.from_numpy(targets.areas[None]), torch.tensor([size]))
        patches[0][:, NAMES["edema"]] = False
        assert patches[0].shape == (len(images[0]), len(POINTED)) and patches[0].any()
        states = hidden_states(model, packed, images)
        presence = torch.from_numpy(targets.presence[None]).float()
        losses = aiding_losses(model, Aids(SIZES.hidden), packed, states, patches, presence)

        embeds = model.get_input_embeddings()(packed.ids).clone()
        embeds[0, packed.head : packed.head + len(images[0])] = images[0]
        layer = pointing_layer(SIZES.layers)
        looked = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": packed.mask},
            position_ids=packed.positions,
            use_cache=False,
            output_attentions=True,
        ).attentions[layer][0, 0]
    heart = torch.zeros(looked.shape[1])
    heart[packed.head : packed.head + len(images[0])] = patches[0][:, NAMES["cardiomegaly"]].float()
    expected = []
    for row, name in enumerate(packed.points[0].tolist()):
        if name >= 0:
            right = looked[row] @ heart if POINTED[name] == "cardiomegaly" else looked[row, 0]
            expected.append(-float(right.log()))
    assert len(expected) > 10
    assert float(losses["point"]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_points_stand_where_the_next_token_is_about_them() -> None:
    tokenizer = build_tokenizer(["any effusion? Yes, there is a right pleural effusion."] * 9, 300)
    for seed in range(30):
        labels = labels_of(make_phantom(seed))
        names = [name for name in labels.present if len(labels.boxes(name)) > 1]
        if names:
            break
    turn = locate_finding(np.random.default_rng(0), labels, names[0])
    block = conversation(tokenizer, [turn], NAMES)
    for place in set(turn.places):
        told = tokenizer.decode([t for t, point in zip(block.ids, block.points, strict=True)
                                 if point == NAMES[place]])  # fmt: skip
        assert told.count("[") == told.count("]") == turn.places.count(place)
    assert block.points[block.firsts.index(True)] == NAMES[names[0]]
    about = yes_no(np.random.default_rng(1), labels, "edema")
    brief = conversation(tokenizer, [about], NAMES, brief=True)
    assert brief.points.count(NAMES["edema"]) == 1 and brief.points[-1] == NAMES["edema"]
