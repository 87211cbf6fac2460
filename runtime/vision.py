"""Crops → projected tokens: one protocol, one file an engine behind it.

An engine is a line in `ENGINES` and a file with `open_tower(path, plan)`, which is imported when it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError

CROPS_PER_BATCH = 4
"""Used where nothing was measured; bounds the tower's working memory."""


@dataclass(frozen=True)
class Plan:
    """How an engine is to run one artefact."""

    threads: int
    """CPU threads, at least 1."""
    crops_per_batch: int = CROPS_PER_BATCH
    """Crops of one run of the graph, at most."""
    mapped: bool = False
    """Keep weights on disk where they can be, at the cost of speed."""
    sha256: str | None = None
    """The artefact's digest, where the caller knows it: the key of what an engine builds from it."""


class VisionTower(Protocol):
    """What the reader needs of an engine that runs a vision artefact."""

    backend: str
    """Engine and device, e.g. `onnxruntime CPU`."""
    plan: Plan
    """How it runs."""

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn crops `[n, 3, S, S]` uint8 into projected tokens `[n, tokens, d]` float32."""
        ...


@dataclass(frozen=True)
class Engine:
    """Where an engine's code is, and what it needs."""

    module: str
    """File of this folder, with `open_tower(path, plan) -> VisionTower`."""
    package: str
    """What it imports."""
    distributions: tuple[str, ...]
    """Installed under one of these names; their versions say which build of it computed something."""
    extra: str | None
    """Extra of radvlm-edge that installs it; `None`: the base install does."""
    device: str = "cpu"
    """`cpu` or `gpu`. `doctor` races those of the CPU; of the GPU's, `auto` takes the first that works."""

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


ENGINES = {
    "onnx": Engine("vision_onnx", "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), None),
    "openvino": Engine("vision_openvino", "openvino", ("openvino",), "openvino"),
    "cuda": Engine("vision_cuda", "onnxruntime", ("onnxruntime-gpu",), "cuda", "gpu"),
    "tensorrt": Engine("vision_tensorrt", "tensorrt", ("tensorrt",), "tensorrt", "gpu"),
    "tensorrt-rtx": Engine(
        "vision_tensorrt_rtx", "tensorrt_rtx", ("tensorrt-rtx-cu13",), "tensorrt-rtx", "gpu"
    ),
}
"""Name on the command line → engine."""

DEFAULT_ENGINE = "onnx"


def open_tower(
    path: Path,
    threads: int | None = None,
    *,
    backend: str = DEFAULT_ENGINE,
    crops_per_batch: int = CROPS_PER_BATCH,
    mapped: bool = False,
    sha256: str | None = None,
) -> VisionTower:
    """Load a vision artefact; arguments as `Plan`'s, `threads=None`: as many as this process may use.

    Raises BackendError naming the engine and its first line of complaint, or the extra to install.
    """
    engine = installed_engine(backend)
    plan = Plan(threads or available_cpus(), crops_per_batch, mapped, sha256)
    open_engine: Callable[[Path, Plan], VisionTower] = importlib.import_module(
        f"radvlm_edge.runtime.{engine.module}"
    ).open_tower
    return open_engine(path, plan)


def installed_engine(backend: str) -> Engine:
    """An engine by name. Raises BackendError for one there is not, or that is not installed."""
    if backend not in ENGINES:
        raise BackendError(f"there is no vision backend {backend!r}; choose one of {', '.join(ENGINES)}")
    engine = ENGINES[backend]
    if not engine.installed:
        wanted = f"radvlm-edge[{engine.extra}]" if engine.extra else engine.distributions[0]
        raise BackendError(
            f"the vision backend {backend} needs {engine.package}, not installed here; run "
            f"`pip install '{wanted}'` or choose another --vision-backend"
        )
    return engine


def in_batches(
    run: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    crops: npt.NDArray[np.uint8],
    size: int,
) -> npt.NDArray[np.float32]:
    """`run` over at most `size` crops at a time; results in the crops' order."""
    parts = [run(crops[start : start + size]) for start in range(0, len(crops), size)]
    return np.concatenate(parts)


def available_cpus() -> int:
    """CPUs this process may use (not those the machine has)."""
    return len(os.sched_getaffinity(0))
