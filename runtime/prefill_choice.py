"""Which engine prefills: what the caller names, or what was faster here when about a second was spent on it.

The measurement is kept in `$XDG_CACHE_HOME/radvlm-edge/prefill` (else `~/.cache`), one small file for these
artefacts, engines and threads, with what the engine's copy of the weights took in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.bundle import Artefact, Bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.kv_state import StateError
from radvlm_edge.runtime.llama import PREFIX, Llama, build_identity
from radvlm_edge.runtime.prefill import AGREEMENT, ENGINES, ROUNDED_AGREEMENT, SplitPrefill, open_split
from radvlm_edge.runtime.versions import version_of
from radvlm_edge.runtime.vision import available_cpus

Floats = npt.NDArray[np.float32]

LLAMA, AUTO = "llama", "auto"
BACKENDS = (LLAMA, *ENGINES, AUTO)
PACKAGES = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}
MEASURED_TOKENS, BUDGET_S = 64, 1.0
GAIN = 1.1
"""Times as fast as llama.cpp an engine must be to be worth a second copy of the weights."""


@dataclass(frozen=True)
class Prefilling:
    """Which prefill runs, and why."""

    backend: str
    """`llama.cpp`, or an engine and its device."""
    reason: str
    precision: str | None = None
    """Of the prefill artefact."""
    memory_bytes: int | None = None
    """What the engine's copy of the language model took when it was loaded, its file's size at least."""
    tokens_per_s: dict[str, float] = field(default_factory=dict)
    """As measured here for `auto`, by engine."""
    notes: tuple[str, ...] = ()
    """Why an engine that was meant to is not used."""

    def told(self) -> dict[str, Any]:
        """For provenance; what does not apply is left out."""
        return {key: value for key, value in asdict(self).items() if value not in (None, {}, ())}


def open_prefill(
    bundle: Bundle,
    llama: Llama,
    *,
    wanted: str,
    precision: str | None,
    language: str,
    threads: int | None,
) -> tuple[SplitPrefill | None, Prefilling]:
    """The engine that prefills images (`None`: llama.cpp), checked against this llama.cpp.

    `language` is the precision of the artefact llama.cpp holds, `precision` that of the prefill artefact.

    Raises BackendError for an engine asked for by name that is not installed or cannot load the graph, or a
    bundle without one; states or K and V that are not as expected leave it to llama.cpp, with a note.
    """
    if wanted not in BACKENDS:
        raise BackendError(f"--prefill-backend {wanted}: choose from {', '.join(BACKENDS)}")
    held = [artefact for artefact in bundle.manifest.artefacts if artefact.role == "prefill"]
    if wanted == LLAMA or (wanted == AUTO and not held and precision is None):
        reason = "asked for" if wanted == LLAMA else "the bundle holds no prefill graph"
        return None, Prefilling("llama.cpp", reason)
    if not held:
        raise BackendError(
            f"{bundle.folder}: holds no prefill graph; export with --prefill int8, "
            "or choose --prefill-backend llama"
        )
    artefact = bundle.artefact("prefill", precision)
    exact = artefact.precision != "int8" and language == "F16"
    one = _Opening(bundle, artefact, llama, threads, AGREEMENT if exact else ROUNDED_AGREEMENT)
    if wanted == AUTO:
        return one.auto()
    try:
        split, memory = one.open(wanted)
    except _UnexpectedError as error:
        return None, Prefilling("llama.cpp", "another engine is not as expected", notes=(str(error),))
    return split, Prefilling(split.engine.backend, "asked for", one.artefact.precision, memory)


class _UnexpectedError(BackendError):
    """An engine whose K and V cannot be handed over."""


@dataclass
class _Opening:
    """One bundle's prefill artefact and the llama.cpp it is for."""

    bundle: Bundle
    artefact: Artefact
    llama: Llama
    threads: int | None
    least: float
    """Agreement with llama.cpp an engine must reach."""

    def open(self, name: str) -> tuple[SplitPrefill, int]:
        """An engine that agrees with llama.cpp, and the bytes of memory it takes.

        The size of its file at least: memory freed before is used again unseen, mapped weights not counted.
        """
        geometry = self.bundle.manifest.geometry
        before = anonymous_bytes()
        try:
            split = open_split(
                self.llama,
                name,
                self.bundle.path(self.artefact),
                self.sample(),
                width=geometry.kv_heads * geometry.head_dim,
                layers=geometry.layers,
                threads=self.threads,
                least=self.least,
            )
        except StateError as error:
            raise _UnexpectedError(f"{error}; llama.cpp prefills instead") from error
        split.artefact = self.artefact.sha256
        path = self.bundle.path(self.artefact)
        weights = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
        return split, max(anonymous_bytes() - before, weights)

    def sample(self) -> Floats:
        """Image tokens `[t, d]` to try engines on."""
        with np.load(self.bundle.folder / "golden.npz") as file:
            tokens: Floats = file["tokens"].astype(np.float32)
        return tokens

    def auto(self) -> tuple[SplitPrefill | None, Prefilling]:
        path = cache_folder() / f"{self._key()}.json"
        known = _read(path)
        notes: list[str] = []
        if known is None:
            known = self._measure(notes)
            if not notes:
                _write(path, known)
        rates: dict[str, float] = known["tokens_per_s"]
        best = max(rates, key=lambda name: rates[name])
        if best != LLAMA and rates[best] >= GAIN * rates[LLAMA]:
            try:
                split, memory = self.open(best)
            except BackendError as error:
                notes.append(str(error))
            else:
                reason = f"{rates[best] / rates[LLAMA]:.1f} times as fast as llama.cpp when measured here"
                used = Prefilling(
                    split.engine.backend, reason, self.artefact.precision, memory, rates, tuple(notes)
                )
                return split, used
        reason = (
            "no engine measured here was faster" if len(rates) > 1 else "no other engine can be used here"
        )
        return None, Prefilling("llama.cpp", reason, tokens_per_s=rates, notes=tuple(notes))

    def _measure(self, notes: list[str]) -> dict[str, Any]:
        """Tokens a second of every engine that is installed, one loaded at a time, and of llama.cpp."""
        sample = np.resize(self.sample(), (MEASURED_TOKENS, self.llama.embed_dim)).astype(np.float32)
        llama_s = _best_s(lambda: self._llama_prefill(sample))
        rates = {LLAMA: MEASURED_TOKENS / llama_s}
        for name in ENGINES:
            if not any(version_of(package) for package in PACKAGES[name]):
                continue
            try:
                split, _ = self.open(name)
            except BackendError as error:
                notes.append(str(error))
                continue
            self.llama.decode([0], 0, PREFIX)
            state = bytes(self.llama.save(PREFIX))
            self.llama.forget(PREFIX)
            rates[name] = MEASURED_TOKENS / _best_s(partial(split.extend, state, sample))
            del split
        return {"tokens_per_s": {name: round(rate, 1) for name, rate in rates.items()}}

    def _llama_prefill(self, sample: Floats) -> None:
        self.llama.forget(PREFIX)
        self.llama.decode(sample, 0, PREFIX)
        self.llama.forget(PREFIX)

    def _key(self) -> str:
        """What the measurement depends on."""
        facts = {
            "prefill": self.artefact.sha256,
            "bundle": self.bundle.sha256,
            "llama": {**build_identity(), **self.llama.settings},
            "engines": {p: version_of(p) for packages in PACKAGES.values() for p in packages},
            "threads": self.threads or available_cpus(),
            "machine": _machine(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _best_s(run: Callable[[], object]) -> float:
    """Least time of a run, after one to warm up, within about a second."""
    began = time.perf_counter()
    run()
    best = first = time.perf_counter() - began
    if first > BUDGET_S:
        return first
    while True:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > BUDGET_S:
            return best


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "radvlm-edge" / "prefill"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        rates = known["tokens_per_s"]
        sound = LLAMA in rates and all(name in BACKENDS and float(rate) > 0 for name, rate in rates.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or damaged: measured anew
    return known if sound else None


def _write(path: Path, known: dict[str, Any]) -> None:
    """Keep a measurement where the cache can be written; it is made again where it cannot."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(known, file)
        Path(name).replace(path)


def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.lower().startswith(("model name", "cpu part")):
                return line
    return os.uname().machine
