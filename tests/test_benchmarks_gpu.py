"""The GPU benchmark, all of it, on the CPU at a size for tests: what it runs, compares and derives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from radvlm_edge.benchmarks import gpu, gpu_roof
from radvlm_edge.benchmarks.gpu_roof import Roof, ratios
from radvlm_edge.benchmarks.random_checkpoint import SCALES
from radvlm_edge.runtime.roofline import PUBLISHED

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("gpu")
    options = ["--device", "cpu", "--geometry", "tiny", "--language", "Q8_0", "--repeats", "2"]
    out = work / "gpu.json"
    gpu.main([str(work), "-o", str(out), *options, "--answer-tokens", "5", "--side", "256"])
    read: dict[str, Any] = json.loads(out.read_text())
    return read


def test_every_engine_ran_and_agrees_with_the_cpu(report: dict[str, Any]) -> None:
    vision = report["vision"]
    assert {"torch", "onnx"} <= set(vision["engines"]) | set(vision["absent"]) and "torch" in vision[
        "engines"
    ]
    for name, result in vision["engines"].items():
        assert result["parity"]["token_cosine"]["min"] > 0.9999, name
        assert set(result["ms_per_crop"]) == {"1", "3"}
        assert all(0 < row["min"] <= row["median"] <= row["p95"] for row in result["ms_per_crop"].values())
    assert report["language"]["parity"] == {
        "against": "llama.cpp CPU",
        "image_tokens": 40,
        "largest_difference": 0.0,
        "same_choice": True,
    }


def test_what_was_run_is_counted(report: dict[str, Any]) -> None:
    language = report["language"]
    assert {n: one["prefilled_tokens"] for n, one in language["lengths"].items()} == {"40": 84, "90": 134}
    fork = language["fork"]
    assert fork["bitwise"] and fork["prefix_tokens"] == 54
    assert fork["tokens_run"] == {"anew": 84, "fork": 30}
    geometry = SCALES["tiny"].geometry
    assert fork["state_bytes"] == pytest.approx(54 * geometry.kv_bytes_per_token, rel=0.1)


def test_header_and_ratios(report: dict[str, Any]) -> None:
    assert report["device"]["kind"] == "cpu" and report["weights"] == "random"
    assert report["device"]["llama.cpp"] and report["roof"]["bandwidth_gb_s"] > 0
    for part in ("vision", "prefill", "decode"):
        assert report["of_roof"][part], part


def test_ratios_are_work_over_time_over_the_roof() -> None:
    """7B, by hand: 8.03 G weights of 4.68 GB at 100 tokens a second and 1,000 GB/s."""
    scale = SCALES["7b"]
    network = gpu.network_of(scale)
    published = PUBLISHED["radvlm-7b"]
    assert network.language_weights == pytest.approx(published.language_weights, rel=0.002)
    assert network.vision_weights == pytest.approx(published.vision_weights, rel=0.01)
    one = {
        "prefilled_tokens": 1000,
        "prefill_tokens_per_s": {"median": 1000.0},
        "decode_tokens_per_s": {"median": 100.0},
    }
    rows = {
        "vision": {"engines": {"x": {"ms_per_crop": {"10": {"median": 10.0}}}}},
        "language": {"lengths": {"1000": one}},
    }
    found = ratios(rows, Roof(1000.0, 100.0), scale.geometry, network, 4_680_000_000)
    embedding = scale.geometry.vocab * scale.geometry.embed_dim / network.language_weights
    read = 4.68e9 * (1 - embedding) + 1000 * 57344
    assert found["decode"]["1000"] == pytest.approx(100 * read / 1e12)
    assert found["prefill"]["1000"] == pytest.approx(2 * 6.53e9 * 1000 / 100e12, rel=0.03)
    assert found["vision"]["x"]["10"] == pytest.approx(0.67e12 / 0.010 / 100e12, rel=0.06)


def test_a_missing_gpu_is_an_error_and_not_a_slow_run(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that torch can use")
    with pytest.raises(SystemExit, match="--device cuda: torch .* cannot use a GPU here"):
        gpu.main([str(tmp_path), "-o", str(tmp_path / "x.json")])
    assert not list(tmp_path.iterdir())


def test_the_roof_of_this_cpu_is_a_rate() -> None:
    roof = gpu_roof.measure_roof("cpu", side=128, repeats=3)
    assert roof.bandwidth_gb_s > 0 and roof.tflops > 0
