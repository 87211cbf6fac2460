"""How much of what the machine can do each phase reaches: counted work, over time and ceiling."""

from __future__ import annotations

from typing import Any

from radvlm_edge.benchmarks.bench_cases import Run
from radvlm_edge.benchmarks.bench_ceilings import Ceilings
from radvlm_edge.bundle import Artefact
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.llama_library import llama_cpp
from radvlm_edge.runtime.roofline import Network, crop_operations, prefill_operations

FLOAT_TYPES = ("F16", "F32", "BF16")


def kv_bytes_read(prefix: int, steps: int, geometry: Geometry) -> int:
    """K and V read by `steps` decode steps behind `prefix` tokens: every step reads all before it."""
    return geometry.kv_bytes_per_token * sum(prefix + step for step in range(steps))


def phases(
    cold: Run, report: Run, geometry: Geometry, network: Network, vision: Artefact, language: Artefact
) -> dict[str, dict[str, Any]]:
    """Work of each phase, counted: operations of tower and prefill, bytes of decode.

    Decode is the report's: its first step's logits came with the prefill, every other reads all weights
    but the embedding table's other rows, and K and V of all tokens before it.
    """
    prefilled = cold.counts["prefilled"]
    decoded = report.counts["steps"] - 1
    weights = language.bytes * (1 - network.embedding_weights / network.language_weights)
    kv = kv_bytes_read(cold.counts["image_tokens"] + report.counts["prefilled"], decoded, geometry)
    return {
        "vision": {
            "operations": cold.counts["crops"] * crop_operations(geometry, network),
            "ceiling": "int8" if vision.precision.startswith("int8") else "fp32",
        },
        "prefill": {
            "operations": prefill_operations(prefilled, geometry, network),
            "ceiling": "fp32" if language.precision in FLOAT_TYPES else "int8",
        },
        "decode": {
            "bytes": round(weights * decoded) + kv,
            "kv_bytes": kv,
            "steps": decoded,
            "ceiling": "read",
        },
    }


def fractions(
    work: dict[str, dict[str, Any]], seconds: dict[str, float], ceilings: Ceilings, *, on_cpu: dict[str, bool]
) -> dict[str, dict[str, Any]]:
    """Rate of each phase and the fraction of its ceiling; no fraction where a GPU did the work.

    The ceiling of reading is the larger of the two bandwidths measured.
    """
    best = {
        "fp32": ceilings.fp32_operations_per_s,
        "int8": ceilings.int8_operations_per_s,
        "read": max(ceilings.read_bytes_per_s, ceilings.copy_bytes_per_s),
    }
    found = {}
    for phase, one in work.items():
        amount = one.get("operations", one.get("bytes", 0))
        rate = amount / seconds[phase] if seconds[phase] > 0 else 0.0
        cpu = on_cpu["vision" if phase == "vision" else "language"]
        found[phase] = {
            **one,
            "per_s": rate,
            "ceiling_per_s": best[one["ceiling"]] if cpu else None,
            "fraction": rate / best[one["ceiling"]] if cpu else None,
        }
    return found


def on_cpu(vision_backend: str) -> dict[str, bool]:
    """Which engines run on the CPU, whose ceilings are the measured ones."""
    return {
        "vision": "CPU" in vision_backend.upper(),
        "language": not llama_cpp.llama_supports_gpu_offload(),
    }
