"""Stand-ins for CUDA and for TensorRT's runtime, where no GPU is: thin, and as literal as they can be.

Device memory is host memory, a copy is a memmove, a stream runs at once, an "engine" is an ONNX graph that
ONNX Runtime executes between the addresses it was given. They prove our bookkeeping (shapes, addresses,
sizes, order, what is freed), not TensorRT. A test compares every name used here with the real packages.
"""

# ruff: noqa: N802, N815 - the names are the real packages' own
from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class FakeCudaApi:
    """cuda.bindings.runtime: every call returns (status, value...)."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, gpus: int = 1, fail: str = "") -> None:
        self.gpus, self.fail = gpus, fail
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []
        self.captured: list[Any] | None = None

    def _allocate(self, name: str, size: int) -> tuple[Any, int]:
        if name == self.fail:
            return _Status(2, "cudaErrorMemoryAllocation"), 0
        self.calls.append(name)
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return _Status(0), ctypes.addressof(block)

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return (_Status(0), self.gpus) if self.gpus else (_Status(35, "cudaErrorInsufficientDriver"), 0)

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, Any]:
        return _Status(0), SimpleNamespace(name=b"Stand-in\0", major=8, minor=7)

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return _Status(0), 12060

    def cudaStreamCreate(self) -> tuple[Any, int]:
        self.calls.append("cudaStreamCreate")
        return _Status(0), 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        return (_Status(0),)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        self.calls.append("cudaStreamDestroy")
        return (_Status(0),)

    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        return self._allocate("cudaMalloc", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, int]:
        return self._allocate("cudaMallocHost", size)

    def cudaFree(self, pointer: int) -> tuple[Any]:
        del self.memory[pointer]
        return (_Status(0),)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any]:
        assert len(self.memory[target]) >= size and len(self.memory[source]) >= size
        ctypes.memmove(target, source, size)
        return (_Status(0),)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any]:
        self.captured = []
        return (_Status(0),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        graph, self.captured = self.captured, None
        return _Status(0), graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]:
        self.calls.append("cudaGraphInstantiate")
        return _Status(0), list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]:
        return (_Status(0),)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any]:
        self.calls.append("cudaGraphLaunch")
        for work in graph:
            work()
        return (_Status(0),)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any]:
        self.calls.append("cudaGraphExecDestroy")
        return (_Status(0),)


class _Status(int):
    """A cudaError_t: a number with a name."""

    def __new__(cls, value: int, name: str = "cudaSuccess") -> _Status:
        status = super().__new__(cls, value)
        status.name = name  # type: ignore[attr-defined]
        return status


class FakeContext:
    """IExecutionContext."""

    def __init__(self, api: FakeCudaApi, session: Any, profile: tuple[int, int, int]) -> None:
        self._api, self._session, self._profile = api, session, profile
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return self._profile[0] <= shape[0] <= self._profile[2]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 77 and set(self._addresses) == {"crops", "tokens"}
        shape = self._shape

        def work() -> None:
            size = int(np.prod(shape))
            raw = (ctypes.c_uint8 * size).from_address(self._addresses["crops"])
            crops = np.ctypeslib.as_array(raw).reshape(shape)
            (tokens,) = self._session.run(["tokens"], {"crops": crops})
            ctypes.memmove(self._addresses["tokens"], tokens.ctypes.data, tokens.nbytes)

        work() if self._api.captured is None else self._api.captured.append(work)
        return True


class FakeEngine:
    """ICudaEngine."""

    def __init__(self, api: FakeCudaApi, graph: bytes, profile: tuple[int, int, int]) -> None:
        self._api, self._profile = api, profile
        self._session: Any = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self._api, self._session, self._profile)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(count, *self.get_tensor_shape(name)[1:]) for count in self._profile]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (found,) = (v for v in (*self._session.get_inputs(), *self._session.get_outputs()) if v.name == name)
        return tuple(-1 if isinstance(dim, str) else dim for dim in found.shape)


class FakeLibrary:
    """The module `tensorrt`: what vision_tensorrt.py uses of it; building is tested with TensorRT-RTX."""

    __name__ = "tensorrt"
    __version__ = "10.3.0"

    class ILogger:
        class Severity:
            ERROR = 1

    def __init__(self, api: FakeCudaApi, profile: tuple[int, int, int]) -> None:
        self._api, self._profile = api, profile

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialise)

    def _deserialise(self, engine: bytes) -> FakeEngine | None:
        return None if engine == b"damaged" else FakeEngine(self._api, bytes(engine), self._profile)


def graph_bytes(path: Path) -> bytes:
    """A graph as the stand-in's engine."""
    return path.read_bytes()
