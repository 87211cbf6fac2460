"""The prefill graph in OpenVINO (extra `openvino`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.kv_state import Rows
from radvlm_edge.runtime.openvino_core import complaint, cpu_settings, open_core, sums_exactly
from radvlm_edge.runtime.vision import available_cpus

GROUP = 128
"""Inputs of an INT8 layer that share a scale found as they come: the fastest group that keeps accuracy."""


class OpenvinoPrefill:
    """See `prefill.PrefillEngine`. Layers of an INT8 graph take their inputs' scales from the inputs, in
    groups of 128; the calibrated scales in the graph are for engines that cannot.
    """

    def __init__(self, path: Path, threads: int | None = None, *, group: int = GROUP) -> None:
        settings = cpu_settings(threads or available_cpus())
        try:
            core = open_core()
        except ImportError:
            raise BackendError(
                "prefill in OpenVINO needs the package openvino; run `pip install 'radvlm-edge[openvino]'` "
                "or choose another --prefill-backend"
            ) from None
        try:
            model = core.read_model(path)
            self.bypassed = bypass_input_scales(model) if group else 0
            if self.bypassed and sums_exactly():  # elsewhere weights widen, and the layers run in float
                settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
            self._model: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BackendError(f"{path}: OpenVINO cannot load this graph: {complaint(error)}") from error
        self.backend = "openvino CPU"
        names = [one.any_name for one in self._model.inputs]
        self._past = [name for name in names if name.startswith("past_")]
        self._wanted = [name.removeprefix("past_") for name in self._past]
        self.kv_type: np.dtype[Any] = np.dtype(self._model.input("past_k.0").element_type.to_dtype())
        self._request = self._model.create_infer_request()

    def run(self, embeddings: npt.NDArray[np.float32], past: Sequence[Rows]) -> list[Rows]:
        feed = {
            "embeddings": embeddings[None],
            "start": np.array([len(past[0])], np.int64),
            **dict(zip(self._past, past, strict=True)),
        }
        try:
            found = self._request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot prefill: {complaint(error)}") from error
        return [found[name] for name in self._wanted]


def bypass_input_scales(model: Any) -> int:
    """Take the rounding of layers' inputs out of an INT8 graph; returns how many there were.

    It arrives from ONNX as FakeQuantize, Convert, Convert, Subtract, Multiply. Weights stay as they are.
    """
    count = 0
    for rounding in model.get_ops():
        if rounding.get_type_name() != "FakeQuantize":
            continue
        end = rounding.output(0)
        while True:
            followers = end.get_target_inputs()
            (follower,) = (one.get_node() for one in followers) if len(followers) == 1 else (None,)
            if follower is None or follower.get_type_name() not in ("Convert", "Subtract", "Multiply"):
                break
            end = follower.output(0)
            if follower.get_type_name() == "Multiply":
                break
        for reader in end.get_target_inputs():
            reader.replace_source_output(rounding.input_value(0))
        count += 1
    return count
