"""Turns → token ids under the checkpoint's own chat template, and which of them are learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer  # type: ignore[import-untyped]

from radvlm_edge.bundle import Prompting
from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.prompts import Turn, render


@dataclass(frozen=True)
class Speech:
    """One conversation behind a film's tokens."""

    ids: list[int]
    taught: list[bool]
    """Whether a token is a target: an answer's, and what ends it."""
    weight: float = 1.0
    """Of the whole conversation in the loss."""

    @property
    def targets(self) -> int:
        return sum(self.taught)

    def cut(self, length: int) -> Speech:
        """Its first `length` tokens."""
        return replace(self, ids=self.ids[:length], taught=self.taught[:length])


class Speaker:
    """Writes conversations as inference puts them: rendered by `runtime.prompts`, tokenised piece by piece.

    An answer's first token follows the generation prompt and is never merged with it. `system` is put before
    everything through the same template.
    """

    def __init__(self, prompting: Prompting, tokenizer: Mapping[str, Any], system: str = "") -> None:
        self._tokenizer = Tokenizer.from_str(json.dumps(tokenizer))
        if system:
            said = json.dumps([{"role": "system", "content": [{"type": "text", "text": system}]}])
            template = f"{{% set messages = {said} + messages %}}{prompting.chat_template}"
            prompting = replace(prompting, chat_template=template)
        self._prompting = prompting
        self.head = self._ids(render([Turn("?")], prompting)[0])
        """Ids before the image."""

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def speech(self, turns: Sequence[Turn], weight: float = 1.0, name: str = "a pair") -> Speech:
        """Ids behind the image.

        Raises RecipeError for control tokens in the text, or a template that rewrites earlier turns.
        """
        self._refuse_control_tokens(turns, name)
        text = render(turns, self._prompting)[1]
        ids, taught, at = list[int](), list[bool](), 0
        for index, turn in enumerate(turns):
            asked = render([*turns[:index], Turn(turn.question)], self._prompting)[1]
            answer = turn.answer or ""
            if not text.startswith(asked + answer) or len(asked) < at:
                raise RecipeError(
                    f"{name}: the chat template writes turn {index + 1} differently once it is answered"
                )
            for piece, learned in ((asked[at:], False), (answer, True)):
                new = self._ids(piece)
                ids += new
                taught += [learned] * len(new)
            at = len(asked) + len(answer)
        # what ends an answer is learned too: it opens the piece behind each answer
        end = self._ids(text[at:])[:1]
        if not end or end[0] not in self._prompting.stop_ids:
            raise RecipeError(
                f"{name}: the chat template puts {text[at:][:20]!r} behind an answer, which ends none "
                f"(ids {list(self._prompting.stop_ids)} do)"
            )
        ids, taught = [*ids, *end], [*taught, True]
        for place in range(1, len(ids)):
            taught[place] |= taught[place - 1] and ids[place] == end[0]
        return Speech(ids, taught, weight)

    def _refuse_control_tokens(self, turns: Sequence[Turn], name: str) -> None:
        for turn in turns:
            if not turn.answer:
                raise RecipeError(f"{name}: a question has no answer; build the data set again")
            for token in self._prompting.special_tokens:
                if token in turn.question or token in turn.answer:
                    raise RecipeError(f"{name}: its text holds the control token {token!r}; take it out")
