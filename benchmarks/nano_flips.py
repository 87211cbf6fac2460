"""What another artefact or engine does to nano's answers on the frozen suite, against the defaults.

    python -m radvlm_edge.benchmarks.nano_flips BUNDLE vision=int8 language=Q4_K_M prefill=openvino:int8

A way is one or several of vision=PRECISION, language=PRECISION, prefill=ENGINE:PRECISION, with commas; all
else is as without it. A flip is a yes/no question whose likelier answer turns round; `moved` says how far
P(Yes) went. Other answers are compared as texts, and their boxes with the true ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.nano_answerers import BundleAnswerer
from radvlm_edge.benchmarks.nano_run import TASKS, Reply, reply, stated_boxes
from radvlm_edge.benchmarks.nano_scores import box_figures
from radvlm_edge.benchmarks.nano_suite import FILMS, phantoms
from radvlm_edge.runtime.reader import Options, Reader

GATE = 0.005
"""Largest share of yes/no answers INT8 may turn round."""


def options_of(way: str, threads: int | None) -> Options:
    """What a way asks for. Ends with a line where it is none."""
    asked: dict[str, str] = {}
    for part in filter(None, way.split(",")):
        key, _, value = part.partition("=")
        if key not in ("vision", "language", "prefill") or not value:
            raise SystemExit(f"{part!r} is no way; write vision=X, language=X or prefill=ENGINE:X")
        asked[key] = value
    engine, _, precision = asked.pop("prefill", "llama").partition(":")
    return Options(threads=threads, prefill_backend=engine, prefill=precision or None, **asked)  # type: ignore[arg-type]


def measure(
    bundle: Path,
    ways: Sequence[str],
    films: int = FILMS,
    *,
    threads: int | None = None,
    tasks: Sequence[str] = TASKS,
) -> dict[str, Any]:
    """Flips, differing texts and boxes of every way. Ends where one cannot be had."""
    with ExitStack() as stack:
        answerers = {}
        for way in ("", *ways):
            options = options_of(way, threads)
            reader = stack.enter_context(Reader.open(bundle, options))
            if (reader.prefilling.backend == "llama.cpp") != (options.prefill_backend == "llama"):
                raise SystemExit(f"{way}: {'; '.join(reader.prefilling.notes)}")
            answerers[way] = BundleAnswerer(reader)
        said = put_to_all(answerers, films, tasks)
        name = answerers[""].describe()
    return {
        "bundle": name,
        "machine": machine(),
        "films": films,
        "ways": {way: compared(said[""], said[way]) for way in ways},
    }


def put_to_all(
    answerers: Mapping[str, BundleAnswerer], films: int, tasks: Sequence[str] = TASKS
) -> dict[str, list[Reply]]:
    """The suite's questions of these tasks about its first `films` films, put to each in turn."""
    said: dict[str, list[Reply]] = {way: [] for way in answerers}
    for pixels, items in phantoms(films):
        for way, answerer in answerers.items():
            looking = answerer.look(pixels)
            said[way] += [reply(looking, item) for item in items if item.task in tasks]
    return said


def compared(ours: Sequence[Reply], theirs: Sequence[Reply]) -> dict[str, Any]:
    """Figures of two runs over the same questions; `flips_upper`: Wilson's 95 % bound of their share."""
    chances = [
        (a.probability, b.probability) for a, b in zip(ours, theirs, strict=True) if a.item.task == "yesno"
    ]
    flips = sum((a > 0.5) != (b > 0.5) for a, b in chances)
    moved = sorted(abs(a - b) for a, b in chances)
    texts = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.item.task != "yesno"]
    found: dict[str, Any] = {
        "yes_no": len(chances),
        "flips": flips,
        "flip_rate": round(flips / max(len(chances), 1), 5),
        "flips_upper": round(_wilson(flips, len(chances)), 5),
        "within_gate": flips <= GATE * len(chances),
        "moved_median": round(moved[len(moved) // 2], 6) if moved else 0.0,
        "moved_most": round(moved[-1], 6) if moved else 0.0,
        "texts": len(texts),
        "texts_different": sum(a.text != b.text for a, b in texts),
    }
    for task in ("region", "finding"):
        own, other = (
            [(stated_boxes(one.text), one.item.boxes) for one in said if one.item.task == task]
            for said in (ours, theirs)
        )
        if own:
            before, after = (float(str(box_figures(one)["mean_iou"])) for one in (own, other))
            found[f"{task}_iou"] = {"without": before, "with": after, "loss": round(before - after, 4)}
    return found


def _wilson(hits: int, count: int, z: float = 1.96) -> float:
    """Upper bound of a share (Wilson 1927)."""
    if count == 0:
        return 1.0
    p = hits / count
    middle = p + z * z / (2 * count)
    return float((middle + z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))) / (1 + z * z / count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("ways", nargs="+", metavar="WAY")
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args()
    report = measure(
        options.bundle, options.ways, options.films, threads=options.threads, tasks=options.tasks
    )
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
