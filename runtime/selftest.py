"""Does this machine compute what the checkpoint's own software computed? golden.npz says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from radvlm_edge.bundle import Artefact, Bundle
from radvlm_edge.errors import BundleError
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.vision import open_tower

VISION_LIMIT = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference of a token, as a fraction of the scale: an engine that is wrong is far beyond it."""
LANGUAGE_LIMIT = {"F16": 0.05}
"""Largest difference of a logit, in standard deviations; quantised artefacts are only reported."""


def self_test(bundle: Bundle, threads: int | None = None) -> Iterator[str]:
    """Run every artefact on the golden tensors; yields one line each.

    Raises BundleError at the first artefact beyond its limit.
    """
    with np.load(bundle.folder / "golden.npz") as file:
        golden = dict(file)
    for artefact in bundle.manifest.artefacts:
        difference = (_vision if artefact.role == "vision" else _language)(bundle, artefact, golden, threads)
        limits = VISION_LIMIT if artefact.role == "vision" else LANGUAGE_LIMIT
        limit = limits.get(artefact.precision)
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


def _language(bundle: Bundle, artefact: Artefact, golden: dict[str, Any], threads: int | None) -> float:
    model = LanguageModel(bundle.path(artefact), context=256, threads=threads)
    try:
        model.start([golden["image"]])
        model.prefill(golden["prompt"].tolist())
        logits = model.logits()
    finally:
        model.close()
    return float(np.abs(logits[golden["logit_ids"]] - golden["logits"]).max() / golden["logit_std"])
