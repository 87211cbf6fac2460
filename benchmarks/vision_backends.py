"""The vision engines of this machine side by side on one artefact: milliseconds a crop.

    python -m radvlm_edge.benchmarks.vision_backends BUNDLE [--precision fp16] --json OUT

Variants take turns in one process, so that a machine that slows down slows all of them. At most two towers
are loaded at a time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.bundle import Bundle
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.vision import DEFAULT_ENGINE, ENGINES, VisionTower, available_cpus, open_tower
from radvlm_edge.runtime.vision_choice import Measured, Setting, package_versions

BATCHES = (1, 2, 4, 8)
LEAST_TURNS = 5
LONGEST_RUN_S = 1.0
"""Batches that would take longer are not tried: a tower that slow keeps every CPU busy with one crop."""
TIE = 1.03
"""Smaller batches and fewer threads are taken unless others are this many times as fast."""
WORTH = 1.1
"""So much faster another engine must be than the default one, in which artefacts were compared."""
AGREE = {"fp32": 1e-3, "fp16": 1e-2}
AGREE_INT8 = 2e-2
"""Largest difference of a token from the default engine's, as a fraction of the largest token: codes on the
edge of rounding fall either way, products that saturate are ten times beyond."""


class Variant(NamedTuple):
    """One way to run the artefact."""

    engine: str
    threads: int
    crops_per_batch: int


Times = dict[Variant, list[float]]
"""Milliseconds a crop, in turns."""


@dataclass(frozen=True)
class Row:
    """What a variant took, in milliseconds a crop."""

    stage: str
    engine: str
    threads: int
    crops_per_batch: int
    turns: int
    min_ms: float
    median_ms: float
    cpu_ms: float
    """Median of the CPU time of all threads together: what other processes take is not in it."""


class Race:
    """Measures engines on one artefact in stages: crops per batch, threads, engine against engine."""

    def __init__(self, bundle: Bundle, precision: str | None, threads: int | None, seconds: float) -> None:
        """`seconds`: about how long each engine is timed, loading apart; at least `LEAST_TURNS` turns."""
        self.artefact = bundle.artefact("vision", precision)
        self.path = bundle.path(self.artefact)
        self.given, self.threads = threads, threads or available_cpus()
        self.seconds = seconds
        side = bundle.manifest.geometry.crop_px
        rng = np.random.default_rng(0)
        self.crops = rng.integers(0, 256, (max(BATCHES), 3, side, side), dtype=np.uint8)
        self.rows: list[Row] = []
        self.latest: Times = {}
        """Of every variant in the last stage it took part in."""
        self.notes: dict[str, str] = {}
        self.differences: dict[str, float] = {}

    def run(self, engines: Sequence[str]) -> dict[str, Setting]:
        """The best setting of every engine that computes the artefact as the default one does."""
        towers = self._open(engines)
        names = list(towers)
        found = self._stage(
            "crops per batch",
            {
                Variant(engine, self.threads, batch): tower
                for engine, tower in towers.items()
                for batch in self._batches(tower)
            },
            len(names),
        )
        best = {engine: _fastest(found, engine) for engine in names}
        if self.given is None and self.threads > 1:
            towers.clear()  # so that no more than two are ever loaded
            best = {engine: self._fewer_threads(variant) for engine, variant in best.items()}
        if len(best) > 1:
            final = {one: towers.get(one.engine) or self._tower(*one[:2]) for one in best.values()}
            self._stage("engines", final, len(final))
        return {
            engine: Setting(*variant[1:], round(statistics.median(self.latest[variant]), 3))
            for engine, variant in best.items()
        }

    def _tower(self, engine: str, threads: int) -> VisionTower:
        """A tower that takes every batch in one run."""
        sha256 = self.artefact.sha256
        return open_tower(self.path, threads, backend=engine, crops_per_batch=max(BATCHES), sha256=sha256)

    def _open(self, engines: Sequence[str]) -> dict[str, VisionTower]:
        towers = {DEFAULT_ENGINE: self._tower(DEFAULT_ENGINE, self.threads)}
        expected = towers[DEFAULT_ENGINE].encode(self.crops[:2])
        limit = AGREE.get(self.artefact.precision, AGREE_INT8)
        for engine in engines:
            if engine == DEFAULT_ENGINE:
                continue
            try:
                tower = self._tower(engine, self.threads)
            except BackendError as error:
                self.notes[engine] = str(error)
                continue
            difference = np.abs(tower.encode(self.crops[:2]) - expected).max() / np.abs(expected).max()
            self.differences[engine] = float(difference)
            if not difference <= limit:  # NaN, too
                self.notes[engine] = (
                    f"its tokens are off by {difference:.2g} of the largest (limit {limit:g}); not to be used"
                )
                continue
            towers[engine] = tower
        return towers

    def _batches(self, tower: VisionTower) -> list[int]:
        seconds = min(_timed(tower, self.crops[:1]) for _ in range(2))
        return [batch for batch in BATCHES if batch == 1 or batch * seconds <= LONGEST_RUN_S]

    def _fewer_threads(self, best: Variant) -> Variant:
        """Hyper-threads share what a tower needs most; half of them may be as fast."""
        pair = (best, best._replace(threads=self.threads // 2))
        found = self._stage("threads", {one: self._tower(*one[:2]) for one in pair}, 1)
        return _fastest(found, best.engine)

    def _stage(self, stage: str, variants: Mapping[Variant, VisionTower], engines: int) -> Times:
        """Run the variants in turns; a third of the time is this stage's."""
        times: Times = {variant: [] for variant in variants}
        for variant, tower in variants.items():
            tower.encode(self.crops[: variant.crops_per_batch])
        cpu_times: Times = {variant: [] for variant in variants}
        spent, turns = 0.0, 0
        while turns < LEAST_TURNS or spent < engines * self.seconds / 3:
            for variant, tower in variants.items():
                begun = time.process_time()
                took = _timed(tower, self.crops[: variant.crops_per_batch])
                cpu_times[variant].append(1e3 * (time.process_time() - begun) / variant.crops_per_batch)
                times[variant].append(1e3 * took / variant.crops_per_batch)
                spent += took
            turns += 1
        for variant, found in times.items():
            figures = min(found), statistics.median(found), statistics.median(cpu_times[variant])
            self.rows.append(Row(stage, *variant, turns, *(round(figure, 3) for figure in figures)))
        self.latest |= times
        return times


