"""The prefill graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.kv_state import Rows
from radvlm_edge.runtime.vision_onnx import open_session


class OnnxPrefill:
    """See `prefill.PrefillEngine`."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            self._session: Any = open_session(str(path), threads, cuda=True)
        except Exception as error:
            first = str(error).splitlines()[0]
            raise BackendError(f"{path}: ONNX Runtime cannot load this graph: {first}") from error
        self.backend = f"onnxruntime {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"
        types = {one.name: one.type for one in self._session.get_inputs()}
        self.kv_type: np.dtype[Any] = np.dtype(
            np.float32 if types["past_k.0"] == "tensor(float)" else np.float16
        )
        self._past = [name for name in types if name.startswith("past_")]
        self._wanted = [name.removeprefix("past_") for name in self._past]

    def run(self, embeddings: npt.NDArray[np.float32], past: Sequence[Rows]) -> list[Rows]:
        feed = {
            "embeddings": embeddings[None],
            "start": np.array([len(past[0])], np.int64),
            **dict(zip(self._past, past, strict=True)),
        }
        try:
            found: list[Rows] = self._session.run(self._wanted, feed)
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot prefill: {str(error).splitlines()[0]}") from error
        return found
