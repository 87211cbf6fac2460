"""What the worker does for a request, in its own thread; at every `yield` a client's leaving is noticed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from radvlm_edge.audit import AuditLog
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.choices import Choice
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.reader import Reader, Study
from radvlm_edge.serve.films import Library, upload_digest
from radvlm_edge.serve.metrics import Metrics
from radvlm_edge.serve.noting import noted
from radvlm_edge.serve.questions import Chat
from radvlm_edge.serve.settings import MAX_PIXELS
from radvlm_edge.serve.shapes import Filled, Property, Shape, fill
from radvlm_edge.serve.worker import Event, Work

Steps = Generator[Event, None, None]


@dataclass
class Result:
    """A finished answer; its JSON is written by `replies`."""

    study: Study
    text: str
    stop: str
    """`stop` or `length`, as OpenAI's finish_reason."""
    prompt_tokens: int = 0
    prefill_tokens: int = 0
    """Of them, really run for this answer; a film's first answer counts the film."""
    tokens: int = 0
    """Written."""
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0
    filled: Filled | None = None
    """Of a plain answer."""
    logprobs: list[dict[str, Any]] | None = None
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Choices made for it, with their probabilities."""
    look_ms: float | None = None
    """Reading and looking at the film, where this request did."""
    queue_ms: float = 0.0

    def add(self, part: Answer | Choice) -> None:
        """Count an answer or decision it is made of."""
        self.prompt_tokens += part.prompt_tokens
        self.prefill_tokens += part.prefill_tokens
        if isinstance(part, Answer):
            self.tokens += part.tokens
            self.prefill_ms += part.timing.prefill_ms
            self.first_token_ms = self.first_token_ms or part.timing.first_token_ms
            self.decode_ms += part.timing.decode_ms
        else:
            self.prefill_ms += part.prefill_ms
            self.first_token_ms = self.first_token_ms or part.prefill_ms
            self.decisions.append(
                {
                    "question": part.question,
                    "text": part.text,
                    "probabilities": part.probabilities,
                    "mass": part.mass,
                    "calibrated": part.calibrated,
                    "calibrated_on": part.confidence.calibrated_on,
                }
            )


@dataclass(frozen=True)
class Desk:
    """What work needs besides the reader."""

    studies: Library
    metrics: Metrics
    audit: AuditLog | None = None
    """Where answers are noted before they are given."""


def look(desk: Desk, content: bytes, *, render: str | None = None, frame: int | None = None) -> Work:
    """Look at a film, unless it is known, and keep it under a new id; yields the `Kept`."""

    def work(reader: Reader) -> Steps:
        digest = upload_digest(content, render, frame)
        known = desk.studies.find(digest)
        study = known.study if known else (yield from _look(desk, reader, content, render, frame))
        # Paid for here: the first answer counts its own question alone.
        desk.metrics.count("radvlm_prefilled_tokens_total", study.uncharged_tokens)
        study.uncharged_tokens, study.uncharged_ms = 0, 0.0
        yield desk.studies.add(study, digest)

    return work


def chat(desk: Desk, asked: Chat, who: Mapping[str, Any] | None = None) -> Work:
    """Answer a request; yields pieces of text, then the `Result`. `who` asks, for the audit log."""
    came_s = time.perf_counter()

    def work(reader: Reader) -> Steps:
        began_s = time.perf_counter()
        kept, look_ms = None, None
        if asked.study is not None:
            kept = desk.studies.get(asked.study)
            study = kept.study
        else:
            content = asked.film or b""
            digest = upload_digest(content, None, None)
            known = desk.studies.find(digest)
            if known is not None:
                study = known.study
            else:
                study = yield from _look(desk, reader, content, None, None)
                desk.studies.add(study, digest)  # known by its content alone: nobody is told the id
                look_ms = (time.perf_counter() - began_s) * 1e3
        result = yield from noted(desk.audit, study, asked, who, _answer(desk, study, asked))
        result.look_ms, result.queue_ms = look_ms, (began_s - came_s) * 1e3
        desk.metrics.answered(result)
        if kept is not None:
            kept.note({"question": asked.question, **summary(result)})
        yield result

    return work


def _look(
    desk: Desk, reader: Reader, content: bytes, render: str | None, frame: int | None
) -> Generator[Event, None, Study]:
    options, began_s = reader.options, time.perf_counter()
    film = load_film(
        content,
        render=render or options.render or reader.bundle.manifest.render,
        any_modality=options.any_modality,
        frame=options.frame if frame is None else frame,
        name="the film",
        max_pixels=MAX_PIXELS,
    )
    decode_ms = (time.perf_counter() - began_s) * 1e3
    yield None
    study = reader.look(film)
    study.looked.decode_film_ms = decode_ms
    # The K/V state is what further questions need; at 7B the image tokens would be 100 MB a film.
    study.encoded = None
    desk.metrics.looked(study)
    yield None
    return study


def _answer(desk: Desk, study: Study, asked: Chat) -> Generator[Event, None, Result]:
    if asked.choices is not None:
        choice = study.choose(asked.question, asked.choices)
        result = Result(study, choice.text, "stop", filled=Filled(choice.text))
        result.add(choice)
        result.logprobs = _choice_logprobs(choice, asked.top_logprobs) if asked.logprobs else None
        yield choice.text
        return result
    if asked.shape is not None:
        return (yield from _shaped(desk, study, asked.shape, asked.max_tokens))
    study.turns = list(asked.turns)
    answer = study.say(asked.question, max_tokens=_limit(study, asked.max_tokens))
    yield from _stream(desk, answer)
    result = Result(study, answer.text, _finish(answer), filled=_filled(answer))
    result.add(answer)
    if asked.logprobs:
        result.logprobs = [_token(piece, logprob) for piece, logprob in answer.token_logprobs]
    return result


def _shaped(desk: Desk, study: Study, shape: Shape, max_tokens: int | None) -> Generator[Event, None, Result]:
    """Fill a JSON shape: a decision or an answer for each of its questions, each asked once."""
    result = Result(study, "", "stop")
    said: dict[tuple[str, tuple[str, ...]], Filled] = {}
    answers: dict[Property, Filled] = {}
    for one in shape.properties:
        key = one.question, one.choices
        if key not in said and one.choices:
            choice = study.choose(*key)
            result.add(choice)
            said[key] = Filled(choice.text)
        elif key not in said:
            answer = study.ask(one.question, max_tokens=_limit(study, max_tokens))
            for _ in _stream(desk, answer):
                yield None
            result.add(answer)
            said[key] = _filled(answer)
        answers[one] = said[key]
        yield None
    result.text = json.dumps(fill(shape, answers), ensure_ascii=False)
    yield result.text
    return result


def _stream(desk: Desk, answer: Answer) -> Generator[str, None, None]:
    """Pieces of an answer; where the client leaves, the model stops writing."""
    started = False
    try:
        for piece in answer:
            text = piece if started else piece.lstrip()
            started = started or bool(text)
            yield text
    finally:
        answer.cancel()
        desk.metrics.written(answer)


def _limit(study: Study, max_tokens: int | None) -> int:
    """No longer than the service allows."""
    most = study.reader.options.max_tokens
    return most if max_tokens is None else min(max_tokens, most)


def _finish(answer: Answer) -> str:
    return "length" if answer.stop == "length" else "stop"


def _filled(answer: Answer) -> Filled:
    return Filled(answer.text, answer.boxes, answer.labels)


def _token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}


def _choice_logprobs(choice: Choice, top: int) -> list[dict[str, Any]]:
    """The decision as one token; the model's own probabilities, before they are made to sum to 1."""
    scored = [
        _token(text.encode(), math.log(max(share * choice.mass, 1e-300)))
        for text, share in choice.probabilities.items()
    ]
    scored.sort(key=lambda one: -one["logprob"])
    return [{**scored[0], "top_logprobs": scored[:top]}]


def summary(result: Result) -> dict[str, Any]:
    """What a page shows of an answer."""
    filled = result.filled or Filled(result.text)
    record: dict[str, Any] = {
        "text": result.text,
        "labels": list(filled.labels),
        "boxes": [
            {
                "label": box.label,
                "xyxy_fraction": list(box.xyxy_fraction),
                "xyxy_pixels": list(box.xyxy_pixels),
            }
            for box in filled.boxes
        ],
        "decisions": result.decisions,
        "stop": result.stop,
        "tokens": result.tokens,
        "prefill_tokens": result.prefill_tokens,
        "timing_ms": {
            "queue": round(result.queue_ms, 2),
            "prefill": round(result.prefill_ms, 2),
            "first_token": round(result.first_token_ms, 2),
            "decode": round(result.decode_ms, 2),
        },
    }
    if result.look_ms is not None:
        record["timing_ms"]["look"] = round(result.look_ms, 2)
    return record
