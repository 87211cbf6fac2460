"""The vision tower as a TensorRT engine, built before by `radvlm-edge build` and checked at its first use.

It has never run on a GPU: tests run it over stand-ins for CUDA and the library's runtime (docs/gpu.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.cuda import Buffer, Cuda, Recording, Stream
from radvlm_edge.runtime.tensorrt_engines import checked, target_of
from radvlm_edge.runtime.tensorrt_library import INPUT, OUTPUT, make_logger
from radvlm_edge.runtime.vision import Plan, in_batches


class TensorRtTower:
    """An engine in memory, its buffers, and a stream.

    `record` captures the second run of the same number of crops in a row as a CUDA graph, which spares the
    CPU the launches from then on; another number ends it (a context's graph is of one shape).
    """

    def __init__(
        self, trt: Any, cuda: Cuda, engine: bytes, plan: Plan, backend: str, *, record: bool = False
    ) -> None:
        self.backend, self.plan = backend, plan
        self._cuda, self._record = cuda, record
        self._log = make_logger(trt)
        self._library = trt.Runtime(self._log)
        self._engine = self._library.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendError(f"{backend}: this engine does not load here: {self._log.last()}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"{backend}: no memory for this engine's working set: {self._log.last()}")
        self.most = int(self._engine.get_tensor_profile_shape(INPUT, 0)[2][0])
        self._shapes = {name: tuple(self._engine.get_tensor_shape(name))[1:] for name in (INPUT, OUTPUT)}
        self._stream = Stream(cuda)
        self._buffers: dict[str, Buffer] = {}
        self._room = 0
        self._recording: Recording | None = None
        self._count = 0

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return in_batches(self._run, crops, self.most)

    def _run(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        count = len(crops)
        self._make_room(count)
        given, made = self._buffers[INPUT], self._buffers[OUTPUT]
        given.host[: crops.nbytes] = np.ascontiguousarray(crops).reshape(-1)
        given.upload(crops.nbytes, self._stream)
        self._execute(count)
        size = 4 * count * int(np.prod(self._shapes[OUTPUT]))
        made.download(size, self._stream)
        self._stream.wait()
        tokens = made.host[:size].view(np.float32).reshape(count, *self._shapes[OUTPUT])
        return tokens.copy()  # the next run writes to the same place

    def _make_room(self, count: int) -> None:
        """Buffers for `count` crops; a recording holds addresses, so new buffers end it."""
        if count <= self._room:
            return
        self._free()
        sizes = {INPUT: 1, OUTPUT: 4}
        for name, item in sizes.items():
            size = item * count * int(np.prod(self._shapes[name]))
            self._buffers[name] = Buffer(self._cuda, size)
            self._context.set_tensor_address(name, int(self._buffers[name].device))
        self._room = count

    def _execute(self, count: int) -> None:
        if count != self._count:
            self._forget_recording()
            if not self._context.set_input_shape(INPUT, (count, *self._shapes[INPUT])):
                raise BackendError(f"{self.backend}: refuses a run of {count} crops: {self._log.last()}")
            self._enqueue()
            self._count = count
            return
        if not self._record:
            self._enqueue()
            return
        if self._recording is None:
            self._recording = Recording(self._cuda, self._stream, self._enqueue)
        self._recording.launch(self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise BackendError(f"{self.backend}: the engine does not run: {self._log.last()}")

    def _forget_recording(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self._recording, self._count = None, 0

    def _free(self) -> None:
        self._forget_recording()
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers, self._room = {}, 0

    def close(self) -> None:
        """Free buffers and stream; the tower cannot encode any more."""
        self._free()
        self._stream.close()


def open_with(backend: str, path: Path, plan: Plan, *, record: bool = False) -> TensorRtTower:
    """Load the engine built for this artefact on this machine; compare it with golden.npz if nobody did yet.

    Raises BackendError for a missing library, GPU or engine, and for an engine that computes wrongly.
    """
    target = target_of(backend, path, plan.sha256)
    return checked(
        target,
        lambda engine, name: TensorRtTower(target.trt, target.cuda, engine, plan, name, record=record),
    )


def open_tower(path: Path, plan: Plan) -> TensorRtTower:
    """With the library TensorRT."""
    return open_with("tensorrt", path, plan)
