"""Crops → projected tokens. One protocol; ONNX Runtime behind it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError

CROPS_PER_BATCH = 4
"""Bounds the tower's working memory; CPUs gain nothing from larger batches."""


class VisionTower(Protocol):
    """What the reader needs of an engine that runs a vision artefact."""

    backend: str
    """Engine and device, e.g. `onnxruntime CPU`."""

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn crops `[n, 3, S, S]` uint8 into projected tokens `[n, tokens, d]` float32."""
        ...


class OnnxTower:
    """A vision graph in ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None = None, *, mapped: bool = False) -> None:
        try:
            self._session: Any = open_session(str(path), threads, mapped=mapped, cuda=True)
        except Exception as error:
            first = str(error).splitlines()[0]
            raise BackendError(f"{path}: ONNX Runtime cannot load this graph: {first}") from error
        self.backend = f"onnxruntime {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        parts = [
            self._session.run(["tokens"], {"crops": crops[start : start + CROPS_PER_BATCH]})[0]
            for start in range(0, len(crops), CROPS_PER_BATCH)
        ]
        tokens: npt.NDArray[np.float32] = np.concatenate(parts)
        return tokens


def open_session(
    graph: str | bytes,
    threads: int | None = None,
    *,
    mapped: bool = False,
    cuda: bool = False,
    arena: bool = True,
) -> Any:
    """An ONNX Runtime session of a file or a graph in memory; `cuda`: on a GPU if there is one.

    `arena` keeps a session's working memory for its next run; many sessions together need it off.
    """
    import onnxruntime  # here, so that importing the runtime stays fast

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    # Spinning workers starve llama.cpp's threads in the same process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # CPUs without VNNI sum uint8 by int8 products in 16 bits, which saturates; there, weights become uint8.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena and not mapped
    if mapped:  # no packed or folded copies of the weights: slower, in little memory
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(graph, options, providers=providers)


def open_tower(path: Path, threads: int | None = None, *, mapped: bool = False) -> VisionTower:
    """Load a vision artefact; `mapped` keeps its weights on disk where they can be, at the cost of speed.

    Raises BackendError naming the engine and its first line of complaint.
    """
    return OnnxTower(path, threads, mapped=mapped)


def available_cpus() -> int:
    """CPUs this process may use (not those the machine has)."""
    return len(os.sched_getaffinity(0))
