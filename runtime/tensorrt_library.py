"""The calls into TensorRT, the same for 10.3 to 11 and for TensorRT-RTX.

Precision comes from the graph alone: strongly typed networks (the only kind TensorRT 11 has) and explicit
Q/DQ, no precision flag, no calibrator. Building has been run with TensorRT-RTX 1.7 on a CPU; nothing here
has run on a GPU (docs/gpu.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvlm_edge.errors import BackendError

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend → the module it is imported as."""
INPUT, OUTPUT = "crops", "tokens"
FLAGS = ("strongly-typed", "no-tf32")
"""What every engine is built with: numbers as the graph says, float32 unrounded."""

Profile = tuple[int, int, int]
"""Least, best and most crops of one run."""
Report = Callable[[str, int, int], None]
"""Told phase, steps done, steps in all."""


def load_library(backend: str) -> Any:
    """The library's module. Raises BackendError with what to install, or the import's own complaint."""
    try:
        return importlib.import_module(LIBRARIES[backend])
    except ModuleNotFoundError as error:
        raise BackendError(
            f"{backend} is not installed here ({error}); {_install(backend)}, or choose another backend"
        ) from None
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendError(f"{backend} is installed but does not load: {first}") from error


def _install(backend: str) -> str:
    if backend == "tensorrt-rtx":
        return "run `pip install 'radvlm-edge[tensorrt-rtx]'`"
    return (
        "run `pip install 'radvlm-edge[tensorrt]'`; on a Jetson use the system's "
        "(docs/jetson.md: a venv with --system-site-packages)"
    )


def make_logger(trt: Any) -> Any:
    """A logger that keeps warnings and errors in `.lines` and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.lines.append(" ".join(message.split()))

        def last(self) -> str:
            return self.lines[-1] if self.lines else "it gave no reason"

    return Log()


@dataclass(frozen=True)
class Built:
    """What a build leaves."""

    engine: memoryview
    timings: bytes
    """The timing cache, to be given to the next build; empty where the library has none."""


def build_engine(
    trt: Any,
    graph: Path,
    profile: Profile,
    *,
    workspace_mib: int | None = None,
    timings: bytes = b"",
    report: Report = lambda phase, done, total: None,
) -> Built:
    """Parse a graph and build its engine. Raises BackendError with the library's own words."""
    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        said = parser.get_error(0).desc() if parser.num_errors else log.last()
        raise BackendError(f"{graph}: TensorRT {trt.__version__} cannot parse this graph: {said}")
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.add_optimization_profile(_profile(builder, network, profile))
    monitor = _monitor(trt, report)
    config.progress_monitor = monitor
    cached = has_timing_cache(trt)
    if cached:
        _set_timings(config, timings)
    engine = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise BackendError(f"{graph}: TensorRT {trt.__version__} built no engine: {log.last()}")
    return Built(memoryview(engine), bytes(config.get_timing_cache().serialize()) if cached else b"")


def has_timing_cache(trt: Any) -> bool:
    """TensorRT-RTX times nothing: its cache calls do nothing and are deprecated."""
    return str(trt.__name__) != LIBRARIES["tensorrt-rtx"]


def _creation_flags(trt: Any) -> int:
    """Strongly typed on 10, which asks for it; where a later version drops the flag, it is the only kind."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    shape = tuple(network.get_input(0).shape)[1:]
    made = builder.create_optimization_profile()
    made.set_shape(INPUT, *((count, *shape) for count in profile))
    return made


def _set_timings(config: Any, timings: bytes) -> None:
    """Timings of another version or a damaged file are not taken: the build then times everything anew."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from the library's threads; an exception there would be lost, so Ctrl-C is remembered."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                report(phase_name, step + 1, self.steps.get(phase_name, 0))
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
