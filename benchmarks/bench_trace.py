"""A timeline of a start, a cold look and an answer: a Chrome trace (chrome://tracing, Perfetto); drawn."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radvlm_edge.benchmarks.bench_cases import FIRST_QUESTION
from radvlm_edge.benchmarks.plot import Picture, Span, timeline
from radvlm_edge.errors import OutputError
from radvlm_edge.runtime import anyres, crops
from radvlm_edge.runtime import reader as stage
from radvlm_edge.runtime.reader import Options, Reader

Place = tuple[Any, str, str, Callable[..., tuple[str, dict[str, int]]]]
"""Owner, attribute, track, and what a call is named."""


@dataclass
class Trace:
    """Spans on named tracks, in milliseconds since it began."""

    spans: list[Span] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)
    """What each span did, beside it."""
    began: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def watch(self, track: str, name: Callable[..., tuple[str, dict[str, int]]], function: Any) -> Any:
        """The function, with a span for every call; `name` makes of its arguments a name and counts."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                end = time.perf_counter()
                called, counts = name(*arguments, **named)
                span = Span(track, called, (start - self.began) * 1e3, (end - start) * 1e3)
                with self._lock:  # stages may run in threads of their own
                    self.spans.append(span)
                    self.counts.append(counts)

        return timed

    def chrome(self) -> dict[str, Any]:
        """Trace Event Format: complete events (`ph` X), microseconds."""
        tracks = list(dict.fromkeys(span.track for span in self.spans))
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": track}}
            for number, track in enumerate(tracks)
        ]
        events = [
            {
                "name": span.name,
                "ph": "X",
                "ts": round(span.start * 1e3, 1),
                "dur": round(span.length * 1e3, 1),
                "pid": 1,
                "tid": tracks.index(span.track),
                "args": counts,
            }
            for span, counts in zip(self.spans, self.counts, strict=True)
        ]
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


@contextlib.contextmanager
def traced(reader: Reader, trace: Trace) -> Iterator[None]:
    """Watch a reader's stages while the block runs."""
    llama = reader._language._llama
    places: list[Place] = [
        (reader, "_load", "film", lambda *_: ("DICOM", {})),
        (crops, "cut", "film", lambda *_: ("crops", {})),
        (reader.tower, "encode", "vision", lambda views: ("vision", {"crops": len(views)})),
        (anyres.Packer, "add", "vision", lambda packer, features: ("pack", {"crops": len(features)})),
        (llama, "_decode_batch", "language", _batch),
        (llama, "step", "language", lambda *_: ("decode", {"tokens": 1})),
    ]
    with _watching(trace, places):
        yield


@contextlib.contextmanager
def _watching(trace: Trace, places: list[Place]) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for owner, attribute, track, name in places:
            original = getattr(owner, attribute)
            own = attribute in vars(owner)
            setattr(owner, attribute, trace.watch(track, name, original))
            if own:
                undo.callback(setattr, owner, attribute, original)
            else:
                undo.callback(delattr, owner, attribute)
        yield


def _batch(items: Any, *_: Any) -> tuple[str, dict[str, int]]:
    return "decode" if len(items) == 1 else "prefill", {"tokens": len(items)}


def record(reader: Reader, film: bytes) -> Trace:
    """One cold look and answer, watched; a reader that has looked before is warm."""
    reader._language.clear()
    trace = Trace()
    with traced(reader, trace):
        reader.look(film).ask(FIRST_QUESTION).finish()
    return trace


def record_start(bundle: Path, options: Options, film: Path) -> Trace:
    """A bundle opened anew, with the film read meanwhile where it pays, then one cold look and answer."""
    trace = Trace()
    places: list[Place] = [
        (stage, "load_film", "film", lambda *_, **__: ("DICOM", {})),
        (crops, "cut", "film", lambda *_: ("crops", {})),
        (stage, "open_for", "vision", lambda *_, **__: ("open tower", {})),
        (stage, "LanguageModel", "language", lambda *_, **__: ("open language model", {})),
    ]
    with contextlib.ExitStack() as opened:
        with _watching(trace, places):
            reader = opened.enter_context(Reader.open(bundle, options, ahead=film))
        with traced(reader, trace):
            reader.look(film).ask(FIRST_QUESTION).finish()
    return trace


def write_trace(trace: Trace, path: Path) -> Path:
    """Write the JSON, and the picture beside it under the same name with .png. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(trace.chrome(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: trace not written: {error.strerror}") from error
    picture = Picture(1200, 290)
    picture.text(24, 16, "a bundle opened, a cold look and answer")
    timeline(picture, 60, trace.spans)
    drawn = path.with_suffix(".png")
    picture.save(drawn)
    return drawn
