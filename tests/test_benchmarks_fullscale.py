"""The full-scale export at an eighth of its widths: the same files, the same code, in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from radvlm_edge.benchmarks.fullscale import PUBLISHED_SHARDS_GB, measure
from radvlm_edge.benchmarks.random_checkpoint import SCALES, _shards, config_json
from radvlm_edge.export.config import parse_config

pytestmark = pytest.mark.torch


def test_an_eighth_of_the_published_model(tmp_path: Path) -> None:
    report = measure("eighth", tmp_path, language="F16", against_transformers=True)
    assert report["checkpoint"]["bytes"] == pytest.approx(
        report["bundle_bytes"]["language/F16.gguf"], rel=0.05
    )
    assert report["transformers"]["streamed_largest_difference"] < 1e-5
    assert report["transformers"]["f16_largest_difference"] < 0.02
    assert report["transformers"]["same_choice"] == 1
    assert report["parity"]["language"]["F16"]["top1"] == 1
    assert report["export"]["samples"] > 10
    assert report["export"]["peak_anonymous_bytes"] < 700 << 20  # torch itself is most of it
    assert not list(tmp_path.iterdir())


def test_shards_are_as_large_as_the_published_ones() -> None:
    sizes = SCALES["7b"]
    shapes = parse_config(config_json(sizes), Path("c")).tensor_shapes(tied=False)
    found = []
    for names in _shards(shapes):
        count = 0
        for name in names:
            size = 2
            for side in shapes[name]:
                size *= side
            count += size
        found.append(count / 1e9)
    assert len(found) == len(PUBLISHED_SHARDS_GB["7b"])
    assert found == pytest.approx(PUBLISHED_SHARDS_GB["7b"], abs=0.25), found
    assert sum(found) == pytest.approx(16.06, abs=0.01)
