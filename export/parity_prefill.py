"""Does a prefill graph's K and V give the checkpoint's logits? The whole path, llama.cpp behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.runtime.kv_state import read_state
from radvlm_edge.runtime.language import LanguageModel
from radvlm_edge.runtime.llama import PREFIX
from radvlm_edge.runtime.prefill import ENGINES, SplitPrefill, correlation, form_of

Floats = npt.NDArray[np.float32]

TOLERANCE = 0.02
"""Largest difference of a logit, as a fraction of the reference's deviation, for graphs in float."""


def compare_prefill(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    language: Path,
    prompts: tuple[list[int], Floats, Sequence[list[int]]],
    expected: Sequence[Floats],
    int8_gate: float,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Figures of graphs (precision → path) in ONNX Runtime before the F16 artefact; what is beyond limits.

    `prompts`: head, image tokens, tails; `expected`: the checkpoint's logits `[vocab]` behind each tail.
    Float graphs must choose its token and stay within TOLERANCE; INT8's logits within `int8_gate` (root mean
    square).
    `kv_agreement` is the least correlation of a layer's K or V with llama.cpp's own.
    """
    head, image, tails = prompts
    model = LanguageModel(language, context=len(head) + len(image) + 512, repack=False)
    width = checkpoint.config.language.kv_heads * checkpoint.config.language.head_dim
    figures, beyond = {}, []
    real = ~checkpoint.unused
    try:
        form = form_of(model.engine, checkpoint.config.language.layers, width)
        model.start([head, image])
        native = read_state(bytes(model.engine.save(PREFIX)), form)
        for precision, path in artefacts.items():
            model.split = SplitPrefill(ENGINES["onnx"](path, None), form)
            model.clear()
            model.start([head, image])
            held = read_state(bytes(model.engine.save(PREFIX)), form)
            pairs = zip([*held.keys, *held.values], [*native.keys, *native.values], strict=True)
            found = []
            for tail in tails:
                model.prefill(tail)
                found.append(model.logits())
            one = _figures(np.stack(found)[:, real], np.stack(expected)[:, real])
            one["kv_agreement"] = min(correlation(a[len(head) :], b[len(head) :]) for a, b in pairs)
            figures[precision] = one
            beyond += model.notes + _beyond(precision, one, int8_gate)
            model.notes = []
    finally:
        model.close()
    return figures, beyond


def _figures(ours: Floats, theirs: Floats) -> dict[str, float]:
    relative = (ours - theirs).astype(np.float64) / theirs.std(axis=1, keepdims=True)
    return {
        "largest_difference": float(np.abs(relative).max()),
        "rms_difference": float(np.sqrt(np.mean(relative * relative))),
        "top1": float(np.mean(ours.argmax(1) == theirs.argmax(1))),
    }


def _beyond(precision: str, figures: Mapping[str, float], int8_gate: float) -> list[str]:
    """What is beyond a limit; comparisons are written so that NaN is."""
    if precision == "int8":
        rms = figures["rms_difference"]
        return (
            [] if rms <= int8_gate else [f"prefill int8: logits differ by {rms:.3g} rms (gate {int8_gate:g})"]
        )
    found = []
    if not figures["largest_difference"] <= TOLERANCE:
        found.append(
            f"prefill {precision}: logits differ by {figures['largest_difference']:.2g} of their deviation "
            f"(limit {TOLERANCE:g})"
        )
    if figures["top1"] != 1:
        found.append(f"prefill {precision}: another token is chosen")
    return found
