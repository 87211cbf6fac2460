"""The few CUDA calls an engine needs, through cuda-bindings; torch is not needed for them.

Everything that calls CUDA stays in this file. It has never run on a GPU (docs/gpu.md).
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError

Bytes = npt.NDArray[np.uint8]


class Cuda:
    """CUDA's runtime as Python values; a call that fails is a BackendError with CUDA's name for it."""

    def __init__(self, api: Any = None) -> None:
        self.api: Any = api or _bindings()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its one value, or None. Raises BackendError."""
        status, *values = getattr(self.api, name)(*arguments)
        if int(status) != 0:
            shown = getattr(status, "name", status)
            raise BackendError(f"CUDA: {name} failed: {shown}; see `radvlm-edge doctor`")
        return values[0] if values else None

    def device(self) -> tuple[str, str]:
        """Name and compute capability of the first GPU this process sees."""
        if self.call("cudaGetDeviceCount") == 0:
            raise BackendError("CUDA sees no GPU; see `radvlm-edge doctor`")
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name
        text = name.decode() if isinstance(name, bytes) else str(name)
        return text.strip("\0 "), f"{properties.major}.{properties.minor}"

    def driver(self) -> str:
        """CUDA version the driver supports, e.g. `12060`."""
        return str(self.call("cudaDriverGetVersion"))


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(
            f"cuda-bindings cannot be imported ({error}); run `pip install 'cuda-bindings==12.*'` "
            "(JetPack 6) or `13.*`, as this machine's driver needs"
        ) from None


class Stream:
    """A CUDA stream."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.handle: Any = cuda.call("cudaStreamCreate")

    def wait(self) -> None:
        self.cuda.call("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        if self.handle is not None:
            self.cuda.call("cudaStreamDestroy", self.handle)
            self.handle = None


class Buffer:
    """Memory on the GPU, and pinned memory on the host of the same size, from and to which it is copied."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.cuda, self.size = cuda, size
        self.device: Any = cuda.call("cudaMalloc", size)
        self._host: Any = None
        try:
            self._host = cuda.call("cudaMallocHost", size)
        except BackendError:
            self.close()
            raise
        self.host: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(self._host)))

    def upload(self, size: int, stream: Stream) -> None:
        """Copy the first `size` bytes to the GPU, behind what the stream holds."""
        kind = self.cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.cuda.call("cudaMemcpyAsync", self.device, self._host, size, kind, stream.handle)

    def download(self, size: int, stream: Stream) -> None:
        """Copy the first `size` bytes to the host."""
        kind = self.cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.cuda.call("cudaMemcpyAsync", self._host, self.device, size, kind, stream.handle)

    def close(self) -> None:
        """Free both; views of the host's memory are invalid from then on."""
        if self._host is not None:
            self.cuda.call("cudaFreeHost", self._host)
            self._host = None
        if self.device is not None:
            self.cuda.call("cudaFree", self.device)
            self.device = None


class Recording:
    """A CUDA graph of what `run` puts into a stream."""

    def __init__(self, cuda: Cuda, stream: Stream, run: Any) -> None:
        self.cuda = cuda
        mode = cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            run()
        finally:
            graph = cuda.call("cudaStreamEndCapture", stream.handle)
        try:
            self._runnable: Any = cuda.call("cudaGraphInstantiate", graph, 0)
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        self.cuda.call("cudaGraphLaunch", self._runnable, stream.handle)

    def close(self) -> None:
        if self._runnable is not None:
            self.cuda.call("cudaGraphExecDestroy", self._runnable)
            self._runnable = None
