"""Less of a film, chosen: what a cap costs, what it leaves alone, and that its answers know of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import write_film

from radvlm_edge.bundle import Bundle
from radvlm_edge.cli import cli
from radvlm_edge.errors import DetailError, QuestionError
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.runtime import crops
from radvlm_edge.runtime.detail import capped, levels, resolve
from radvlm_edge.runtime.limits import detail_fidelity
from radvlm_edge.runtime.reader import Options, Reader

FULL = GEOMETRIES["radvlm-7b"]
NANO = dataclasses.replace(FULL, crop_px=144, patch_px=18, pinpoints=((144, 144), (288, 144), (288, 288)))
SIDES = st.integers(200, 3600)


@pytest.mark.parametrize(
    ("detail", "count", "tokens"),
    [
        ("exact", 31, 7241),
        (1152, 10, 6237),
        ("768", 5, 3159),
        (384, 2, 1377),
        (1000, 5, 3159),
        (9999, 31, 7241),
    ],
)
def test_a_full_film_costs_what_the_design_says(detail: int | str, count: int, tokens: int) -> None:
    layout = crops.plan(3056, 2544, capped(FULL, resolve(detail)))
    assert (layout.crops, layout.image_tokens) == (count, tokens)


@given(SIDES, SIDES, st.integers(384, 2400))
def test_a_cap_is_kept_and_leaves_films_within_it_alone(height: int, width: int, cap_px: int) -> None:
    some = capped(FULL, cap_px)
    layout, exact = crops.plan(height, width, some), crops.plan(height, width, FULL)
    assert max(layout.canvas) <= cap_px and layout.crops <= exact.crops
    assert layout.image_tokens <= some.max_image_tokens <= FULL.max_image_tokens
    if max(exact.canvas) <= cap_px or max(height, width) <= cap_px // 384 * 384:
        assert layout == exact


def test_the_base_view_is_the_exact_ones_and_tiles_come_from_the_films_own_pixels() -> None:
    film = np.random.default_rng(0).integers(0, 256, (1500, 1250), dtype=np.uint8)
    exact, _ = crops.cut(film, FULL)
    views, layout = crops.cut(film, capped(FULL, 768))
    assert np.array_equal(views[0], exact[0]) and layout.canvas == (768, 768)
    fitted = Image.fromarray(film).resize((640, 768), Image.Resampling.BICUBIC)
    canvas = np.pad(np.asarray(fitted), ((0, 0), (64, 64)))
    assert np.array_equal(views[1, 0], canvas[:384, :384]) and np.array_equal(views[4, 0], canvas[384:, 384:])


@pytest.mark.torch
@pytest.mark.parametrize("size", [(700, 580), (580, 700), (300, 240), (150, 500)])
def test_crops_are_those_of_a_processor_with_these_canvases(size: tuple[int, int]) -> None:
    from transformers.models.llava_onevision.image_processing_llava_onevision import (
        LlavaOnevisionImageProcessor,
    )

    sides = [96 * count for count in range(1, 7)]
    geometry = dataclasses.replace(FULL, crop_px=96, pinpoints=tuple((h, w) for h in sides for w in sides))
    some = capped(geometry, 288)
    processor = LlavaOnevisionImageProcessor(
        size={"height": 96, "width": 96}, image_grid_pinpoints=[list(canvas) for canvas in some.pinpoints]
    )
    film = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    theirs = processor(
        Image.fromarray(film).convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np"
    )
    views, _ = crops.cut(film, some)
    assert np.array_equal(theirs["pixel_values"][0], views)


@pytest.mark.parametrize("detail", ["all", "768px", "", 0, -1, 76.5, "7.5", "nan", True])
def test_no_detail_at_all_is_one_line(detail: Any) -> None:
    with pytest.raises(DetailError, match="name exact or the long side") as error:
        resolve(detail)
    assert "\n" not in str(error.value)


def test_levels_follow_the_model() -> None:
    assert levels(FULL) == (None, 1152, 768, 384)
    assert levels(NANO) == (None, 144)
    with pytest.raises(DetailError, match="choose 144 or more"):
        capped(NANO, 143)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.png", 1, 90, 70)


def test_a_reader_prefills_what_the_plan_says(tiny_bundle: Path, film: Path) -> None:
    geometry = Bundle.open(tiny_bundle).manifest.geometry
    with Reader.open(tiny_bundle, Options(max_tokens=4, threads=1)) as reader:
        head, prefilled = len(reader._recall.head), {}
        for detail in ("exact", 56, 28):
            reader._recall._language.clear()  # the head is not kept from the film before
            study = reader.look(film, detail=detail)
            expected = crops.plan(90, 70, capped(geometry, resolve(detail)))
            assert study.layout == expected and study.detail == str(detail)
            assert study.uncharged_tokens == head + expected.image_tokens
            prefilled[detail] = study.uncharged_tokens
            provenance = study.ask("any effusion?").provenance
            assert provenance["detail"] == str(detail)
        assert prefilled["exact"] > prefilled[56] > prefilled[28]
        assert "at detail 28 not measured" in str(provenance["fidelity"])
        with pytest.raises(DetailError):
            reader.look(film, detail=27)


def test_a_reader_opened_for_less_keeps_less_context(tiny_bundle: Path, film: Path) -> None:
    with Reader.open(tiny_bundle) as whole, Reader.open(tiny_bundle, Options(detail=28)) as less:
        geometry = whole.bundle.manifest.geometry
        spared = geometry.max_image_tokens - capped(geometry, 28).max_image_tokens
        assert whole._language.context - less._language.context == spared > 0
        study = less.look(film)
        assert study.detail == "28" and study.ask("a?", max_tokens=4).text is not None
        assert less.look(film, detail="exact").layout.crops > study.layout.crops
    context = len(less._recall.head) + study.layout.image_tokens + 40
    with (
        Reader.open(tiny_bundle, Options(detail=28, context=context, max_tokens=4)) as reader,
        pytest.raises(QuestionError, match="lower --detail"),
    ):
        reader.look(film, detail="exact")


def test_the_study_cache_keeps_details_apart(tiny_bundle: Path, film: Path, tmp_path: Path) -> None:
    options = Options(max_tokens=4, threads=1, study_cache=tmp_path / "studies")
    with Reader.open(tiny_bundle, options) as reader:
        seen = [(detail, reader.look(film, detail=detail).cache) for detail in ("exact", 28, 56, 28, "exact")]
        assert [cache for _, cache in seen] == ["miss", "miss", "miss", "hit", "hit"]
        assert reader.look(film, detail=5000).cache == "hit", (
            "a cap that leaves nothing out is the same study"
        )
        spared = reader.look(film, detail=28)
        assert spared.encoded is None and spared.image.shape[0] == spared.layout.image_tokens


def test_provenance_says_what_less_detail_was_measured_to_cost(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    options = Options()
    name = "+".join(bundle.artefact(role).precision for role in ("vision", "language"))
    measured = {"beyond": {}, "ever_beyond": [], "detail": {name: {"28": ["3 flips"], "56": []}}}
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, fidelity=measured))
    assert detail_fidelity(bundle, options, "fine", None) == "fine"
    assert "beyond the bundle's limits: 3 flips" in detail_fidelity(bundle, options, "fine", 28)
    assert detail_fidelity(bundle, options, "fine", 56).endswith("at detail 56 within the bundle's limits")
    assert detail_fidelity(bundle, options, "fine", 30).endswith("at detail 30 not measured")


def test_the_command_line_takes_a_detail(tiny_bundle: Path, film: Path) -> None:
    run = CliRunner()
    base = ["infer", str(film), "--ask", "a?", "--bundle", str(tiny_bundle), "--max-tokens", "2", "--json"]
    for detail, count in (("exact", 10), ("28", 2)):
        record = json.loads(run.invoke(cli, [*base, "--detail", detail]).stdout)
        assert record["image"]["detail"] == detail and record["image"]["crops"] == count
    assert isinstance(run.invoke(cli, [*base, "--detail", "most"]).exception, DetailError)
    plan = ["plan", "2544x3056", "--geometry", "radvlm-7b", "--json", "--detail"]
    cost = json.loads(run.invoke(cli, [*plan, "768"]).stdout)
    assert (cost["detail"], cost["crops"], cost["image_tokens"]) == ("768", 5, 3159)
    assert cost["kv_bytes"] == 3159 * 57344
