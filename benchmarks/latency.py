"""Latency of one film and one question, part by part."""

from __future__ import annotations

import platform
import statistics
from typing import Any

from radvlm_edge.runtime.reader import Reader
from radvlm_edge.runtime.vision import available_cpus
from radvlm_edge.runtime.vision_choice import cpu_name

PARTS = ("decode_film", "crops", "vision", "prefill", "decode", "total")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": cpu_name(), "cpus": available_cpus(), "python": platform.python_version()}


def measure(
    reader: Reader, film: str, question: str, *, repeats: int = 5, warm_up: int = 1
) -> dict[str, Any]:
    """Ask one question about one film `repeats` times from nothing; times in milliseconds.

    Every repeat reads, encodes and prefills the film again. Returns `parts` with min, median and
    max over the repeats, and `again`: the same question about the film already looked at.
    """
    rows: list[dict[str, float]] = []
    again: list[float] = []
    for index in range(warm_up + repeats):
        study = reader.look(film)
        looked = study.looked
        timing = study.ask(question).timing
        second = study.ask(question).timing
        if index < warm_up:
            continue
        row = {
            "decode_film": looked.decode_film_ms,
            "crops": looked.crops_ms,
            "vision": looked.vision_ms,
            "prefill": timing.prefill_ms,
            "decode": timing.decode_ms,
        }
        rows.append({**row, "total": sum(row.values())})
        again.append(second.prefill_ms + second.decode_ms)
    return {
        "machine": machine(),
        "bundle": {"name": reader.bundle.manifest.name, "sha256": reader.bundle.sha256},
        "vision": f"{reader.vision_artefact.precision}, {reader.tower.backend}",
        "language": f"{reader.language_artefact.precision}, llama.cpp",
        "film": film,
        "question": question,
        "repeats": repeats,
        "load_ms": round(reader.load_ms, 2),
        "image_tokens": study.layout.image_tokens,
        "parts_ms": {part: _summary([row[part] for row in rows]) for part in PARTS},
        "again_ms": _summary(again),
    }


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }
