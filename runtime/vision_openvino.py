"""The vision tower in OpenVINO, on the CPU: it reads the same ONNX files, Q/DQ ones too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.openvino_core import compile_graph, complaint
from radvlm_edge.runtime.vision import Plan, in_batches


class OpenVinoTower:
    """A vision graph compiled by OpenVINO for the CPU."""

    def __init__(self, path: Path, plan: Plan) -> None:
        if plan.mapped:
            raise BackendError(
                f"{path}: OpenVINO packs weights into memory; the backend onnx can keep them on disk"
            )
        self.plan = plan
        try:
            compiled, in_float = compile_graph(str(path), plan.threads)
            self._request: Any = compiled.create_infer_request()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"{path}: OpenVINO cannot load this graph: {complaint(error)}") from error
        self.backend = "openvino CPU, INT8 in float" if in_float else "openvino CPU"

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return in_batches(self._run, crops, self.plan.crops_per_batch)

    def _run(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        tokens = self._request.infer({"crops": np.ascontiguousarray(crops)})["tokens"]
        return np.array(tokens, np.float32)  # a copy: the next run writes to the same place


open_tower = OpenVinoTower
