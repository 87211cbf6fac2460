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
from radvlm_edge.training.pointing import (
    NAMES,
    POINTED,
    Aids,
    aiding_losses,
    boxes_of,
    patches_of,
    pointing_layer,
)
from radvlm_edge.training.targets import BOXES, LEAST_APART, BoxSpread, film_targets
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
        boxes, apart = boxes_of(targets.boxes[None]), torch.full([len(POINTED)], 0.1)
        aids = Aids(SIZES.hidden)
        losses = aiding_losses(model, aids, packed, states, patches, presence, boxes, apart)
        told = aids.place(states[pointing_layer(SIZES.layers) + 2][0]) * 0.25 + 0.5

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
    heart_box = torch.tensor(labels_of(phantom).boxes("cardiomegaly")[0])
    placed = [
        float((told[row] - heart_box).abs().mean()) / 0.1
        for row, name in enumerate(packed.points[0].tolist())
        if name == NAMES["cardiomegaly"]
    ]
    assert len(placed) > 10 and float(losses["placed"]) == pytest.approx(np.mean(placed), rel=1e-4)


def test_without_a_side_the_box_is_that_of_the_only_side() -> None:
    boxes = np.full((3, len(BOXES), 4), np.nan, np.float32)
    right, left = (BOXES.index(f"{side} pneumothorax") for side in ("right", "left"))
    boxes[0, right] = boxes[1, right] = (0.1, 0.2, 0.3, 0.4)
    boxes[1, left] = boxes[2, left] = (0.6, 0.2, 0.8, 0.4)
    told = boxes_of(boxes)[:, NAMES["pneumothorax"]].numpy()
    assert np.array_equal(told[0], boxes[0, right]) and np.array_equal(told[2], boxes[2, left])
    assert np.isnan(told[1]).all()  # two places, no one box


def test_a_boxes_unit_is_what_the_median_box_costs() -> None:
    boxes = np.full((4, len(BOXES), 4), np.nan, np.float32)
    boxes[:, 0] = np.array([0.1, 0.2, 0.4, 0.5])[:, None]
    boxes[:, 1] = 0.5  # never moves
    apart = BoxSpread.of(boxes).apart
    assert apart[0] == pytest.approx((0.2 + 0.1 + 0.1 + 0.2) / 4)
    assert apart[1] == apart[2] == pytest.approx(LEAST_APART)


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
