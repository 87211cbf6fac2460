"""Grey-level formulas against hand-worked values of the standard and pydicom's own implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import apply_voi_lut

from radvlm_edge.runtime import render

VALUES = np.arange(-2048, 4096, dtype=np.int16)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (0, 100), (1023.5, 2.0), (-500, 1500)])
def test_windows_equal_pydicoms(function: str, center: float, width: float) -> None:
    dataset = Dataset()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = center, width, function
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 16, 1
    theirs = apply_voi_lut(VALUES, dataset)
    low, high = -32768, 32767
    ours = render.window(VALUES.astype(float), center, width, function)
    assert np.abs(ours - (theirs - low) / (high - low) * 255).max() < 1e-6


def test_linear_window_at_the_standards_own_points() -> None:
    # PS3.3 C.11.2.1.2.1: center 2048, width 4096 maps 0 to the bottom and 4095 to the top.
    assert list(render.window(np.array([-1.0, 0, 4095, 5000]), 2048, 4096)) == [0, 0, 255, 255]
    assert list(render.window(np.array([0.0, 1.0]), 1, 1)) == [0, 255]


@pytest.mark.parametrize(
    ("width", "function"), [(0, "LINEAR"), (0, "LINEAR_EXACT"), (-1, "SIGMOID"), (9, "X")]
)
def test_impossible_windows(width: float, function: str) -> None:
    with pytest.raises(ValueError, match=r"width|function"):
        render.window(np.zeros(1), 0, width, function)


def test_lookup_repeats_its_ends() -> None:
    table = np.array([10, 20, 30])
    assert list(render.lookup(np.array([-5.0, 7, 8, 9, 100]), 7, table)) == [10, 10, 20, 30, 30]


def test_equalise_follows_opencvs_formula() -> None:
    pixels = np.array([[50, 50, 100, 200]], np.uint8)
    # n = 4, cdf_min = 2: 50 → 0, 100 → 1/2 of 255 rounded to even, 200 → 255
    assert render.equalise(pixels).tolist() == [[0, 0, 128, 255]]
    flat = np.full((3, 3), 7, np.uint8)
    assert np.array_equal(render.equalise(flat), flat)


@given(st.integers(0, 2**32 - 1))
def test_equalising_keeps_the_order_of_greys(seed: int) -> None:
    pixels = np.random.default_rng(seed).normal(100, 30, (40, 40)).clip(0, 255).astype(np.uint8)
    out = render.equalise(pixels)
    order = np.argsort(pixels.ravel(), kind="stable")
    assert (np.diff(out.ravel()[order].astype(int)) >= 0).all()
    assert out.min() == 0 and out.max() == 255


def test_stretch_ignores_padding_and_survives_a_flat_film() -> None:
    values = np.array([[-2000.0, 10, 20, 30]])
    valid = values > -2000
    assert render.stretch(values, valid).tolist() == [[0, 0, 127.5, 255]]
    assert not render.stretch(np.full((2, 2), 5.0)).any()


def test_minmax_cuts_off_as_the_authors_do() -> None:
    stored = np.array([0, 1, 1000, 2000], np.uint16)
    assert render.render_minmax(stored).tolist() == [0, 0, 127, 255]
    eight = np.array([3, 250], np.uint8)
    assert render.render_minmax(eight).tolist() == [3, 250]
