"""Does this machine compute what the checkpoint's own software computed? golden.npz says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from radvlm_edge.bundle import Artefact, Bundle
from radvlm_edge.errors import BundleError
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.prefill import ENGINES, SplitPrefill, form_of
from radvlm_edge.runtime.vision import open_tower

VISION_LIMIT = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference of a token, as a fraction of the scale: an engine that is wrong is far beyond it."""
LANGUAGE_LIMIT = {"F16": 0.05}
"""Largest difference of a logit, in standard deviations; quantised artefacts are only reported."""
PREFILL_LIMIT = {"fp32": 0.05, "fp16": 0.05}


def self_test(bundle: Bundle, threads: int | None = None) -> Iterator[str]:
    """Run every artefact on the golden tensors; yields one line each.

    Raises BundleError at the first artefact beyond its limit.
    """
    with np.load(bundle.folder / "golden.npz") as file:
        golden = dict(file)
    for artefact in bundle.manifest.artefacts:
        run, limits = STAGES[artefact.role]
        difference = run(bundle, artefact, golden, threads)
        limit = limits.get(artefact.precision)
        if artefact.role == "prefill" and _least_rounded(bundle).precision != "F16":
            limit = None  # the language artefact behind it is quantised
        line = f"{artefact.role} {artefact.precision}: off by {difference:.2g}"
        if not np.isfinite(difference) or (limit is not None and difference > limit):
            raise BundleError(
                f"{bundle.folder}: {line} (limit {limit}) on this machine; "
                "its engine computes this bundle wrongly, do not use it here"
            )
        yield f"{line} (limit {limit:g})" if limit else f"{line} (quantised, reported only)"


def _vision(bundle: Bundle, artefact: Artefact, golden: dict[str, Any], threads: int | None) -> float:
    tokens = open_tower(bundle.path(artefact), threads).encode(golden["crop"])[0]
    return float(np.abs(tokens[golden["token_rows"]] - golden["tokens"]).max() / golden["token_scale"])


def _prefill(bundle: Bundle, artefact: Artefact, golden: dict[str, Any], threads: int | None) -> float:
    """The golden image through the graph, the prompt through the least rounded language artefact."""
    geometry = bundle.manifest.geometry
    model = LanguageModel(bundle.path(_least_rounded(bundle)), context=256, threads=threads)
    try:
        form = form_of(model.engine, geometry.layers, geometry.kv_heads * geometry.head_dim)
        model.split = SplitPrefill(ENGINES["onnx"](bundle.path(artefact), threads), form)
        return _logits_off(model, golden)
    finally:
        model.close()


def _least_rounded(bundle: Bundle) -> Artefact:
    """The language artefact with the most bytes."""
    return max((a for a in bundle.manifest.artefacts if a.role == "language"), key=lambda a: a.bytes)


def _language(bundle: Bundle, artefact: Artefact, golden: dict[str, Any], threads: int | None) -> float:
    model = LanguageModel(bundle.path(artefact), context=256, threads=threads)
    try:
        return _logits_off(model, golden)
    finally:
        model.close()


def _logits_off(model: LanguageModel, golden: dict[str, Any]) -> float:
    model.start([golden["image"]])
    if model.notes:
        raise BundleError(model.notes[0])
    model.prefill(golden["prompt"].tolist())
    logits = model.logits()
    return float(np.abs(logits[golden["logit_ids"]] - golden["logits"]).max() / golden["logit_std"])


STAGES = {
    "vision": (_vision, VISION_LIMIT),
    "language": (_language, LANGUAGE_LIMIT),
    "prefill": (_prefill, PREFILL_LIMIT),
}
