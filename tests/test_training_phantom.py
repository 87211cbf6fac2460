"""Phantoms: the same seed the same film, and boxes that are where the findings are."""

from __future__ import annotations

import numpy as np
import pytest

from radvlm_edge.training.phantom import make_phantom
from radvlm_edge.training.phantom_findings import FINDINGS, SIDED

SMALL = (90, 120)


def test_a_seed_is_a_film() -> None:
    first, again, other = make_phantom(7), make_phantom(7), make_phantom(8)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.findings == again.findings
    assert first.pixels.shape != other.pixels.shape or not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("seed", range(40))
def test_boxes_lie_on_the_film_and_hold_their_pixels(seed: int) -> None:
    phantom = make_phantom(seed, SMALL)
    height, width = phantom.pixels.shape
    named = {f"{one.side} {one.name}".strip(): one.box for one in phantom.findings} | phantom.regions
    for name, (x1, y1, x2, y2) in named.items():
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, name
        if name in phantom.masks:
            rows, columns = np.nonzero(phantom.masks[name])
            assert x1 <= columns.min() / width and (columns.max() + 1) / width <= x2 + 1e-9, name
            assert y1 <= rows.min() / height and (rows.max() + 1) / height <= y2 + 1e-9, name


def test_films_differ_in_size_and_shape() -> None:
    shapes = [make_phantom(seed, SMALL).pixels.shape for seed in range(40)]
    assert any(height > width for height, width in shapes)
    assert any(height < width for height, width in shapes)
    assert all(SMALL[0] <= min(shape) <= SMALL[1] for shape in shapes)


@pytest.mark.parametrize("name", SIDED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_patients_right_is_the_images_left(name: str, side: str) -> None:
    for seed in range(6):
        phantom = make_phantom(seed, SMALL, findings=[(name, side)])
        assert phantom.has(name, side), seed
        assert {one.name for one in phantom.findings} == {name}
        box = phantom.findings[0].box
        lung = phantom.regions[f"{side} lung"]
        spine = phantom.regions["spine"]
        middle = (spine[0] + spine[2]) / 2
        assert ((box[0] + box[2]) / 2 < middle) == (side == "right")
        assert ((lung[0] + lung[2]) / 2 < middle) == (side == "right")


def test_an_enlarged_heart_is_wide() -> None:
    def ratio(findings: list[tuple[str, str]]) -> list[float]:
        ratios = []
        for seed in range(12):
            regions = make_phantom(seed, SMALL, findings=findings).regions
            heart = regions["cardiac silhouette"]
            thorax = regions["left lung"][2] - regions["right lung"][0]
            ratios.append((heart[2] - heart[0]) / thorax)
        return ratios

    assert np.mean(ratio([("cardiomegaly", "")])) > np.mean(ratio([])) + 0.1


def test_every_finding_occurs_and_none_is_the_rule() -> None:
    films = [make_phantom(seed, (60, 80)) for seed in range(120)]
    for name in FINDINGS:
        share = np.mean([film.has(name) for film in films])
        assert 0.2 < share < 0.6, name
    assert any(not film.findings for film in films)
