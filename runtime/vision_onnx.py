"""The vision tower in ONNX Runtime on the CPU (on a GPU: vision_cuda.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.vision import Plan, available_cpus, in_batches


class OnnxTower:
    """A vision graph in ONNX Runtime."""

    def __init__(self, path: Path, plan: Plan, *, arena: bool = False) -> None:
        """`arena` keeps the largest run's working memory: a few per cent faster, hundreds of MB more."""
        self.plan = plan
        try:
            self._session: Any = open_session(str(path), plan.threads, mapped=plan.mapped, arena=arena)
        except Exception as error:
            first = str(error).splitlines()[0]
            raise BackendError(f"{path}: ONNX Runtime cannot load this graph: {first}") from error
        self.backend = f"onnxruntime {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return in_batches(self._run, crops, self.plan.crops_per_batch)

    def _run(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        tokens: npt.NDArray[np.float32] = self._session.run(["tokens"], {"crops": crops})[0]
        return tokens


def open_tower(path: Path, plan: Plan) -> OnnxTower:
    return OnnxTower(path, plan)


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

    onnxruntime.disable_telemetry_events()  # where somebody had loaded it before this package

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
