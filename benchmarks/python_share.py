"""How much of a warm answer is Python: all of its time but that inside llama.cpp.

Every function of llama.cpp's bindings is timed where it is called; what is left is Python, numpy (the choice
of a token among the logits) and the timing itself, so the share is an upper bound. Times are CPU time of the
calling thread, which takes part in llama.cpp's work: what other processes take of the CPU is not counted.
Where a GPU works while that thread sleeps, the share is overestimated.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from radvlm_edge.runtime.llama_library import llama_cpp as library
from radvlm_edge.runtime.reader import Study

CALLS = (
    "llama_decode",
    "llama_get_logits_ith",
    "llama_memory_seq_cp",
    "llama_memory_seq_rm",
    "llama_tokenize",
    "llama_token_to_piece",
    "llama_batch_init",
    "llama_batch_free",
)
"""What an answer from the context is made of."""


@dataclass
class Spent:
    """Time inside llama.cpp, by function."""

    ms: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.ms[name] = self.ms.get(name, 0.0) + (time.thread_time() - began) * 1e3
                self.calls[name] = self.calls.get(name, 0) + 1

        return call


@contextlib.contextmanager
def watched() -> Iterator[Spent]:
    """Time llama.cpp's functions while the block runs."""
    spent = Spent()
    originals = {name: getattr(library, name) for name in CALLS}
    try:
        for name, function in originals.items():
            setattr(library, name, spent.timed(name, function))
        yield spent
    finally:
        for name, function in originals.items():
            setattr(library, name, function)


def share(study: Study, question: str, *, tokens: int, repeats: int = 5) -> dict[str, Any]:
    """Share of Python in answers of at most so many tokens, the film in the context; the least of several."""
    study.ask(question, max_tokens=tokens).finish()
    rows = []
    for _ in range(repeats):
        with watched() as spent:
            began = time.thread_time()
            answer = study.ask(question, max_tokens=tokens).finish()
            whole_ms = (time.thread_time() - began) * 1e3
        inside_ms = sum(spent.ms.values())
        rows.append((1 - inside_ms / whole_ms, whole_ms, inside_ms, spent, len(answer._logprobs)))
    least, whole_ms, inside_ms, spent, steps = min(rows, key=lambda row: row[0])
    return {
        "share": round(least, 4),
        "answer_cpu_ms": round(whole_ms, 3),
        "llama_cpu_ms": round(inside_ms, 3),
        "steps": steps,
        "calls": spent.calls,
    }
