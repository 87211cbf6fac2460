"""From the start of a process to its first useful work: the film is being read, or the bundle opened.

    python -m radvlm_edge.benchmarks.startup [FILM]

Each start is a process of its own that stops there; the interpreter's own start is part of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.latency import machine, summary
from radvlm_edge.errors import BackendError

PROGRAM = """
import os, sys, threading, time
from radvlm_edge.cli import cli
from radvlm_edge.runtime import reader

first = threading.Lock()

def useful(*_, **__):
    at = time.perf_counter()
    first.acquire()  # film and bundle are two threads; the later one waits for the end
    sys.stdout.write(repr(at) + " " + str(len(sys.modules)))
    sys.stdout.flush()
    os._exit(0)

reader.Bundle.open = reader.load_film = useful
cli.main(sys.argv[1:], standalone_mode=False)
"""
"""`infer`, until it reads a film or opens a bundle. The monotonic clock is the system's, the same in both."""


def measure(film: Path, repeats: int = 7) -> dict[str, Any]:
    """Milliseconds and modules until the first useful work; one start before is not counted."""
    rows, modules = [], 0
    for repeat in range(1 + repeats):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "infer", str(film), "--ask", "any effusion?"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not done.stdout:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BackendError(f"the timed process ended with code {done.returncode}: {last}")
        at, count = done.stdout.split()
        modules = int(count)
        if repeat:
            rows.append((float(at) - began) * 1e3)
    return {"ms": summary(rows), "modules": modules, "repeats": repeats}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        film = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "film.dcm"
        if len(sys.argv) < 2:
            from radvlm_edge.benchmarks.bench_film import drawn_film

            film.write_bytes(drawn_film(400, 330))
        report = {"machine": machine(), **measure(film)}
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
