"""What is timed of one bundle in one process: first answer, second question, checklist, report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from radvlm_edge.runtime import prompts
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.reader import Reader, Study

COLD, SECOND, CHECKLIST, REPORT = "cold first answer", "second question", "checklist", "report"
CASES = (COLD, SECOND, CHECKLIST, REPORT)
REPORT_TOKENS = 200
FIRST_QUESTION, SECOND_QUESTION = "any effusion?", "Is the heart enlarged?"


@dataclass
class Run:
    """One case done once."""

    parts_ms: dict[str, float]
    counts: dict[str, int]
    """What was really done: crops, tokens prefilled, steps of decoding, tokens written."""
    answer: str = ""
    joules: dict[str, float] = field(default_factory=dict)
    """By meter; of cold answers only."""


class BundleRunner:
    """A bundle, a film and the four cases, each from where the one before left the study."""

    def __init__(self, name: str, reader: Reader, film: bytes, report_tokens: int = REPORT_TOKENS) -> None:
        self.name, self.reader, self.film = name, reader, film
        self.report_tokens = report_tokens
        self.study: Study | None = None

    def describe(self) -> dict[str, Any]:
        """What the times are of."""
        reader = self.reader
        return {
            "engines": {"vision": reader.tower.backend, "language": "llama.cpp"},
            "vision": reader.vision_artefact.precision,
            "language": reader.language_artefact.precision,
            "detail": self.study.detail if self.study else str(reader.options.detail or "exact"),
            "load_ms": round(reader.load_ms, 2),
            "bytes": {
                "vision": reader.vision_artefact.bytes,
                "language": reader.language_artefact.bytes,
                "bundle": sum(p.stat().st_size for p in reader.bundle.folder.rglob("*") if p.is_file()),
            },
        }

    def run(self, case: str) -> Run:
        """Do one case; `COLD` first, the others need its study."""
        cases: dict[str, Callable[[], Run]] = {
            COLD: self._cold,
            SECOND: lambda: self._of([self._study().ask(SECOND_QUESTION)]),
            CHECKLIST: lambda: self._of(self._study().ask_many(prompts.task_questions(prompts.CHECKLIST))),
            REPORT: self._report,
        }
        return cases[case]()

    def _study(self) -> Study:
        if self.study is None:
            raise RuntimeError(f"{COLD} comes first")
        return self.study

    def _cold(self) -> Run:
        self.study = None
        self.reader._settle()
        gc.collect()
        self.reader._language.clear()  # not even the prompt's head is left from the film before
        self.study = self.reader.look(self.film)
        looked = self.study.looked
        found = self._of([self.study.ask(FIRST_QUESTION)])
        found.parts_ms = {
            "DICOM": looked.decode_film_ms,
            "crops": looked.crops_ms,
            "vision": looked.vision_ms,
            **found.parts_ms,
        }
        layout = self.study.layout
        found.counts |= {"crops": layout.crops, "image_tokens": layout.image_tokens}
        return found

    def _of(self, answers: list[Answer]) -> Run:
        timings = [answer.finish().timing for answer in answers]
        began = time.perf_counter()
        for answer in answers:
            self._text(answer._ids)
        detokenise_ms = (time.perf_counter() - began) * 1e3
        return Run(
            {
                "prefill": sum(timing.prefill_ms for timing in timings),
                "decode": sum(
                    timing.first_token_ms - timing.prefill_ms + timing.decode_ms for timing in timings
                ),
                "detokenise": detokenise_ms,
            },
            {
                "prefilled": sum(answer.prefill_tokens for answer in answers),
                "steps": max(len(answer._logprobs) for answer in answers),
                "tokens": sum(answer.tokens for answer in answers),
            },
            answers[0].text,
        )

    def _report(self) -> Run:
        """So many tokens, whatever the model would have stopped at."""
        study = self._study()
        study.ask(FIRST_QUESTION, max_tokens=1).finish()  # the film is in the context
        language = self.reader._language
        question = prompts.Turn(prompts.task_question("report"))
        tail = language.tokenize(prompts.render([question], self.reader.bundle.manifest.prompting)[1])
        language.check_room(len(tail), self.report_tokens)
        began = time.perf_counter()
        prefilled = language.prefill(tail)
        prefill_ms = (time.perf_counter() - began) * 1e3
        steps = list(language.steps(stop_ids=(), max_tokens=self.report_tokens))
        began = time.perf_counter()
        text = self._text([step.token for step in steps])
        return Run(
            {
                "prefill": prefill_ms,
                "decode": sum(step.decode_ms for step in steps),
                "detokenise": (time.perf_counter() - began) * 1e3,
            },
            {"prefilled": prefilled, "steps": len(steps), "tokens": len(steps)},
            text,
        )

    def _text(self, ids: list[int]) -> str:
        return b"".join(map(self.reader._language.piece, ids)).decode("utf-8", "replace").strip()
