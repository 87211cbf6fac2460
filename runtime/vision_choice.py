"""Which engine runs the tower here: the one asked for, else what `doctor` measured best, else ONNX Runtime.

A measurement holds for one artefact, one CPU, one number of CPUs and one set of package versions; it is kept
in `$XDG_CACHE_HOME/radvlm-edge/vision` (else `~/.cache`), one small file each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from radvlm_edge.runtime.versions import installed_versions
from radvlm_edge.runtime.vision import CROPS_PER_BATCH, DEFAULT_ENGINE, ENGINES, available_cpus

FORMAT = 1
AUTO = "auto"


@dataclass(frozen=True)
class Setting:
    """How an engine ran one artefact best."""

    threads: int
    crops_per_batch: int
    ms_per_crop: float
    """Median, in milliseconds."""


@dataclass(frozen=True)
class Measured:
    """What `doctor` found, and keeps."""

    best: dict[str, Setting]
    """By engine."""
    chosen: str
    """The engine to use."""
    when: str
    """Date and time, ISO 8601."""
    load: float
    """Processes that wanted a CPU meanwhile (one-minute load average)."""
    notes: dict[str, str] = field(default_factory=dict)
    """By engine: why it was not measured, or not to be chosen."""


@dataclass(frozen=True)
class Chosen:
    """What is to run a tower, and why."""

    backend: str
    threads: int | None
    crops_per_batch: int
    why: str
    """For provenance."""
    trouble: str | None = None
    """A measurement that is kept but cannot be read: one line for the user."""


def choose_engine(artefact_sha256: str, backend: str | None = None, threads: int | None = None) -> Chosen:
    """Engine, threads and crops per batch for an artefact; `backend=None` is `auto`.

    A measured setting is used unless `threads` says otherwise. Another engine than `DEFAULT_ENGINE` is only
    chosen where it was measured best with exactly this key.
    """
    measured, trouble = recall(artefact_sha256, threads)
    asked = None if backend in (None, AUTO) else backend
    engine = asked or (measured.chosen if measured else DEFAULT_ENGINE)
    setting = measured.best.get(engine) if measured else None
    if asked:
        why = f"asked for; {'setting' if setting else 'nothing'} measured"
    elif measured:
        why = f"measured best on {measured.when}"
    else:
        why = "default; nothing measured for this artefact, machine and versions"
    if setting is None:
        return Chosen(engine, threads, CROPS_PER_BATCH, why, trouble)
    return Chosen(engine, setting.threads, setting.crops_per_batch, why, trouble)


def recall(artefact_sha256: str, threads: int | None = None) -> tuple[Measured | None, str | None]:
    """The measurement kept for an artefact, and a line about one that cannot be read."""
    key = measurement_key(artefact_sha256, threads)
    path = _path(key)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path}: cannot be read ({error.strerror}); run `radvlm-edge doctor` to measure anew"
    try:
        return _parse(json.loads(raw), key), None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{path}: damaged, not used; run `radvlm-edge doctor` to measure anew"


def keep(measured: Measured, artefact_sha256: str, threads: int | None = None) -> Path:
    """Write a measurement whole or not at all. Raises OSError."""
    key = measurement_key(artefact_sha256, threads)
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent)  # its mode is 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "key": key, **asdict(measured)}, file, indent=1)
        Path(name).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    return path


def measurement_key(artefact_sha256: str, threads: int | None = None) -> dict[str, Any]:
    """All that a measurement depends on; `threads`: as asked for, `None` where the caller leaves it open."""
    return {
        "artefact": artefact_sha256,
        "cpu": cpu_name(),
        "features": hashlib.sha256(_cpu_features().encode()).hexdigest()[:16],
        "cpus": available_cpus(),
        "threads": threads,
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages behind the engines, as far as they are installed."""
    return installed_versions(name for engine in ENGINES.values() for name in engine.distributions)


def cpu_name() -> str:
    """Model name of the CPU as Linux reports it."""
    return _cpu_line("model name", "hardware") or platform.machine()


def _cpu_features() -> str:
    """Instruction sets: machines that call themselves the same need not have the same ones."""
    return _cpu_line("flags", "features")


def _cpu_line(*names: str) -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a regular file
        for line in file:
            if line.lower().startswith(names):
                return line.split(":", 1)[1].strip()
    return ""


def _path(key: Mapping[str, Any]) -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "radvlm-edge" / "vision"
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"{name[:32]}.json"


def _parse(record: Any, key: Mapping[str, Any]) -> Measured:
    """Raises ValueError, KeyError, TypeError or AttributeError for anything `keep` did not write."""
    if record.pop("format") != FORMAT or record.pop("key") != key:
        raise ValueError("of another format or machine")
    best = {name: Setting(**one) for name, one in record.pop("best").items()}
    measured = Measured(best=best, **record)
    numbers = [n for one in best.values() for n in (one.threads, one.crops_per_batch)]
    if measured.chosen not in best or not set(best) <= set(ENGINES):
        raise ValueError("an engine that was not measured")
    if not all(isinstance(number, int) and number >= 1 for number in numbers):
        raise ValueError("threads and crops per batch are whole numbers from 1")
    return measured
