"""What this machine can do at best, measured: bytes a second from memory, operations a second in products."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.gemm_graph import matmul_graph
from radvlm_edge.runtime.vision import available_cpus
from radvlm_edge.runtime.vision_onnx import open_session

READ_BYTES = 512 << 20
"""Larger than any CPU's cache."""
ROWS, SIDE = 512, 2048
"""A product `[512, 2048]` by `[2048, 2048]`: a prefill batch against 16 MB of float32 weights."""
REPEATS = 7


@dataclass(frozen=True)
class Ceilings:
    """Best of several tries each, with as many threads as the engines get."""

    read_bytes_per_s: float
    """Sums over memory."""
    copy_bytes_per_s: float
    """Bytes read and bytes written of a copy."""
    fp32_operations_per_s: float
    int8_operations_per_s: float
    """uint8 by int8 into int32, ONNX Runtime."""
    threads: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(
    threads: int | None = None, *, read_bytes: int = READ_BYTES, side: int = SIDE
) -> Ceilings:
    """Measure them now."""
    threads = threads or available_cpus()
    read, copied = _bandwidth(threads, read_bytes)
    rng = np.random.default_rng(0)
    fp32 = rng.standard_normal((side, side), dtype=np.float32)
    int8 = rng.integers(-127, 128, (side, side), dtype=np.int8)
    return Ceilings(read, copied, _products(threads, fp32), _products(threads, int8), threads)


def _best_s(work: Callable[[], object]) -> float:
    """Shortest of REPEATS runs, behind one that is not counted."""
    work()
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def _bandwidth(threads: int, size: int) -> tuple[float, float]:
    """Bytes a second of summing and of copying; numpy lets go of the interpreter's lock in both."""
    source = np.ones(size // 8, np.int64)
    target = np.empty_like(source)
    edges = np.linspace(0, len(source), threads + 1).astype(int)
    parts = [slice(low, high) for low, high in pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        read_s = _best_s(lambda: list(pool.map(lambda part: source[part].sum(), parts)))
        copy_s = _best_s(lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts)))
    return source.nbytes / read_s, 2 * source.nbytes / copy_s


def _products(threads: int, weights: np.ndarray[Any, Any]) -> float:
    session = open_session(matmul_graph(ROWS, weights), threads)
    kind = np.uint8 if weights.dtype == np.int8 else np.float32
    feed = {"a": np.random.default_rng(1).integers(0, 255, (ROWS, len(weights))).astype(kind)}
    seconds = _best_s(lambda: session.run(["out"], feed))
    return 2.0 * ROWS * weights.size / seconds
