"""What another engine's prefill does to answers: the frozen suite, llama.cpp's own prefill against others.

    python -m radvlm_edge.benchmarks.prefill_flips BUNDLE --films 500 --ways onnx:int8,openvino:int8

A flip is a yes/no question whose likelier answer turns round; `moved` says how far P(Yes) went. Other
answers are compared as texts. Everything else (vision, language artefact, crops, prompts) is the same.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.nano_answerers import BundleAnswerer
from radvlm_edge.benchmarks.nano_run import MOST
from radvlm_edge.benchmarks.nano_suite import FILMS, phantoms
from radvlm_edge.runtime.reader import Options, Reader

GATE = 0.005
"""Largest share of yes/no answers INT8 may turn round."""


def measure(
    bundle: Path,
    ways: Sequence[str],
    films: int = FILMS,
    *,
    language: str | None = None,
    threads: int | None = None,
    texts: bool = True,
) -> dict[str, Any]:
    """Flips and differing texts of every way, `ENGINE:PRECISION`. Ends where one cannot be had."""
    with ExitStack() as stack:
        answerers = {}
        for way in ("llama", *ways):
            backend, _, precision = way.partition(":")
            options = Options(
                language=language, threads=threads, prefill_backend=backend, prefill=precision or None
            )
            reader = stack.enter_context(Reader.open(bundle, options))
            if (reader.prefilling.backend == "llama.cpp") != (way == "llama"):
                raise SystemExit(f"{way}: {'; '.join(reader.prefilling.notes)}")
            answerers[way] = BundleAnswerer(reader)
        shares: dict[str, list[float]] = {way: [] for way in answerers}
        said: dict[str, list[str]] = {way: [] for way in answerers}
        for pixels, items in phantoms(films):
            for way, answerer in answerers.items():
                looking = answerer.look(pixels)
                yes_no = [item.question for item in items if item.task == "yesno"]
                shares[way] += [looking.probability(question) for question in yes_no]
                others = [item for item in items if item.task != "yesno"] if texts else []
                said[way] += [looking.ask(item.question, MOST[item.task]) for item in others]
        name = answerers["llama"].describe()
    return {
        "bundle": name,
        "machine": machine(),
        "films": films,
        "ways": {way: compared(shares["llama"], shares[way], said["llama"], said[way]) for way in ways},
    }


def compared(
    ours: Sequence[float], theirs: Sequence[float], our_texts: Sequence[str], their_texts: Sequence[str]
) -> dict[str, Any]:
    """Figures of two runs over the same questions; `flips_upper`: Wilson's 95 % bound of their share."""
    flips = sum((a > 0.5) != (b > 0.5) for a, b in zip(ours, theirs, strict=True))
    moved = sorted(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return {
        "yes_no": len(ours),
        "flips": flips,
        "flip_rate": round(flips / max(len(ours), 1), 5),
        "flips_upper": round(_wilson(flips, len(ours)), 5),
        "within_gate": flips <= GATE * len(ours),
        "moved_median": round(moved[len(moved) // 2], 6) if moved else 0.0,
        "moved_most": round(moved[-1], 6) if moved else 0.0,
        "texts": len(our_texts),
        "texts_different": sum(a != b for a, b in zip(our_texts, their_texts, strict=True)),
    }


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
    parser.add_argument("--ways", default="onnx:int8,openvino:int8", help="ENGINE:PRECISION, ...")
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--language", help="language artefact")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--yes-no-only", action="store_true")
    options = parser.parse_args()
    report = measure(
        options.bundle,
        options.ways.split(","),
        options.films,
        language=options.language,
        threads=options.threads,
        texts=not options.yes_no_only,
    )
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
