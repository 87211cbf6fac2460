"""What less of a film costs in answers: measured on the bundle, stored, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from radvlm_edge.benchmarks.plot import Point, front
from radvlm_edge.bundle import Bundle
from radvlm_edge.cli import cli
from radvlm_edge.errors import DetailError
from radvlm_edge.geometry import GEOMETRIES
from radvlm_edge.runtime import crops
from radvlm_edge.runtime.detail import capped

pytestmark = pytest.mark.torch
FULL = GEOMETRIES["radvlm-7b"]


def test_levels_are_the_models_or_the_callers() -> None:
    from radvlm_edge.export.fidelity_detail import chosen_levels

    assert chosen_levels("all", FULL) == (None, 1152, 768, 384)
    assert chosen_levels("768, 1920,exact", FULL) == (None, 1920, 768)
    for wrong in ("some", "768,100"):
        with pytest.raises(DetailError):
            chosen_levels(wrong, FULL)


def test_detail_is_measured_beside_its_price(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from radvlm_edge.export.exporter import export_checkpoint

    chosen: dict[str, Any] = {"vision": ("fp32",), "language": ("F16",), "parity": "none"}
    export_checkpoint(tiny_checkpoint, tmp_path / "b", **chosen)
    plot = tmp_path / "detail.png"
    command = ["fidelity", str(tmp_path / "b"), "--against", str(tiny_checkpoint), "--phantoms", "1"]
    run = CliRunner().invoke(
        cli, [*command, "--threads", "1", "--detail", "56,28", "--plot", str(plot), "--json"]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    detail = found["detail"]
    assert set(detail["levels"]) == {"exact", "56", "28"} and detail["combination"] == "fp32+F16"
    levels = detail["levels"]
    same = {key: levels["exact"][key] for key in ("answers", "boxes", "labels", "next_token", "yes_no")}
    whole = found["combinations"]["fp32+F16"]
    assert same == {key: whole[key] for key in same}, "exact detail is the combination itself"
    from radvlm_edge.export.fidelity_prompts import FIRST_SEED
    from radvlm_edge.export.probe_films import phantoms

    geometry = Bundle.open(tmp_path / "b").manifest.geometry
    (film,) = phantoms(1, FIRST_SEED, geometry).films
    for name, cap in (("exact", None), ("56", 56), ("28", 28)):
        layout = crops.plan(*film.pixels.shape, capped(geometry, cap))
        one = levels[name]
        assert (one["crops_mean"], one["image_tokens_mean"]) == (layout.crops, layout.image_tokens)
        assert one["vision_ms"] > 0 and one["prefill_ms"] > 0
    assert levels["28"]["next_token"]["kld_mean"] > levels["exact"]["next_token"]["kld_mean"]
    bundle = Bundle.open(tmp_path / "b")
    bundle.verify()
    assert bundle.manifest.fidelity is not None
    assert set(bundle.manifest.fidelity["detail"]["fp32+F16"]) <= {"56", "28"}
    with Image.open(plot) as picture:
        colours = picture.getcolors(1 << 20)
    assert picture.size == (900, 700) and colours is not None and len(colours) > 3
    assert detail["machine"]["cpu"]


def test_a_front_holds_what_nothing_beats() -> None:
    a, b, c, d = (Point(n, x, y, y, y) for n, x, y in (("a", 1, 5), ("b", 2, 3), ("c", 3, 4), ("d", 4, 0)))
    assert front([d, c, b, a], less_is_better=True) == [a, b, d]
    assert front([d, c, b, a], less_is_better=False) == [a]


@pytest.mark.parametrize(
    ("arguments", "complaint"), [(["--plot", "x.png"], "--detail all"), ([], "--against")]
)
def test_what_is_missing_is_said(tiny_bundle: Path, arguments: list[str], complaint: str) -> None:
    against = ["--against", "x"] if arguments else []
    found = CliRunner().invoke(cli, ["fidelity", str(tiny_bundle), *against, *arguments])
    assert found.exit_code == 2 and complaint in found.output
