"""What goes back: OpenAI's chat completion objects, with this service's own under `radvlm`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from radvlm_edge.errors import (
    BusyError,
    FilmError,
    QuestionError,
    RadvlmError,
    RequestError,
)
from radvlm_edge.runtime.prompts import TASKS, task_questions
from radvlm_edge.runtime.reader import Reader
from radvlm_edge.serve.films import Kept
from radvlm_edge.serve.questions import Chat
from radvlm_edge.serve.work import Result, summary

NOTICE = "AI output for research, not for diagnosis."
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class Completion:
    """The objects of one reply, which share an id and a time."""

    def __init__(self, reader: Reader, asked: Chat) -> None:
        self._model, self._provenance = reader.bundle.manifest.name, provenance(reader)
        self._asked = asked
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, text: str, result: Result) -> dict[str, Any]:
        """The reply to a request that does not stream."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(result),
            "finish_reason": result.stop,
        }
        return {
            **self._base("chat.completion"),
            "choices": [choice],
            "usage": usage(result),
            "radvlm": self._own(result),
        }

    def chunks(self, events: list[Any]) -> Iterator[dict[str, Any]]:
        """The chunks some events become; the first brings the role, the last the counts."""
        for event in events:
            if isinstance(event, Result):
                yield from self._last(event)
            elif event:
                yield self._chunk({"content": event})

    def first(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def _last(self, result: Result) -> Iterator[dict[str, Any]]:
        end = self._chunk({}, result.stop, _logprobs(result))
        yield {**end, "radvlm": self._own(result)}
        if self._asked.usage_chunk:
            yield {**self._base("chat.completion.chunk"), "choices": [], "usage": usage(result)}

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._base("chat.completion.chunk"), "choices": [choice]}

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _own(self, result: Result) -> dict[str, Any]:
        own = {**summary(result), **self._provenance, "render": result.study.film.render, "notice": NOTICE}
        own["warnings"] = [*result.study.film.warnings, *result.study.notes]
        return own


def usage(result: Result) -> dict[str, Any]:
    """Token counts; `cached_tokens` are those of the prompt that were not run again."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.tokens,
        "total_tokens": result.prompt_tokens + result.tokens,
        "prompt_tokens_details": {"cached_tokens": max(result.prompt_tokens - result.prefill_tokens, 0)},
    }


def _logprobs(result: Result) -> dict[str, Any] | None:
    if result.logprobs is None:
        return None
    return {"content": [{"top_logprobs": [], **one} for one in result.logprobs], "refusal": None}


def provenance(reader: Reader) -> dict[str, Any]:
    """Which model says so."""
    return {
        "bundle": {
            "name": reader.bundle.manifest.name,
            "sha256": reader.bundle.sha256,
            "demonstration": reader.bundle.manifest.demonstration,
        },
        "vision": reader.vision_artefact.precision,
        "language": reader.language_artefact.precision,
        "fidelity": reader.fidelity,
    }


def models(reader: Reader, started_s: int) -> dict[str, Any]:
    """The list of one model; RadVLM's own wordings of its tasks are under `radvlm`."""
    own = {
        **provenance(reader),
        "tasks": TASKS,
        "checklist": task_questions("checklist"),
        "max_tokens": reader.options.max_tokens,
        "notice": NOTICE,
    }
    model = {
        "id": reader.bundle.manifest.name,
        "object": "model",
        "created": started_s,
        "owned_by": "radvlm-edge",
        "radvlm": own,
    }
    return {"object": "list", "data": [model]}


def study(kept: Kept) -> dict[str, Any]:
    """A study as its client sees it; nothing of the file's header but view, spacing and orientation."""
    film, layout, looked = kept.study.film, kept.study.layout, kept.study.looked
    timing = {
        "decode_film": looked.decode_film_ms,
        "crops": looked.crops_ms,
        "vision": looked.vision_ms,
        "prefill": looked.prefill_ms,
        "cache": looked.cache_ms,
    }
    return {
        "id": kept.id,
        "object": "study",
        "created": kept.created_s,
        "film": {
            "height": layout.height,
            "width": layout.width,
            "spacing_mm": list(film.spacing_mm) if film.spacing_mm else None,
            "orientation": list(film.orientation) if film.orientation else None,
            "view": film.view,
            "render": film.render,
        },
        "image_tokens": layout.image_tokens,
        "crops": layout.crops,
        "cache": kept.study.cache,
        "warnings": [*film.warnings, *kept.study.notes],
        "timing_ms": {name: round(value, 2) for name, value in timing.items()},
        "history": kept.history,
    }


def status_of(error: RadvlmError) -> int:
    """HTTP status of an error of ours: the client's fault (4xx) or the service's."""
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, (FilmError, QuestionError)) else 500


def complaint(message: str, status: int) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def complaint_headers(error: RadvlmError) -> dict[str, str]:
    if isinstance(error, BusyError):
        return {"Retry-After": str(error.retry_after_s)}
    return {}


def sse(record: dict[str, Any] | str) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2)."""
    data = (
        record if isinstance(record, str) else json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    )
    return f"data: {data}\n\n".encode("utf-8", "replace")
