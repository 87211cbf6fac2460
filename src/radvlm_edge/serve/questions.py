"""An OpenAI chat request → film, turns, question and how to answer; anything not supported is refused."""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radvlm_edge.errors import RequestError
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.serve.shapes import Shape, read_shape

MOST_MESSAGES = 101
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""Escapes of JSON that may be half a character."""
STUDY_SCHEME = "study:"
MEDIA_TYPES = ("application/dicom", "image/png", "image/jpeg", "image/tiff", "application/octet-stream")
IGNORED = {"user", "metadata", "seed", "service_tier", "store", "safety_identifier", "prompt_cache_key"}
"""Change nothing: answers are greedy, so any seed gives the same, and nothing is stored."""
NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "temperature": (0,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "stop": ([],),
    "logit_bias": ({},),
    "tools": ([],),
    "modalities": (["text"],),
}
"""Parameters taken only at values that change nothing about a greedy answer."""
KNOWN = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "response_format",
    "logprobs", "top_logprobs", "guided_choice", *IGNORED, *NEUTRAL,
}  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """What a request asks for. Exactly one of `film` and `study` is set."""

    film: bytes | None
    """Content of an uploaded film."""
    study: str | None
    """Id of a study uploaded before."""
    turns: tuple[Turn, ...]
    """Answered turns before the question."""
    question: str
    max_tokens: int | None
    """`None`: as the service says."""
    stream: bool
    usage_chunk: bool
    """Whether a stream ends with its token counts (`stream_options.include_usage`)."""
    choices: tuple[str, ...] | None
    """Decide between these beginnings of an answer (`guided_choice`)."""
    shape: Shape | None
    logprobs: bool
    top_logprobs: int
    user: str | None = None
    """Who the client says asks (`user`), for the audit log alone."""


def read_chat(body: bytes, model: str) -> Chat:
    """Parse a request's JSON. Raises RequestError naming what cannot be honoured and what can."""
    asked = _json(body)
    strange = sorted(name for name, value in asked.items() if name not in KNOWN and value is not None)
    if strange:
        raise RequestError(
            f"{', '.join(strange)}: not supported here; supported are {', '.join(sorted(KNOWN))}"
        )
    for name, accepted in NEUTRAL.items():
        if asked.get(name) is not None and asked[name] not in accepted:
            raise RequestError(
                f"{name} {json.dumps(asked[name])[:80]}: answers are greedy and one; "
                f"leave it out or send {json.dumps(accepted[0])}"
            )
    wanted = asked.get("model")
    if wanted != model:
        raise RequestError(f"model {str(wanted)[:80]!r} is not here; {model!r} is", 404)
    film, study, turns, question = _messages(asked.get("messages"))
    choices = _choices(asked.get("guided_choice"))
    shape = read_shape(asked.get("response_format"), question)
    if (choices or shape) and turns:
        raise RequestError(
            "guided_choice and response_format ask about the film alone; leave out the earlier turns"
        )
    if choices and shape:
        raise RequestError("guided_choice and response_format exclude each other; send one")
    logprobs, top = _flag(asked, "logprobs"), _number(asked, "top_logprobs", 0, 20)
    if top and not logprobs:
        raise RequestError("top_logprobs needs logprobs: true")
    if top and not choices:
        raise RequestError(
            "top_logprobs are known for guided_choice only; without it each chosen token's own is given"
        )
    if logprobs and shape:
        raise RequestError(
            "logprobs with response_format: the JSON is not the model's text; `radvlm.decisions` in the "
            "reply has the probabilities"
        )
    options = asked.get("stream_options") or {}
    return Chat(
        film,
        study,
        turns,
        question,
        _number(asked, "max_completion_tokens", 1) or _number(asked, "max_tokens", 1),
        _flag(asked, "stream"),
        isinstance(options, Mapping) and options.get("include_usage") is True,
        choices,
        shape,
        logprobs,
        top or 0,
        asked["user"][:64] if isinstance(asked.get("user"), str) else None,
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the body is no JSON ({str(error)[:80]}); send a chat completion request"
        ) from None
    if not isinstance(asked, dict):
        raise RequestError("the body is no JSON object; send a chat completion request")
    if HALF.search(body) is not None:
        try:
            json.dumps(asked, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RequestError(
                "the body holds half a surrogate pair, which is no text; leave it out"
            ) from None
    return asked


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    value = asked.get(name)
    if value not in (None, True, False):
        raise RequestError(f"{name} is neither true nor false")
    return bool(value)


def _number(asked: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
        border = f"{least} to {most}" if most else f"{least} or more"
        raise RequestError(f"{name} {str(value)[:40]!r}: a whole number of {border} is wanted")
    return value


def _choices(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RequestError('guided_choice is no list of texts; ["Yes", "No"] is')
    return tuple(one.strip() for one in value)


def _messages(messages: object) -> tuple[bytes | None, str | None, tuple[Turn, ...], str]:
    """Film, study id, answered turns and question of a conversation."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages is empty or no list; send the film and a question as a user message")
    if len(messages) > MOST_MESSAGES:
        raise RequestError(f"{len(messages)} messages; at most {MOST_MESSAGES} are read")
    texts, images = [], []
    for index, message in enumerate(messages):
        wanted = ("user", "assistant")[index % 2]
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in ("system", "developer"):
            raise RequestError(
                f"message {index} has role {role!r}: the model was trained without a system prompt and would "
                "not heed it; leave it out"
            )
        if not isinstance(message, Mapping) or role != wanted:
            raise RequestError(f"message {index} has role {str(role)[:40]!r}; {wanted!r} is its turn")
        text, found = _parts(message.get("content"), index)
        if found and index:
            raise RequestError(f"message {index} holds a film; the first message alone does")
        texts.append(text)
        images += found
    if len(texts) % 2 == 0:
        raise RequestError("the last message is the assistant's; end with the user's question")
    if len(images) != 1:
        raise RequestError(
            f"{len(images)} films in the first message; exactly one is needed: an image_url part with a data "
            f"URL or `{STUDY_SCHEME}ID`"
        )
    turns = tuple(Turn(q, a) for q, a in zip(texts[:-1:2], texts[1::2], strict=True))
    if not all(turn.question.strip() and (turn.answer or "").strip() for turn in turns):
        raise RequestError("an earlier message is empty; leave that turn out")
    return *images[0], turns, texts[-1]


def _parts(content: object, index: int) -> tuple[str, list[tuple[bytes | None, str | None]]]:
    """Text and films of one message."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise RequestError(f"message {index} has no content; a text or a list of parts is")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        inner = part.get(kind) if isinstance(kind, str) else None
        if kind == "text" and isinstance(inner, str):
            texts.append(inner)
        elif kind == "image_url" and isinstance(inner, Mapping) and isinstance(inner.get("url"), str):
            images.append(_film(inner["url"]))
        elif kind == "file" and isinstance(inner, Mapping) and isinstance(inner.get("file_data"), str):
            images.append(_film(inner["file_data"]))
        elif kind == "file" and isinstance(inner, Mapping) and isinstance(inner.get("file_id"), str):
            images.append((None, inner["file_id"]))
        else:
            raise RequestError(
                f"message {index} has a part of type {str(kind)[:40]!r} that is not understood; text, "
                "image_url and file (file_data or file_id) are"
            )
    return "\n".join(texts), images


def _film(url: str) -> tuple[bytes | None, str | None]:
    """Content of a data URL (RFC 2397), or the id of a study."""
    if url.startswith(STUDY_SCHEME):
        return None, url[len(STUDY_SCHEME) :]
    if not url.startswith("data:"):
        raise RequestError(
            f"a film's address begins with {url[:12]!r}: nothing is ever fetched from here; send a data URL, "
            f"or `{STUDY_SCHEME}ID` of a film uploaded to /v1/studies"
        )
    head, comma, data = url[5:].partition(",")
    media, *options = head.split(";")
    if not comma or media.strip().lower() not in MEDIA_TYPES:
        raise RequestError(f"a data URL of type {media[:40]!r}; {', '.join(MEDIA_TYPES)} are accepted")
    if "base64" not in [option.strip().lower() for option in options]:
        return urllib.parse.unquote_to_bytes(data), None
    try:
        return base64.b64decode(data, validate=True), None
    except (binascii.Error, ValueError):
        raise RequestError(
            "a data URL's content is no base64; encode the whole file without line breaks"
        ) from None
