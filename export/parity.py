"""Does the bundle say what the checkpoint says? Every stage against transformers, all mismatches at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import ParityError
from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.parity_findings import Findings
from radvlm_edge.export.parity_int8 import compare_int8
from radvlm_edge.export.parity_language import (
    QUICK_IMAGE_TOKENS,
    compare_answers,
    compare_language_prefill,
    compare_logits,
    compare_tokenizer,
)
from radvlm_edge.export.parity_vision import (
    VISION_TOLERANCE,
    compare_crops,
    compare_packing,
    compare_vision,
    compared_films,
)
from radvlm_edge.export.progress import Progress

LEVELS = ("quick", "full", "none")


def check_parity(
    checkpoint: Checkpoint,
    vision: Mapping[str, Path],
    language: Mapping[str, Path],
    newline: npt.NDArray[np.float32],
    *,
    level: str,
    progress: Progress,
    int8_gate: float = 0.0,
    prefill: Mapping[str, Path] | None = None,
    prefill_gate: float = 0.0,
) -> dict[str, Any]:
    """Compare artefacts (precision → path) with their checkpoint; returns the figures.

    `vision` must hold `fp32` and `language` `F16`, the artefacts the exact gates apply to. INT8 artefacts
    are held to `int8_gate`, the cosine 99 of 100 projected tokens of a phantom must keep; `prefill` graphs to
    parity_prefill.py's limits.
    Raises ParityError, one line naming every mismatch.
    """
    found = Findings()
    films = compared_films(checkpoint)
    progress.stage("parity: crops, image tokens, packing")
    views = compare_crops(checkpoint, films, found)
    compare_packing(checkpoint, films, newline, found)
    progress.stage("parity: projected tokens")
    floats = {precision: path for precision, path in vision.items() if precision in VISION_TOLERANCE}
    image = compare_vision(checkpoint, floats, views[0], found)
    if quantised := {precision: path for precision, path in vision.items() if precision not in floats}:
        progress.stage("parity: projected tokens of INT8")
        figures = compare_int8(checkpoint, quantised, int8_gate)
        found.figures["vision"] |= figures
        for precision, one in figures.items():
            p1 = one["token_cosine_p1"]
            found.require(
                p1 >= int8_gate, f"vision {precision} has token cosine p1 {p1:.4f} (gate {int8_gate:g})"
            )
    compare_tokenizer(checkpoint, language["F16"], found)
    compare_logits(checkpoint, language, image[:QUICK_IMAGE_TOKENS], found, progress)
    if prefill:
        progress.stage("parity: K and V of the prefill graphs")
        compare_language_prefill(checkpoint, prefill, language["F16"], newline, prefill_gate, found)
    if level == "full":
        progress.stage("parity: 50 greedy answers")
        compare_answers(checkpoint, vision["fp32"], language["F16"], newline, films[:5], found)
    if found.mismatches:
        raise ParityError(f"{checkpoint.folder}: the export differs: {'; '.join(found.mismatches)}")
    return {"level": level, **found.figures}
