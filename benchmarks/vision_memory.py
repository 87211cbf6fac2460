"""Memory of one vision artefact in each engine, and in ONNX Runtime with and without its memory arena.

    python -m radvlm_edge.benchmarks.vision_memory BUNDLE [--precision fp16] [--crops 8] --json OUT

Each measurement is a process of its own; variants take turns. Anonymous memory, as `memory.py` counts it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.memory import Sampler, anonymous_bytes
from radvlm_edge.bundle import Bundle
from radvlm_edge.runtime.vision import ENGINES, Plan, VisionTower, open_tower
from radvlm_edge.runtime.vision_onnx import OnnxTower

ARENAS = {"onnx, arena": True, "onnx, no arena": False}
RUNS = 5
"""Times the crops are encoded in each process, unless said otherwise; the first is not timed."""


def measure(
    bundle: Bundle, precision: str | None, *, crops: int, batch: int, repeats: int, runs: int = RUNS
) -> dict[str, Any]:
    """Bytes after loading, at the peak of encoding and behind it; CPU milliseconds a crop. Medians."""
    path = bundle.path(bundle.artefact("vision", precision))
    others = [
        name for name, one in ENGINES.items() if one.installed and one.device == "cpu" and name != "onnx"
    ]
    variants = [*ARENAS, *others]
    side = bundle.manifest.geometry.crop_px
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name in variants:
            command = [sys.executable, "-m", __spec__.name, "--child", name, str(path), str(side)]
            command += [str(crops), str(batch), str(runs)]
            result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found[name].append(json.loads(result.stdout))
    return {
        "machine": machine(),
        "bundle": bundle.manifest.name,
        "vision": bundle.artefact("vision", precision).precision,
        "crops": crops,
        "crops_per_batch": batch,
        "repeats": repeats,
        "variants": {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for name, rows in found.items()
        },
    }


def one(name: str, path: Path, side: int, crops: int, batch: int, runs: int) -> dict[str, float]:
    """Load and run one variant in this process."""
    views = np.random.default_rng(0).integers(0, 256, (crops, 3, side, side), dtype=np.uint8)
    empty = anonymous_bytes()
    tower: VisionTower
    if name in ARENAS:
        tower = OnnxTower(path, Plan(1, batch), arena=ARENAS[name])
    else:
        tower = open_tower(path, 1, backend=name, crops_per_batch=batch)
    loaded = anonymous_bytes()
    times = []
    with Sampler(every_s=0.005) as sampler:
        for _ in range(runs):
            begun = time.process_time()
            tower.encode(views)
            times.append(1e3 * (time.process_time() - begun) / crops)
    return {
        "loaded_bytes": loaded - empty,
        "peak_bytes": sampler.peak_bytes - empty,
        "after_bytes": anonymous_bytes() - empty,
        "cpu_ms_per_crop": round(statistics.median(times[1:]), 3),
    }


def main() -> None:
    """Write one JSON object; as a child, print one."""
    if sys.argv[1:2] == ["--child"]:
        name, path, *numbers = sys.argv[2:]
        print(json.dumps(one(name, Path(path), *map(int, numbers))))  # noqa: T201 - read by the parent
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--precision", help="vision artefact; default: the bundle's")
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="crops of one run; default: 4")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each variant; default: 3")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"in each process; default: {RUNS}")
    given = parser.parse_args()
    report = measure(
        Bundle.open(given.bundle),
        given.precision,
        crops=given.crops,
        batch=given.batch,
        repeats=given.repeats,
        runs=given.runs,
    )
    given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
