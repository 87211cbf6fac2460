"""Guessed tokens, measured: reports and brief answers with and without drafts, interleaved.

    python -m radvlm_edge.benchmarks.drafting [BUNDLE] [--films N] [--repeats N] [--phrases FILE]

writes one JSON object to stdout. Films are phantoms no training has seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.benchmarks.studies import TIE, parting
from radvlm_edge.runtime import prompts
from radvlm_edge.runtime.film import Film
from radvlm_edge.runtime.reader import Options, Reader, Study
from radvlm_edge.training.phantom import make_phantom

FIRST_SEED = 30_000_000
QUESTIONS = {"report": prompts.TASKS["report"], "brief": "any effusion?"}


def measure(reader: Reader, films: int, repeats: int) -> dict[str, Any]:
    """For each kind of question, both ways: tokens, passes, milliseconds of decoding; answers that differ."""
    phrases = reader._phrases
    assert phrases is not None
    figures: dict[str, Any] = {}
    studies = [make_phantom(FIRST_SEED + index).pixels for index in range(films)]
    for kind, question in QUESTIONS.items():
        rows: dict[str, list[float]] = {"plain": [], "drafted": []}
        counts = {"tokens": 0, "plain": 0, "drafted": 0}
        parted: list[float] = []
        for pixels in studies:
            study = reader.look(Film(pixels, "phantom", render="voi"))
            study.ask(question).finish()  # pays for the film
            for _ in range(repeats):
                reader._phrases = None
                plain, took = _decode(study, question)
                rows["plain"].append(took)
                counts["plain"] += reader._language.passes
                reader._phrases = phrases
                drafted, took = _decode(study, question)
                rows["drafted"].append(took)
                counts["drafted"] += reader._language.passes
                counts["tokens"] += len(plain._logprobs)
            reader._phrases = None
            lead = parting(study, drafted, plain)
            parted += [] if lead is None else [lead]
            reader._phrases = phrases
        medians = {name: statistics.median(values) for name, values in rows.items()}
        figures[kind] = {
            "answers": films,
            "tokens": counts["tokens"],
            "passes": {name: counts[name] for name in rows},
            "decode_ms": {name: round(value, 2) for name, value in medians.items()},
            "speedup": round(medians["plain"] / medians["drafted"], 2),
            "differ": len(parted),
            "differ_where_clear": sum(lead >= TIE for lead in parted),
        }
    return figures


def _decode(study: Study, question: str) -> Any:
    began = time.perf_counter()
    answer = study.ask(question).finish()
    took = (time.perf_counter() - began) * 1e3
    return answer, took - answer.timing.prefill_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--language")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--phrases", type=Path)
    given = parser.parse_args()
    options = Options(
        drafts=True, phrases=given.phrases, language=given.language, threads=given.threads, max_tokens=200
    )
    with Reader.open(given.bundle, options) as reader:
        figures = measure(reader, given.films, given.repeats)
        report = {"machine": machine(), "language": reader.language_artefact.precision, **figures}
    json.dump(report, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
