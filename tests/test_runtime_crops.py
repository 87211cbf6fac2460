"""Crops and packing against values worked out by hand and against each other; transformers' own
processor and packing are the reference in test_export_parity."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radvlm_edge.errors import FilmError
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.runtime import anyres, crops

FULL = GEOMETRIES["radvlm-7b"]
SIDES = st.integers(200, 3600)


@pytest.mark.parametrize(
    ("height", "width", "count", "tokens"),
    [
        (3056, 2544, 31, 7241),
        (2544, 3056, 31, 7226),
        (2500, 2048, 31, 7315),
        (2022, 2022, 37, 7371),
        (1024, 1024, 10, 7371),
        (768, 768, 5, 3699),
        (512, 512, 5, 3699),
        (384, 384, 2, 1485),
        (100, 100, 2, 1485),
        (1153, 944, 13, 8765),
    ],
)
def test_published_sizes_cost_what_transformers_counts(
    height: int, width: int, count: int, tokens: int
) -> None:
    layout = crops.plan(height, width, FULL)
    assert (layout.crops, layout.image_tokens) == (count, tokens)


@given(SIDES, SIDES)
def test_no_film_costs_more_than_the_bound_the_context_is_sized_by(height: int, width: int) -> None:
    layout = crops.plan(height, width, FULL)
    assert 2 <= layout.crops <= 37
    assert layout.image_tokens <= FULL.max_image_tokens


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**32 - 1))
def test_plan_and_pack_agree_on_the_number_of_tokens(height: int, width: int, seed: int) -> None:
    try:
        layout = crops.plan(height, width, FULL)
    except FilmError:
        assert max(height / width, width / height) > 20
        return
    features = np.random.default_rng(seed).standard_normal((layout.crops, 729, 2)).astype(np.float32)
    packed = anyres.pack(features, layout, np.array([7, 7], np.float32))
    assert packed.shape == (layout.image_tokens, 2)
    assert np.array_equal(packed[:729], features[0])
    rows, columns = layout.features
    assert (packed[729:].reshape(rows, columns + 1, 2)[:, -1] == 7).all()


def test_crops_are_base_view_then_tiles_row_by_row() -> None:
    film = np.zeros((768, 768), np.uint8)
    film[:384, 384:] = 100
    film[384:, :384] = 200
    views, layout = crops.cut(film, FULL)
    assert views.shape == (5, 3, 384, 384) and views.dtype == np.uint8
    assert layout.grid == (2, 2)
    assert [int(np.median(view)) for view in views[1:]] == [0, 100, 200, 0]
    assert (views[:, 0] == views[:, 1]).all() and (views[:, 0] == views[:, 2]).all()


def test_padding_is_black_and_its_features_are_left_out() -> None:
    views, layout = crops.cut(np.full((300, 768), 255, np.uint8), FULL)
    assert layout.canvas == (384, 768)
    top = (384 - 300) // 2
    assert (views[1:, :, :top] == 0).all() and (views[1:, :, top : top + 300] == 255).all()
    assert layout.features == (21, 54)
    poison = np.full((3, 729, 1), np.nan, np.float32)
    poison[0] = 0
    poison[1:].reshape(2, 27, 27)[:, 3:24] = 1
    assert np.isfinite(anyres.pack(poison, layout, np.zeros(1, np.float32))).all()


def test_colour_films_keep_their_channels() -> None:
    film = np.zeros((400, 400, 3), np.uint8)
    film[..., 1] = 90
    views, _ = crops.cut(film, FULL)
    assert (views[0, 1] == 90).all() and (views[0, 0] == 0).all()


def test_a_film_too_thin_to_show_anything_is_refused() -> None:
    even = dataclasses.replace(FULL, crop_px=112, pinpoints=((112, 112), (112, 224), (224, 112)))
    with pytest.raises(FilmError, match="10000x10 pixels: too thin"):
        crops.plan(10, 10000, even)
    with pytest.raises(FilmError, match="0x5"):
        crops.plan(5, 0, FULL)
