"""llama.cpp on one device: prefill of image tokens, decode, and what a fork of the K/V state costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.vision_artefacts import _summary
from radvlm_edge.errors import BackendError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.language import LanguageModel

Floats = npt.NDArray[np.float32]
HEAD, TAIL = list(range(20, 34)), list(range(40, 70))
"""Token ids before and behind the image; which ones does not matter to random weights."""
NO_TOKEN = -1e20
"""Padding rows' logits are far below this."""


def open_model(path: Path, device: str, context: int, kv_type: str | None = None) -> LanguageModel:
    """All layers on the GPU, or none. Raises BackendError where llama.cpp has no GPU."""
    return LanguageModel(path, context=context, gpu_layers=0 if device == "cpu" else -1, kv_type=kv_type)


def measure_language(
    path: Path,
    geometry: Geometry,
    device: str,
    *,
    image_tokens: Sequence[int],
    answer_tokens: int,
    repeats: int,
    warm_up: int = 1,
) -> dict[str, Any]:
    """Prefill and decode in tokens a second for each length of image, the fork, and parity with the CPU.

    With a build without a GPU on a CUDA device: `absent`, and why.
    """
    context = max(image_tokens) + len(HEAD) + len(TAIL) + answer_tokens + 8
    rng = np.random.default_rng(12)
    image = rng.standard_normal((max(image_tokens), geometry.embed_dim)).astype(np.float32) * 0.05
    try:
        model = open_model(path, device, context)
    except BackendError as error:
        return {"artefact": path.stem, "absent": str(error)}
    try:
        lengths = {
            str(count): _lengths(model, image[:count], answer_tokens, repeats, warm_up)
            for count in image_tokens
        }
        fork = measure_fork(model, image[: min(image_tokens)], repeats)
        logits = _after(model, image[: min(image_tokens)])
    finally:
        model.close()
    return {
        "artefact": path.stem,
        "bytes": path.stat().st_size,
        "lengths": lengths,
        "fork": fork,
        "parity": _parity(path, image[: min(image_tokens)], logits, context),
    }


def _lengths(
    model: LanguageModel, image: Floats, answer_tokens: int, repeats: int, warm_up: int
) -> dict[str, Any]:
    prefill, decode = [], []
    run = 0
    for turn in range(warm_up + repeats):
        model.clear()
        began = time.perf_counter()
        run = model.start([HEAD, image]) + model.prefill(TAIL)
        model.logits()  # waits for the device
        prefill_s = time.perf_counter() - began
        steps = list(model.steps(stop_ids=(), max_tokens=answer_tokens))
        decode_s = sum(step.decode_ms for step in steps[1:]) / 1e3
        if turn >= warm_up:
            prefill.append(run / prefill_s)
            decode.append((len(steps) - 1) / decode_s)
    return {
        "prefilled_tokens": run,
        "decoded_tokens": answer_tokens - 1,
        "prefill_tokens_per_s": _summary(prefill),
        "decode_tokens_per_s": _summary(decode),
    }


def measure_fork(model: LanguageModel, image: Floats, repeats: int) -> dict[str, Any]:
    """A second question by fork, by restoring the saved state, and by prefilling anew; milliseconds.

    `bitwise`: all three gave the same logits to the bit. A state that came back changed is a fault.
    """
    times: dict[str, list[float]] = {"anew": [], "fork": [], "save": [], "restore": []}
    run: dict[str, int] = {}
    same, tokens, state = True, 0, bytearray()

    def lap(name: str) -> None:
        times[name].append(1e3 * (time.perf_counter() - marks.pop()))

    marks: list[float] = []
    for _ in range(repeats):
        model.clear()
        marks.append(time.perf_counter())
        run["anew"] = model.start([HEAD, image]) + model.prefill(TAIL)
        first, tokens = model.logits(), model.prefix_tokens  # logits wait for the device
        lap("anew")
        marks.append(time.perf_counter())
        run["fork"] = model.prefill(TAIL)
        forked = model.logits()
        lap("fork")
        marks.append(time.perf_counter())
        state = model.save_prefix()
        lap("save")
        model.clear()
        marks.append(time.perf_counter())
        model.restore_prefix(state, tokens)
        lap("restore")
        model.prefill(TAIL)
        same = same and np.array_equal(first, forked) and np.array_equal(first, model.logits())
    return {
        "prefix_tokens": tokens,
        "tokens_run": run,
        "state_bytes": len(state),
        "bitwise": same,
        "ms": {name: _summary(values) for name, values in times.items()},
    }


def _after(model: LanguageModel, image: Floats) -> Floats:
    model.clear()
    model.start([HEAD, image])
    model.prefill(TAIL)
    return model.logits()


def _parity(path: Path, image: Floats, logits: Floats, context: int) -> dict[str, Any]:
    """Largest difference of a final logit from the CPU's, in standard deviations, and the best token."""
    model = open_model(path, "cpu", context)
    try:
        expected = _after(model, image)
    finally:
        model.close()
    real = expected > NO_TOKEN
    difference = float(np.abs(logits - expected)[real].max() / expected[real].std())
    return {
        "against": "llama.cpp CPU",
        "image_tokens": len(image),
        "largest_difference": difference,
        "same_choice": bool(logits.argmax() == expected.argmax()),
    }
