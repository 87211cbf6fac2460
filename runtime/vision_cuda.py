"""The vision tower in ONNX Runtime on an NVIDIA GPU, and nowhere else.

ONNX Runtime falls back to the CPU without a word where its CUDA provider does not load; here that is an
error. It has never run on a GPU (docs/gpu.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.vision import Plan, in_batches
from radvlm_edge.runtime.vision_onnx import open_session

PROVIDER = "CUDAExecutionProvider"
CROPS_PER_BATCH = 10
"""A GPU wants whole films; ten crops are one whose long side was capped at 1152 pixels."""


class CudaTower:
    """A vision graph in ONNX Runtime's CUDA provider."""

    backend = "onnxruntime CUDA"

    def __init__(self, path: Path, plan: Plan) -> None:
        import onnxruntime

        self.plan = plan
        if PROVIDER not in onnxruntime.get_available_providers():
            raise BackendError(
                "the installed onnxruntime has no CUDA provider; run `pip uninstall onnxruntime && "
                "pip install 'radvlm-edge[cuda]'`, or choose another --vision-backend"
            )
        try:
            self._session: Any = open_session(str(path), plan.threads, cuda=True)
        except Exception as error:
            first = str(error).splitlines()[0]
            raise BackendError(f"{path}: ONNX Runtime cannot load this graph: {first}") from error
        if self._session.get_providers()[0] != PROVIDER:
            raise BackendError(
                "ONNX Runtime's CUDA provider does not start here (driver, CUDA or cuDNN missing); "
                "see `radvlm-edge doctor`"
            )

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return in_batches(self._run, crops, max(self.plan.crops_per_batch, CROPS_PER_BATCH))

    def _run(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        tokens: npt.NDArray[np.float32] = self._session.run(["tokens"], {"crops": crops})[0]
        return tokens


open_tower = CudaTower
