"""Look once, ask many, measured: a film from the study cache, and a checklist one by one and as one batch.

    python -m radvlm_edge.benchmarks.studies FILM... [--bundle B] [--language X] [--repeats N]

writes one JSON object to stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.benchmarks.latency import machine
from radvlm_edge.runtime import prompts
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.llama import TAIL
from radvlm_edge.runtime.reader import Options, Reader, Study

QUESTIONS = [*prompts.task_questions("checklist"), *(prompts.TASKS[name] for name in ("classify", "report"))]
TIE = 0.01
"""Top two logits closer than this, in standard deviations of the logits, may swap between batch shapes."""


NO_TOKEN = -1e20
"""Exports give the embedding's padding rows logits far below this; they are no part of the deviation."""


def leads(study: Study, answer: Answer) -> list[float]:
    """How far the best logit was ahead at each step of an answer written alone, in standard deviations."""
    language = study.reader._language
    study.ask(answer.question, max_tokens=1).finish()  # the film is in the context now
    _, text = prompts.render([prompts.Turn(answer.question)], study.reader.bundle.manifest.prompting)
    language.prefill(language.tokenize(text))
    found = []
    for _ in range(len(answer._logprobs)):
        logits = language.logits()
        token = int(logits.argmax())
        real = np.sort(logits[logits > NO_TOKEN]).astype(np.float64)
        found.append(float((real[-1] - real[-2]) / real.std()))
        language._llama.decode([token], language.prefix_tokens + len(language._tail), TAIL)
        language._tail.append(token)
    return found


def parting(study: Study, together: Answer, alone: Answer) -> float | None:
    """Lead of the best token where two answers to a question part; `None` if they do not."""
    ours, theirs = together.finish()._ids, alone.finish()._ids
    if ours == theirs and together.stop == alone.stop:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((index for index, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    return leads(study, alone)[at]


def ask_many(reader: Reader, films: Sequence[str], repeats: int) -> dict[str, Any]:
    """QUESTIONS about each film one by one and together: times, tokens prefilled, answers that differ."""
    alone_ms: list[float] = []
    together_ms: list[float] = []
    parted: list[float] = []
    steps: list[int] = []
    prefilled = {"one by one": 0, "together": 0}
    for film in films:
        study = reader.look(film)
        study.ask("any effusion?").finish()  # pays for the film
        for _ in range(repeats):
            alone, took = _timed(lambda: [study.ask(question).finish() for question in QUESTIONS])  # noqa: B023
            alone_ms.append(took)
            together, took = _timed(lambda: study.ask_many(QUESTIONS))  # noqa: B023
            together_ms.append(took)
        steps.append(max(len(answer._logprobs) for answer in together))
        prefilled["one by one"] += sum(answer.prefill_tokens for answer in alone)
        prefilled["together"] += sum(answer.prefill_tokens for answer in together)
        leads_there = [parting(study, *pair) for pair in zip(together, alone, strict=True)]
        parted += [lead for lead in leads_there if lead is not None]
    return {
        "answers": len(films) * len(QUESTIONS),
        "differ": len(parted),
        "differ_where_clear": sum(lead >= TIE for lead in parted),
        "largest_lead_where_differing": max(parted, default=0.0),
        "longest_answer_tokens": max(steps),
        "prefilled_tokens": prefilled,
        "one_by_one_ms": _summary(alone_ms),
        "together_ms": _summary(together_ms),
    }


def cache(bundle: str | None, options: Options, film: str, repeats: int) -> dict[str, Any]:
    """Looking at a film with nothing kept, keeping it, and finding it kept: times and bytes."""
    rows: dict[str, list[float]] = {"cold": [], "kept": [], "found": []}
    size = 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            kept = replace(options, study_cache=Path(folder) / "studies")
            for name, chosen in (("cold", options), ("kept", kept), ("found", kept)):
                with Reader.open(bundle, chosen) as reader:
                    study, took = _timed(lambda: reader.look(film))
                    rows[name].append(took)
                    tokens = study.prefix_tokens
            assert study.cache == "hit"
            size = sum(path.stat().st_size for path in (Path(folder) / "studies").iterdir())
    return {"tokens": tokens, "file_bytes": size, "look_ms": {n: _summary(r) for n, r in rows.items()}}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - began) * 1e3


def _summary(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", nargs="+")
    parser.add_argument("--bundle")
    parser.add_argument("--language")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    options = Options(language=given.language, threads=given.threads, max_tokens=128, force=True)
    with Reader.open(given.bundle, options) as reader:
        many = ask_many(reader, given.films, given.repeats)
        name = f"{reader.bundle.manifest.name}, {reader.language_artefact.precision}"
    found = cache(given.bundle, options, given.films[0], given.repeats)
    json.dump({"machine": machine(), "bundle": name, "cache": found, "many": many}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
