"""Our own runtime as a peer, and what it alone is measured in: bare decode loop, checklist, study cache."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks import bench_child as processes
from radvlm_edge.benchmarks.bench_cases import FIRST_QUESTION, SECOND_QUESTION
from radvlm_edge.benchmarks.latency import summary
from radvlm_edge.benchmarks.peers_setup import Asked, Setup, Written
from radvlm_edge.benchmarks.python_share import share
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime import prompts
from radvlm_edge.runtime.llama import TAIL
from radvlm_edge.runtime.reader import Options, Reader, Study

CHECKLIST = [*prompts.task_questions(prompts.CHECKLIST), "Is there no finding?"]
"""CheXpert's 14 labels."""
ATTEMPTS = 3


class OursPeer:
    """See `peers_setup.Peer`."""

    def __init__(self, setup: Setup) -> None:
        detail = None if setup.detail == "exact" else int(setup.detail)
        self.options = Options(
            **{"threads": setup.threads, "detail": detail, "context": setup.context, **setup.options}
        )
        self.reader = Reader.open(setup.bundle, self.options)
        self.load_ms = self.reader.load_ms
        self._study: Study | None = None

    def describe(self) -> dict[str, Any]:
        reader = self.reader
        return {
            "engine": f"radvlm-edge: {reader.tower.backend}, llama.cpp",
            "vision": reader.vision_artefact.precision,
            "language": reader.language_artefact.precision,
            "prefill": reader.prefilling.told(),
            "image_tokens": self.study.layout.image_tokens if self._study else 0,
            "crops": self.study.layout.crops if self._study else 0,
            "bytes": {
                "vision": reader.vision_artefact.bytes,
                "language": reader.language_artefact.bytes,
            },
        }

    @property
    def study(self) -> Study:
        if self._study is None:
            raise RuntimeError("a film comes first")
        return self._study

    def cold(self, film: bytes, question: str, written: Written) -> Asked:
        self._study = None
        gc.collect()
        self.reader._language.clear()
        began = time.perf_counter()
        self._study = self.reader.look(film)
        return self._answer(question, written, began)

    def again(self, question: str, written: Written) -> Asked:
        return self._answer(question, written, time.perf_counter())

    def _answer(self, question: str, written: Written, began: float) -> Asked:
        language, ids, first_ms = self.reader._language, list[int](), 0.0
        stop_ids = self.reader.bundle.manifest.prompting.stop_ids if written.stop else ()
        language.prefill(self.reader._tail([], question, written.tokens))
        for step in language.steps(stop_ids=stop_ids, max_tokens=written.tokens):
            first_ms = first_ms or (time.perf_counter() - began) * 1e3
            ids.append(step.token)
        text = b"".join(language.piece(token) for token in ids if token not in stop_ids)
        total_ms = (time.perf_counter() - began) * 1e3
        return Asked(first_ms, total_ms, len(ids), text.decode("utf-8", "replace").strip())

    def extras(self, setup: Setup, film: Path) -> dict[str, Any]:
        """Interleaved pairs, behind the film of the last `cold`; then processes of their own."""
        return {
            "decode": self._decode(setup.decode_tokens),
            "checklist": self._checklist(setup.checklist_tokens),
            "python": share(self.study, SECOND_QUESTION, tokens=setup.answer_tokens),
            "processes": self._processes(setup, film),
            "infer": infer_peak(setup, film),
        }

    def _decode(self, tokens: int) -> dict[str, Any]:
        """Our steps beside llama-bench's loop: `llama_decode` of one token after another and nothing else."""
        language, rows = self.reader._language, dict[str, list[float]]()
        tail = self.reader._tail([], SECOND_QUESTION, tokens)

        def ours() -> None:
            for _ in language.steps(stop_ids=(), max_tokens=tokens):
                pass

        def bare() -> None:
            llama, start = language.engine, language.prefix_tokens + len(tail)
            for at in range(tokens - 1):
                llama.step(at % 100, start + at, TAIL)
            llama.logits()

        for _ in range(ATTEMPTS):
            for name, run in (("ours", ours), ("bare", bare)):
                language.prefill(tail)
                rows.setdefault(name, []).append((tokens - 1) / _timed_s(run))
        return {"behind_tokens": language.prefix_tokens + len(tail), "steps": tokens - 1} | {
            f"{name}_tokens_per_s": summary(rates) for name, rates in rows.items()
        }

    def _checklist(self, tokens: int) -> dict[str, Any]:
        """14 questions one by one and together: answers of exactly so many tokens, and choices."""
        language, reader = self.reader._language, self.reader
        tails = [reader._tail([], question, tokens) for question in CHECKLIST]

        def one_by_one() -> None:
            for tail in tails:
                language.prefill(tail)
                for _ in language.steps(stop_ids=(), max_tokens=tokens):
                    pass

        ways: dict[str, Callable[[], object]] = {
            "text_one_by_one": one_by_one,
            "text_together": lambda: language.write_together(tails, stop_ids=(), max_tokens=tokens),
            "choice_one_by_one": lambda: [self.study.choose(question) for question in CHECKLIST],
            "choice_together": lambda: self.study.choose_many(CHECKLIST),
        }
        rows: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ATTEMPTS):
            for name, run in ways.items():
                rows[name].append(_timed_s(run) * 1e3)
        return {"questions": len(CHECKLIST), "answer_tokens": tokens} | {
            f"{name}_ms": summary(times) for name, times in rows.items()
        }

    def _processes(self, setup: Setup, film: Path) -> dict[str, Any]:
        """A process that keeps the study and a second that finds it: from start to exit."""
        found: dict[str, list[float]] = {processes.FIRST: [], processes.SECOND: []}
        peaks = {}
        for _ in range(2):
            with tempfile.TemporaryDirectory(dir=setup.work) as studies:
                for name in found:
                    run = processes.run_process(
                        film, FIRST_QUESTION, Path(setup.bundle), self.options, Path(studies) / "kept"
                    )
                    found[name].append(sum(run.parts_ms.values()))
                    peaks[name] = run.counts["peak_bytes"]
                    if run.counts["hit"] != int(name == processes.SECOND):
                        raise BackendError(f"{name}: the study cache was not used as it should")
        return {name: {"ms": summary(rows), "peak_bytes": peaks[name]} for name, rows in found.items()}

    def close(self) -> None:
        self.reader.close()


INFER = """
import sys
from radvlm_edge.cli import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print("PEAK", next(line.split()[1] for line in status if line.startswith("VmHWM:")), file=sys.stderr)
"""
"""The command, and its own peak in KiB: what a parent is told of its child counts the parent's memory."""


def infer_peak(setup: Setup, film: Path) -> dict[str, Any]:
    """Most memory `radvlm-edge infer` had resident at once at detail exact, mapped weights included."""
    given = {"bundle": setup.bundle, "threads": setup.threads, "max-tokens": setup.answer_tokens}
    given |= {name.replace("_", "-"): value for name, value in setup.options.items()}
    command = [sys.executable, "-c", INFER, "infer", str(film), "--ask", FIRST_QUESTION]
    command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *said, last = done.stderr.strip().splitlines() or ["no message"]
    if done.returncode != 0 or not last.startswith("PEAK "):
        why = next((line for line in said if line.startswith("radvlm-edge: ")), last)
        raise BackendError(f"infer ended with code {done.returncode}: {why.removeprefix('radvlm-edge: ')}")
    return {"detail": "exact", "peak_bytes": int(last.split()[1]) * 1024}


def _timed_s(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