def measure(
    bundle: Bundle,
    precision: str | None = None,
    *,
    threads: int | None = None,
    seconds: float = 1.0,
    engines: Sequence[str] | None = None,
) -> tuple[Measured, dict[str, Any]]:
    """Measure the installed engines on a vision artefact; also returns all figures, for a report.

    `threads`: no other number is tried. Raises BackendError if the default engine cannot run the artefact.
    """
    installed = [name for name, engine in ENGINES.items() if engine.installed and engine.device == "cpu"]
    race = Race(bundle, precision, threads, seconds)
    best = race.run(installed if engines is None else engines)
    others = {name: one.ms_per_crop for name, one in best.items() if name != DEFAULT_ENGINE}
    chosen = min(others, key=others.__getitem__, default=DEFAULT_ENGINE)
    if best[DEFAULT_ENGINE].ms_per_crop < WORTH * best[chosen].ms_per_crop:
        chosen = DEFAULT_ENGINE
    now = datetime.datetime.now(datetime.timezone.utc)
    when, load = now.strftime("%Y-%m-%dT%H:%M:%SZ"), round(os.getloadavg()[0], 2)
    measured = Measured(best, chosen, when, load, race.notes)
    report = {
        "machine": machine() | {"load": load, "packages": package_versions()},
        "bundle": bundle.manifest.name,
        "vision": race.artefact.precision,
        "sha256": race.artefact.sha256,
        "rows": [asdict(row) for row in race.rows],
        "difference": race.differences,
        **asdict(measured),
    }
    return measured, report


def _fastest(times: Times, engine: str) -> Variant:
    """The fastest variant of an engine; among those within `TIE` of it the one that takes least."""
    medians = {variant: statistics.median(found) for variant, found in times.items() if variant[0] == engine}
    least = min(medians.values())
    return min(variant for variant, median in medians.items() if median <= TIE * least)


def _timed(tower: VisionTower, crops: npt.NDArray[np.uint8]) -> float:
    begun = time.perf_counter()
    tower.encode(crops)
    return time.perf_counter() - begun


def main() -> None:
    """Write one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--precision", help="vision artefact; default: the bundle's")
    parser.add_argument("--threads", type=int, help="try no other number")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each engine; default: 5")
    given = parser.parse_args()
    _, report = measure(
        Bundle.open(given.bundle), given.precision, threads=given.threads, seconds=given.seconds
    )
    given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
