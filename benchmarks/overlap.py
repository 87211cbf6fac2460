"""Does overlap pay here? A film looked at, and a bundle opened and a film looked at, both ways in turn.

    python -m radvlm_edge.benchmarks.overlap [BUNDLE] [--film F] [--detail D] [--threads N] [--repeats 5]

writes one JSON object to stdout. Above 1: overlap is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.bench_film import drawn_film
from radvlm_edge.benchmarks.latency import machine, summary
from radvlm_edge.runtime.reader import Options, Reader

WAYS = (False, True)


def measure(bundle: Path | None, film: Path, options: Options, repeats: int) -> dict[str, Any]:
    """Milliseconds of both ways, interleaved, one round not counted; medians' ratio; what was hidden."""
    looks: dict[bool, list[float]] = {way: [] for way in WAYS}
    starts: dict[bool, list[float]] = {way: [] for way in WAYS}
    content, hidden = film.read_bytes(), 0.0
    with Reader.open(bundle, options) as reader:
        for repeat in range(1 + repeats):
            for way in WAYS:
                reader.options = replace(options, overlap=way)
                reader._language.clear()
                looked: dict[str, Any] = {}
                took = _timed_ms(lambda: looked.update(study=reader.look(content)))  # noqa: B023
                if repeat:
                    looks[way].append(took)
                hidden = looked["study"].looked.overlapped_ms if way else hidden
        about = {"vision": reader.tower.backend, "auto": chosen_alone(reader, options)}
    for repeat in range(1 + repeats):
        for way in WAYS:
            took = _timed_ms(lambda: _start(bundle, replace(options, overlap=way), film))  # noqa: B023
            if repeat:
                starts[way].append(took)
    return {
        "machine": machine(),
        "about": about,
        "look_ms": {_name(way): summary(rows) for way, rows in looks.items()},
        "look_gain": _gain(looks),
        "tower_hidden_ms": round(hidden, 2),
        "start_ms": {_name(way): summary(rows) for way, rows in starts.items()},
        "start_gain": _gain(starts),
    }


def chosen_alone(reader: Reader, options: Options) -> bool:
    """What the reader would choose by itself."""
    reader.options = replace(options, overlap=None)
    return reader._overlaps()


def _start(bundle: Path | None, options: Options, film: Path) -> None:
    with Reader.open(bundle, options, ahead=film) as reader:
        reader.look(film)


def _name(way: bool) -> str:
    return "overlapped" if way else "one after another"


def _gain(rows: dict[bool, list[float]]) -> float:
    return round(summary(rows[False])["median"] / summary(rows[True])["median"], 3)


def _timed_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--film", type=Path, help="[default: a drawn one, 2544x3056]")
    parser.add_argument("--detail", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        film = given.film or Path(folder) / "film.dcm"
        if given.film is None:
            film.write_bytes(drawn_film())
        options = Options(detail=given.detail, threads=given.threads)
        report = measure(given.bundle, film, options, given.repeats)
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
