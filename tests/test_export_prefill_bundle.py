"""Bundles with prefill graphs: sealed, held to the checkpoint, tried on the target; their benchmarks too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radvlm_edge.benchmarks import prefill as speed
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import CheckpointError
from radvlm_edge.export.checkpoint import open_checkpoint
from radvlm_edge.export.exporter import export_checkpoint
from radvlm_edge.export.int8_table import Group, Table
from radvlm_edge.export.language import write_f16
from radvlm_edge.export.parity_prefill import compare_prefill
from radvlm_edge.export.prefill import write_prefill
from radvlm_edge.export.prefill_int8 import PREFILL_GROUPS
from radvlm_edge.export.streaming_reference import language_logits
from radvlm_edge.runtime.selftest import self_test


def any_table(checkpoint: Any, source: str) -> Table:
    """Thresholds wide enough for anything: coarse, but no calibration is run for them."""
    groups = {
        f"layers.{index}.{kind}": Group({"minmax": 8.0}, "minmax")
        for index in range(checkpoint.config.language.layers)
        for kind in PREFILL_GROUPS
    }
    return Table(source, groups, gate=1.0, films={"kind": "none", "films": 0})


def test_a_bundle_carries_its_prefill(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(
        tiny_checkpoint,
        tmp_path / "tiny.bundle",
        vision=("fp32",),
        language=("F16",),
        prefill=("fp32", "int8"),
        prefill_calibration=any_table,
    )
    assert bundle.verify() > 0
    assert {a.precision for a in bundle.manifest.artefacts if a.role == "prefill"} == {"fp32", "int8"}
    assert bundle.manifest.defaults["prefill"] == "int8"
    figures = json.loads((bundle.folder / "parity.json").read_text())["prefill"]
    assert figures["fp32"]["largest_difference"] < 0.02 and figures["fp32"]["kv_agreement"] > 0.999
    assert figures["int8"]["rms_difference"] > figures["fp32"]["rms_difference"]
    noted = (bundle.manifest.calibration or {})["prefill"]
    assert (bundle.folder / noted["file"]).exists() and noted["gate"] == 1.0
    lines = [line for line in self_test(Bundle.open(bundle.folder), 1) if line.startswith("prefill")]
    assert len(lines) == 2 and "limit 0.05" in lines[0] and "reported only" in lines[1]


def test_without_a_calibration_no_int8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for asked, complaint in ((("int8",), "needs a calibration"), (("int4",), "choose from int8, fp16, fp32")):
        with pytest.raises(CheckpointError, match=complaint):
            export_checkpoint(tiny_checkpoint, tmp_path / "b", prefill=asked)
    assert not (tmp_path / "b").exists()


def test_parity_finds_a_graph_that_is_another_models(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Another RoPE base: every K is wrong, by a little."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    language = replace(checkpoint.config.language, rope_theta=checkpoint.config.language.rope_theta * 3)
    other = replace(checkpoint, config=replace(checkpoint.config, language=language))
    write_f16(checkpoint, tmp_path / "F16.gguf")
    write_prefill(checkpoint, "fp32", tmp_path / "right.onnx")
    write_prefill(other, "fp32", tmp_path / "wrong.onnx")
    rng = np.random.default_rng(6)
    image = rng.standard_normal((60, language.hidden)).astype(np.float32)
    head, tail = [1, 2, 3], [4, 5, 6]
    expected = [language_logits(checkpoint, [[head, image, tail]], keep=[1])[0][0]]
    for name, wanted in (("right", 0), ("wrong", 1)):
        given = {"fp32": tmp_path / f"{name}.onnx"}
        _, beyond = compare_prefill(
            checkpoint, given, tmp_path / "F16.gguf", (head, image, [tail]), expected, 0.0
        )
        assert bool(beyond) == bool(wanted), beyond


def test_speed_is_summed_up() -> None:
    assert speed.summary([2.0, 1.0, 4.0], 100) == {
        "min_s": 1.0,
        "median_s": 2.0,
        "p95_s": 4.0,
        "median_tokens_per_s": 50.0,
        "best_tokens_per_s": 100.0,
    }
