"""From a bundle's vision artefact to a checked engine on this machine: find, build, compare, keep, refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from radvlm_edge.bundle import Artefact, Bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime import gpus
from radvlm_edge.runtime.cuda import Cuda
from radvlm_edge.runtime.engine_cache import Entry, Key
from radvlm_edge.runtime.golden import LIMITS, compare, load_golden, refusal
from radvlm_edge.runtime.tensorrt_graph import check_graph
from radvlm_edge.runtime.tensorrt_library import FLAGS, INPUT, Profile, Report, build_engine, load_library

BEST_CROPS = 10
"""Of a film whose long side was capped at 1152 pixels: what engines are tuned for."""
SKIPPED = {"skipped": True}
"""In place of golden figures: the user chose not to compare."""


class Tower(Protocol):
    """What is asked of an opened engine."""

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]: ...
    def close(self) -> None: ...


T = TypeVar("T", bound=Tower)
Open = Callable[[bytes, str], T]
"""Engine and its name for people → tower."""


@dataclass(frozen=True)
class Target:
    """One artefact, one library, one GPU."""

    bundle: Bundle
    artefact: Artefact
    trt: Any
    cuda: Cuda
    entry: Entry

    @property
    def graph(self) -> Path:
        return self.bundle.path(self.artefact)

    @property
    def name(self) -> str:
        key = self.entry.key
        return f"{key.backend} {key.version} on {key.gpu}"


def profile_of(geometry: Geometry) -> Profile:
    """Least, best and most crops of a run: one, `BEST_CROPS`, and all a film of this geometry can give."""
    tiles = max((h // geometry.crop_px) * (w // geometry.crop_px) for h, w in geometry.pinpoints)
    return 1, min(BEST_CROPS, tiles + 1), tiles + 1


def artefact_of(bundle: Bundle, precision: str | None) -> Artefact:
    """A vision artefact TensorRT may be given. Raises BackendError for the CPU's INT8 graph."""
    artefact = bundle.artefact("vision", precision)
    if artefact.precision not in LIMITS:
        raise BackendError(
            f"{bundle.folder}: vision {artefact.precision} is a graph for CPUs; TensorRT takes "
            f"{', '.join(LIMITS)}: pass --vision with one this bundle has"
        )
    return artefact


def target_of(backend: str, path: Path, sha256: str | None = None, cuda: Cuda | None = None) -> Target:
    """The artefact at BUNDLE/vision/X.onnx for this machine.

    Raises BackendError where library or GPU are missing, BundleError where there is no such bundle.
    """
    bundle = Bundle.open(path.parents[1])
    precision = next((a.precision for a in bundle.manifest.artefacts if bundle.path(a) == path), path.stem)
    artefact = artefact_of(bundle, precision)
    trt = load_library(backend)
    cuda = cuda or Cuda()
    gpu, compute = cuda.device()
    key = Key(
        artefact=sha256 or artefact.sha256,
        backend=backend,
        version=str(trt.__version__),
        gpu=gpu,
        compute=compute,
        driver=gpus.driver_version() or f"CUDA {cuda.driver()}",
        profile=profile_of(bundle.manifest.geometry),
        flags=FLAGS,
    )
    return Target(bundle, artefact, trt, cuda, Entry(key))


def checked(target: Target, open_engine: Open[T]) -> T:
    """Open a kept engine; one nobody has compared with golden.npz yet is compared now.

    Raises BackendError for no engine, a damaged one, or (with the figures) one that computes wrongly, which
    is removed; BundleError for a bundle that has nothing to compare with.
    """
    engine = target.entry.read()
    facts = target.entry.facts() or {}
    if facts.get("golden") == SKIPPED:
        return open_engine(engine, f"{target.name}, not compared")
    golden = None if facts.get("golden") else load_golden(target.bundle.folder)
    tower = open_engine(engine, target.name)
    if golden is not None:
        _compare(target, tower, golden, str(facts["engine_sha256"]))
    return tower


def _compare(target: Target, tower: Tower, golden: Any, engine_sha256: str) -> None:
    sizes = sorted(set(target.entry.key.profile))
    figures = compare(golden, tower.encode, sizes)
    why = refusal(figures, target.artefact.precision)
    if why is not None:
        tower.close()
        target.entry.remove()
        raise BackendError(
            f"{target.name} computes {target.graph} wrongly: {why}; its engine was removed, "
            "use --vision-backend onnx"
        )
    target.entry.note(engine_sha256, figures.as_json())


def build(
    target: Target,
    *,
    workspace_mib: int | None = None,
    golden: bool = True,
    report: Report = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Check the graph, build its engine and keep it; what was written of it. Not compared yet with `golden`.

    Raises BackendError for a graph TensorRT does not take or cannot build, BundleError for a bundle with
    nothing to compare with, OutputError where the cache cannot be written.
    """
    if golden:
        load_golden(target.bundle.folder)  # before an hour of building
    check_graph(target.graph)
    entry = target.entry
    built = build_engine(
        target.trt,
        target.graph,
        entry.key.profile,
        workspace_mib=workspace_mib,
        timings=entry.read_timing(),
        report=report,
    )
    entry.write_timing(built.timings)
    entry.write(built.engine, None if golden else SKIPPED)
    return entry.facts() or {}


def try_build(
    backend: str,
    graph: Path,
    geometry: Geometry,
    *,
    workspace_mib: int | None = None,
    report: Report = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Check, parse and build a graph, and keep nothing: with TensorRT-RTX this needs no GPU.

    Returns `version`, `nodes`, `engine_bytes`. Raises BackendError as `build`.
    """
    outline = check_graph(graph)
    trt = load_library(backend)
    built = build_engine(trt, graph, profile_of(geometry), workspace_mib=workspace_mib, report=report)
    kind, dims = outline.inputs[INPUT]
    return {
        "version": str(trt.__version__),
        "nodes": len(outline.nodes),
        "input": [kind, *dims],
        "engine_bytes": built.engine.nbytes,
    }
