"""Phantoms: the same seed the same film, boxes where the findings are, and the published difficulty."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from radvlm_edge.geometry import Geometry
from radvlm_edge.training import phantom_difficulty as difficulty
from radvlm_edge.training.phantom import Phantom, make_phantom
from radvlm_edge.training.phantom_difficulty import FINDINGS, GRADES, SIDED
from radvlm_edge.training.phantom_regions import REGIONS
from radvlm_edge.training.phantom_scene import draw_cases
from radvlm_edge.training.targets import BOXES, PEAK, PRESENCES, film_targets

SMALL = (150, 190)


@pytest.fixture(scope="module")
def films() -> list[Phantom]:
    return [make_phantom(seed, SMALL) for seed in range(60)]


def test_a_seed_is_a_film() -> None:
    first, again, other = make_phantom(7), make_phantom(7), make_phantom(8)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.findings == again.findings
    assert first.pixels.shape != other.pixels.shape or not np.array_equal(first.pixels, other.pixels)


def test_what_is_not_asked_for_stays_as_it_was() -> None:
    """Films of one seed with and without a lesion differ only where the lesion is."""
    for seed in range(40, 60):
        bare, ill = (
            make_phantom(seed, SMALL, findings=findings) for findings in ([], [("lung lesion", "right")])
        )
        if not ill.findings:
            continue
        x1, y1, x2, y2 = ill.findings[0].box
        height, width = ill.pixels.shape
        changed = np.abs(ill.pixels.astype(int) - bare.pixels)
        changed[int(y1 * height) - 5 : int(y2 * height) + 6, int(x1 * width) - 5 : int(x2 * width) + 6] = 0
        assert (changed > 3).mean() < 0.002, seed  # the exposure follows the film's percentiles


def test_boxes_lie_on_the_film_and_hold_their_pixels(films: list[Phantom]) -> None:
    for phantom in films:
        height, width = phantom.pixels.shape
        for one in phantom.findings:
            x1, y1, x2, y2 = one.box
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, one
            area = phantom.masks[f"{one.side} {one.name}".strip()]
            inside = np.zeros_like(area)
            inside[round(y1 * height) : round(y2 * height), round(x1 * width) : round(x2 * width)] = True
            if one.name != "support devices":  # several of them share one mask
                assert not (area & ~inside).any(), one
            assert (area & inside).any(), one
        for name, (x1, y1, x2, y2) in phantom.regions.items():
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, name


def test_films_differ_in_size_and_shape(films: list[Phantom]) -> None:
    shapes = [film.pixels.shape for film in films]
    assert any(height > width for height, width in shapes)
    assert any(height < width for height, width in shapes)
    assert all(SMALL[0] <= min(shape) <= SMALL[1] for shape in shapes)


@pytest.mark.parametrize("name", SIDED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_patients_right_is_the_images_left(name: str, side: str) -> None:
    shown = 0
    for seed in range(6):
        phantom = make_phantom(seed, SMALL, findings=[(name, side)])
        assert {(one.name, one.side) for one in phantom.findings} <= {(name, side)}
        for one in phantom.findings:
            shown += 1
            spine = phantom.regions["spine"]
            middle = (spine[0] + spine[2]) / 2
            assert ((one.box[0] + one.box[2]) / 2 < middle) == (side == "right")
    assert shown >= 4


def test_the_heart_label_is_the_ratio_and_the_ratio_is_on_the_film(films: list[Phantom]) -> None:
    errors = []
    for phantom in films:
        assert phantom.has("cardiomegaly") == (phantom.heart_ratio >= 0.50)
        rows, columns = np.nonzero(phantom.masks["cardiac silhouette"])
        lungs = phantom.masks["right lung"] | phantom.masks["left lung"]
        across = np.flatnonzero(lungs[: rows.max()].any(0))
        if across[0] > 0 and across[-1] < lungs.shape[1] - 1:  # the whole thorax is on the film
            measured = (columns.max() - columns.min() + 1) / (across[-1] - across[0] + 1)
            errors.append(measured - phantom.heart_ratio)
    assert len(errors) > 30
    assert abs(float(np.median(errors))) < 0.03


def test_prevalence_and_grades_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    people = [draw_cases(rng) for _ in range(4000)]
    wanted = (1 - difficulty.HEALTHY) * difficulty.PREVALENCE
    for name in FINDINGS:
        own = [[case for case in cases if case.name == name] for cases in people]
        assert abs(np.mean([bool(one) for one in own]) - wanted) < 0.03, name
        grades = [case.severity for one in own for case in one]
        for grade in GRADES[name]:
            assert abs(grades.count(grade.name) / len(grades) - grade.share) < 0.05, (name, grade)
    assert 0.08 < np.mean([not cases for cases in people]) < 0.2


def test_most_of_what_is_asked_for_is_on_the_film(films: list[Phantom]) -> None:
    for name in FINDINGS:
        share = np.mean([film.has(name) for film in films])
        assert 0.08 < share < 0.5, name


def test_regions_have_chest_imagenomes_names(films: list[Phantom]) -> None:
    for film in films:
        assert set(film.regions) <= set(REGIONS)
        assert {"right lung", "left lung", "cardiac silhouette", "trachea", "spine"} <= set(film.regions)
    assert len(REGIONS) >= 20


def test_targets_hold_every_finding_however_small(films: list[Phantom]) -> None:
    geometry = Geometry(56, 14, ((56, 56), (56, 112), (112, 56), (112, 112)), 9, 64, 1, 1, 64, 512, 300)
    for phantom in films[:12]:
        targets = film_targets(phantom, geometry)
        for index, name in enumerate(PRESENCES):
            here = any(f"{one.side} {one.name}".strip() == name for one in phantom.findings)
            assert targets.presence[index] == here
            assert (targets.areas[:, :, index].max() >= PEAK - 1) == here, name
            assert np.isfinite(targets.boxes[index]).all() == here
    assert BOXES[: len(PRESENCES)] == PRESENCES


def test_the_difficulty_page_is_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "nano-task.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| ([a-z]+) \| (\d+) % \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert [
        (name, grade, float(share) / 100, float(low), float(high)) for name, grade, share, low, high in rows
    ] == [
        (name, grade.name, grade.share, grade.low, grade.high) for name in FINDINGS for grade in GRADES[name]
    ]
    assert f"{difficulty.PREVALENCE:.2f}" in page and f"{difficulty.HEALTHY:.2f}" in page
