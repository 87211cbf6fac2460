"""Counts and times for Prometheus (text format 0.0.4); no label holds anything of a film or a question."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.reader import Study

if TYPE_CHECKING:
    from radvlm_edge.serve.work import Result

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms of one service; gauges are read when asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._times: dict[str, dict[Labels, list[float]]] = defaultdict(dict)
        self._gauges: dict[str, Callable[[], float]] = {}
        self._info: dict[str, str] = {}

    def describe(self, **labels: str) -> None:
        """What serves: version, bundle, artefacts."""
        self._info = labels

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        self._gauges[name] = read

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        with self._lock:
            self._counts[name][tuple(labels.items())] += by

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        with self._lock:
            buckets = self._times[name].setdefault(tuple(labels.items()), [0.0] * (len(BOUNDS_S) + 2))
            buckets[bisect_left(BOUNDS_S, seconds)] += 1
            buckets[-1] += seconds

    def looked(self, study: Study) -> None:
        """A film was looked at."""
        looked = study.looked
        self.count("radvlm_films_total", cache=study.cache)
        total_ms = (
            looked.decode_film_ms + looked.crops_ms + looked.vision_ms + looked.prefill_ms + looked.cache_ms
        )
        self.time("radvlm_look_seconds", total_ms / 1e3)

    def written(self, answer: Answer) -> None:
        """An answer ended, or was given up."""
        self.count("radvlm_generated_tokens_total", answer.tokens)
        self.count("radvlm_answers_total", stop=answer.stop)

    def answered(self, result: Result) -> None:
        self.count("radvlm_prefilled_tokens_total", result.prefill_tokens)
        self.count("radvlm_reused_tokens_total", max(result.prompt_tokens - result.prefill_tokens, 0))
        self.count("radvlm_decisions_total", len(result.decisions))
        self.time("radvlm_queue_seconds", result.queue_ms / 1e3)
        self.time("radvlm_first_token_seconds", result.first_token_ms / 1e3)
        self.time("radvlm_answer_seconds", (result.prefill_ms + result.decode_ms) / 1e3)

    def page(self) -> str:
        """Everything, as Prometheus scrapes it."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# TYPE radvlm_info gauge"
        yield f"radvlm_info{_labels(tuple(self._info.items()))} 1"
        for name, read in {**self._gauges, "process_resident_memory_bytes": resident_bytes}.items():
            yield f"# TYPE {name} gauge"
            yield f"{name} {read():g}"
        for name, counts in self._counts.items():
            yield f"# TYPE {name} counter"
            for labels, value in counts.items():
                yield f"{name}{_labels(labels)} {value:.17g}"
        for name, times in self._times.items():
            yield f"# TYPE {name} histogram"
            for labels, (*buckets, total) in times.items():
                held = 0.0
                for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=True):
                    held += count
                    yield f"{name}_bucket{_labels((*labels, ('le', bound)))} {held:g}"
                yield f"{name}_sum{_labels(labels)} {total:.9g}"
                yield f"{name}_count{_labels(labels)} {held:g}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((n, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for n, v in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def resident_bytes() -> int:
    """Memory this process has in RAM (Linux)."""
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
