"""Conversations from language models: a local GGUF through llama.cpp, or an endpoint the user names."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.conversation_facts import MAX_ROUNDS, ConversationError, Facts
from radvlm_edge.training.instructions import boxes_text

KEY = "RADVLM_EDGE_WRITER_KEY"
"""Environment variable with the endpoint's key."""
MAX_TOKENS = 2048
_INSTRUCTIONS = """You write training conversations for an assistant that looks at chest X-rays.
Write one conversation of 5 to {most} questions between a user and the assistant about the film described
below. The assistant answers as if it saw the film: it never mentions the description, and it never speaks
of earlier films, changes, or other examinations. It says nothing that the description does not support.
{grounded}
Answer with a JSON list only: [{{"from": "human", "value": "..."}}, {{"from": "gpt", "value": "..."}}, ...]"""
_GROUNDED = """Some questions ask where an observation is located on the image; the assistant then gives the
observation's box exactly as written below, as [x_min, y_min, x_max, y_max], and no other box."""
_PLAIN = "Give no coordinates."
_FILTER = """Rewrite this radiology report so that it describes this film alone: leave out comparisons with
earlier films, changes over time, views, technique and communications. Keep every finding and every negative
as it is worded, add nothing. Answer with the rewritten report only."""

Complete = Callable[[str, str, int], str]
"""(system, user, seed) → the model's text."""


def describe(facts: Facts) -> str:
    """What a model is told about a film."""
    lines = [f"Report: {facts.report}"] if facts.report else []
    if facts.labels is not None:
        lines.append(f"Findings present: {', '.join(sorted(facts.labels.present)) or 'none'}")
        if facts.labels.absent:
            lines.append(f"Findings absent: {', '.join(sorted(facts.labels.absent))}")
    if facts.view:
        lines.append(f"View: {facts.view}")
    if facts.sex:
        lines.append(f"Sex: {facts.sex}")
    lines += [f"Observation: {one.text} {boxes_text(one.boxes)}" for one in facts.phrases]
    return "\n".join(lines)


def parse_conversation(text: str) -> list[Turn]:
    """Turns of a model's JSON list; what surrounds the list is ignored.

    Raises ConversationError unless it is a list of human and gpt values in turn, human first, gpt last.
    """
    start, end = text.find("["), text.rfind("]")
    try:
        said = json.loads(text[start : end + 1])
        pairs = [(str(one["from"]), one["value"]) for one in said]
    except (ValueError, TypeError, KeyError) as error:
        raise ConversationError("no JSON list of turns") from error
    if not pairs or [who for who, _ in pairs] != ["human", "gpt"] * (len(pairs) // 2):
        raise ConversationError("turns out of order")
    if not all(isinstance(value, str) for _, value in pairs):
        raise ConversationError("a turn that is no text")
    values = [value.strip() for _, value in pairs]
    return [Turn(question, answer) for question, answer in zip(values[::2], values[1::2], strict=True)]


class Replies:
    """A model's replies kept on disk, so that a resumed or repeated build asks nothing twice."""

    def __init__(self, path: Path, complete: Complete, model: str) -> None:
        self._path, self._complete, self._model = path, complete, model
        self._kept: dict[str, str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # a line cut off by a kill is asked for again
                    one = json.loads(line)
                    self._kept[one["asked"]] = one["said"]
            whole = "".join(
                json.dumps({"asked": asked, "said": said}) + "\n" for asked, said in self._kept.items()
            )
            path.write_text(whole, encoding="utf-8")

    def __call__(self, system: str, user: str, seed: int) -> str:
        from radvlm_edge.training.dataset_shards import digest

        asked = digest(json.dumps([self._model, system, user, seed]).encode())
        if asked not in self._kept:
            said = self._complete(system, user, seed)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": asked, "said": said}) + "\n")
            self._kept[asked] = said
        return self._kept[asked]


class ModelWriter:
    """Asks a language model, and reads its JSON."""

    def __init__(self, name: str, complete: Complete) -> None:
        self.name, self._complete = name, complete

    def write(self, facts: Facts, rng: np.random.Generator) -> list[Turn]:
        grounded = _GROUNDED if facts.phrases else _PLAIN
        system = _INSTRUCTIONS.format(most=MAX_ROUNDS, grounded=grounded)
        return parse_conversation(self._complete(system, describe(facts), int(rng.integers(2**31))))

    def rewrite(self, report: str) -> str:
        """A report without comparisons, in the model's words; unchecked."""
        return " ".join(re.sub(r"^```\w*|```$", "", self._complete(_FILTER, report, 0).strip()).split())


def gguf(path: Path, context: int = 8192, max_tokens: int = MAX_TOKENS) -> Complete:
    """A local model at temperature 0.7, seeded. Raises BackendError for a file it cannot load."""
    if not path.is_file():
        raise BackendError(f"{path}: no such GGUF; name a local instruction-tuned model with --writer-model")
    from llama_cpp import Llama

    try:
        model = Llama(str(path), n_ctx=context, verbose=False)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise BackendError(f"{path}: llama.cpp cannot load it: {error}") from error

    def complete(system: str, user: str, seed: int) -> str:
        messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        model.reset()
        answer: Any = model.create_chat_completion(
            messages, max_tokens=max_tokens, temperature=0.7, seed=seed
        )
        return str(answer["choices"][0]["message"]["content"] or "")

    return complete


def endpoint(url: str, model: str, timeout_s: float = 300.0) -> Complete:
    """An OpenAI-compatible service, e.g. http://localhost:8000/v1; its key from RADVLM_EDGE_WRITER_KEY.

    Nothing is sent anywhere unless the user names the address: a data use agreement may forbid it.
    """

    def complete(system: str, user: str, seed: int) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": MAX_TOKENS,
            "seed": seed,
            "temperature": 0.7,
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(
            f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                answer = json.load(reply)
            return str(answer["choices"][0]["message"]["content"] or "")
        except (urllib.error.URLError, TimeoutError, ValueError, KeyError, IndexError, TypeError) as error:
            raise BackendError(f"{url}: the conversation writer did not answer: {error}") from error

    return complete
