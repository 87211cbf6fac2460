"""`--vision-backend auto` on a machine with a GPU: TensorRT, else ONNX Runtime on CUDA, else the CPU.

An engine asked for by name is used or is an error. Only `auto` falls back, and says in one line what runs and
why nothing before it did. Without a GPU there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from radvlm_edge.bundle import Artefact, Bundle
from radvlm_edge.errors import BackendError, BundleError
from radvlm_edge.runtime import gpus
from radvlm_edge.runtime.vision import (
    CROPS_PER_BATCH,
    Plan,
    VisionTower,
    available_cpus,
    installed_engine,
    open_tower,
)
from radvlm_edge.runtime.vision_choice import AUTO, Chosen, choose_engine
from radvlm_edge.runtime.vision_late import KNOWN, LateTower

CPU_ONLY = "int8"
"""An artefact no GPU engine has kernels for; theirs is `int8-trt`."""
GPU_ORDER = ("tensorrt", "tensorrt-rtx", "cuda")
"""Engines `auto` tries where there is a GPU, the fastest first."""


class Opened(NamedTuple):
    """What runs the tower, and why."""

    tower: VisionTower
    chosen: Chosen
    line: str | None
    """For the user; `None` where there is no GPU to speak of, or the engine was asked for."""


class Best(NamedTuple):
    """The first engine that opened."""

    tower: VisionTower
    name: str
    line: str | None


def open_for(
    bundle: Bundle, artefact: Artefact, threads: int | None, backend: str | None, *, late: bool = False
) -> Opened:
    """Open a vision artefact in the engine named, or (`auto` or `None`) in the best that works here.

    `late`: at the first crops, where the engine allows it (vision_late.py).
    """
    chosen = choose_engine(artefact.sha256, backend, threads)

    def open_engine(name: str) -> VisionTower:
        asked, crops = threads, CROPS_PER_BATCH
        if name == chosen.backend:
            asked, crops = chosen.threads, chosen.crops_per_batch
        opening = partial(
            open_tower,
            bundle.path(artefact),
            asked,
            backend=name,
            crops_per_batch=crops,
            sha256=artefact.sha256,
        )
        if late and name in KNOWN and installed_engine(name):
            plan = Plan(asked or available_cpus(), crops, False, artefact.sha256)
            return LateTower(KNOWN[name], plan, opening)
        return opening()

    if backend not in (None, AUTO):
        return Opened(open_engine(chosen.backend), chosen, None)
    gpu = next(iter(gpus.seen()), None)
    names = () if artefact.precision == CPU_ONLY else GPU_ORDER
    tower, name, line = open_best(names, open_engine, gpu=gpu.name if gpu else None, cpu=chosen.backend)
    if name != chosen.backend:
        chosen = replace(chosen, backend=name, why=f"a GPU is seen; {line}")
    return Opened(tower, chosen, line)


def open_best(
    names: Sequence[str],
    open_engine: Callable[[str], VisionTower],
    *,
    gpu: str | None,
    cpu: str,
) -> Best:
    """Open the first of `names` that works, else `cpu`. `gpu` is the GPU's name; without one none is tried.

    Raises BackendError if the CPU's engine does not open either.
    """
    if gpu is None:
        return Best(open_engine(cpu), cpu, None)
    passed = [] if names else ["every GPU engine: this artefact is for CPUs"]
    for name in names:
        try:
            tower = open_engine(name)
        except (BackendError, BundleError) as error:
            passed.append(f"{name}: {error}")
            continue
        return Best(tower, name, _line(tower.backend, gpu, passed))
    tower = open_engine(cpu)
    return Best(tower, cpu, _line(tower.backend, gpu, passed))


def _line(backend: str, gpu: str, passed: Sequence[str]) -> str:
    why = f"passed over: {' | '.join(passed)}" if passed else f"the first choice on the {gpu}"
    return f"vision runs on {backend}; {why}"
