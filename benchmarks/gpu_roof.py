"""What a device can do at most, measured here: bytes copied and half-precision products a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.roofline import Network, _crop_operations, _prefill_operations


@dataclass(frozen=True)
class Roof:
    """Best of several runs, not a data sheet's peak."""

    bandwidth_gb_s: float
    """Read plus written, 10^9 bytes a second."""
    tflops: float
    """Of a square product: float16 on a GPU, float32 on a CPU."""


def measure_roof(device: str, *, side: int = 8192, repeats: int = 10) -> Roof:
    """Copy `side`² float32 numbers, multiply two matrices of that side; `device` as torch names it."""
    import torch

    dtype = torch.float32 if device == "cpu" else torch.float16
    source = torch.ones(side, side, device=device)
    target = torch.empty_like(source)
    a = torch.full((side, side), 1 / side, dtype=dtype, device=device)

    def best(work: Any) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times[1:] or times)

    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    multiplied = 2 * side**3 / best(lambda: a @ a)
    return Roof(copied / 1e9, multiplied / 1e12)


def ratios(
    report: dict[str, Any], roof: Roof, geometry: Geometry, network: Network, language_bytes: int
) -> dict[str, Any]:
    """Fractions of the roof reached, from median times.

    vision, prefill: operations over `tflops`; decode: bytes of weights and K/V read for a token over the
    bandwidth. Operations as in runtime/roofline.py.
    """
    found: dict[str, Any] = {"vision": {}, "prefill": {}, "decode": {}}
    for name, result in report["vision"]["engines"].items():
        for size, times in result["ms_per_crop"].items():
            rate = _crop_operations(geometry, network) / (times["median"] / 1e3)
            found["vision"].setdefault(name, {})[size] = rate / (roof.tflops * 1e12)
    for count, one in report["language"].get("lengths", {}).items():
        tokens = one["prefilled_tokens"]
        rate = one["prefill_tokens_per_s"]["median"] * _prefill_operations(tokens, geometry, network) / tokens
        found["prefill"][count] = rate / (roof.tflops * 1e12)
        kept = 1 - network.embedding_weights / network.language_weights
        read = language_bytes * kept + tokens * geometry.kv_bytes_per_token
        found["decode"][count] = one["decode_tokens_per_s"]["median"] * read / (roof.bandwidth_gb_s * 1e9)
    return found
