"""Prompt → answer tokens: prefill a prefix once, fork it for every question, decode greedily."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import BackendError, QuestionError
from radvlm_edge.runtime.choices import score, score_many
from radvlm_edge.runtime.drafting import Drafter, Phrases
from radvlm_edge.runtime.llama import PREFIX, TAIL, Buffer, Llama, Row, build_identity
from radvlm_edge.runtime.many import Together, Written, common_stem
from radvlm_edge.runtime.overlap import Coming
from radvlm_edge.runtime.prefill import SplitPrefill
from radvlm_edge.runtime.vision import available_cpus


@dataclass(frozen=True)
class Step:
    """One decoded token."""

    token: int
    logprob: float
    """Natural logarithm of the probability the model gave this token."""
    decode_ms: float
    """Time since the previous step (for the first: since the prefill began)."""


class LanguageModel:
    """A language artefact in llama.cpp, holding one prefix and one tail of positions."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int | None = None,
        gpu_layers: int | None = None,
        flash_attention: str | None = None,
        kv_type: str | None = None,
        repack: bool = True,
    ) -> None:
        self._llama = Llama(
            path,
            context=context,
            threads=threads or available_cpus(),
            gpu_layers=gpu_layers,
            flash_attention=flash_attention,
            kv_type=kv_type,
            repack=repack,
        )
        self.prefix_tokens = 0
        self.passes = 0
        """Passes over the weights the last answer's tokens took, the prefill's apart."""
        self.split: SplitPrefill | None = None
        """Another engine for embeddings; `None`: llama.cpp runs them too."""
        self.spent_ms: dict[str, float] = {}
        """What each engine took of the last `start`."""
        self.notes: list[str] = []
        """Trouble with the other engine, one line each; llama.cpp ran what it should have."""
        self._head: list[int] = []
        self._tail: list[int] = []

    @property
    def engine(self) -> Llama:
        """llama.cpp's model and context."""
        return self._llama

    @property
    def context(self) -> int:
        """Positions the context can hold."""
        return self._llama.context

    def close(self) -> None:
        self._llama.close()

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        return self._llama.tokenize(text, special=special)

    def piece(self, token: int) -> bytes:
        return self._llama.piece(token)

    def identity(self) -> dict[str, object]:
        """Engine and settings a saved prefix is only valid for."""
        return {**build_identity(), **self._llama.settings}

    def prefill_identity(self) -> dict[str, object] | None:
        """The same of the engine that prefills embeddings, if it is another one."""
        return self.split.described() if self.split is not None else None

    def start(self, items: Sequence[list[int] | npt.NDArray[np.float32] | Coming]) -> int:
        """Prefill a new prefix from token ids and embeddings `[t, d]`; return how many were really run.

        Embeddings may still be coming (overlap.py): they are run in the same batches as they arrive.

        Ids the prefix begins with (the prompt's static head) are kept if the last prefix began with
        the same: one pass over the weights less, bitwise the same, since they are a batch of their own.
        """
        head = items[0] if items and isinstance(items[0], list) else []
        if head and head == self._head:
            self._llama.forget(TAIL)
            self._llama.forget(PREFIX, len(head))
            self.prefix_tokens, self._tail = len(head), []
            items = items[1:]
        else:
            self.clear()
        kept, self.spent_ms = self.prefix_tokens, {}
        for item in items:
            if len(item):
                began, waited_ms = time.perf_counter(), _waited_ms(item)
                other = self.split if not isinstance(item, list) and self._hand_over(item) else None
                if other is None:
                    self._llama.decode(item, self.prefix_tokens, PREFIX)
                name = other.engine.backend if other is not None else "llama.cpp"
                took_ms = (time.perf_counter() - began) * 1e3 - (_waited_ms(item) - waited_ms)
                self.spent_ms[name] = self.spent_ms.get(name, 0.0) + took_ms
                self.prefix_tokens += len(item)
        self._head = head
        return self.prefix_tokens - kept

    def _hand_over(self, embeddings: npt.NDArray[np.float32] | Coming) -> bool:
        """Prefill embeddings in the other engine; False, and a note, if that is left to llama.cpp.

        Raises what the tower raised, if they were still coming and it gave up.
        """
        if self.split is None:
            return False
        before = self._llama.save(PREFIX)
        try:
            self._llama.restore(PREFIX, self.split.extend(before, embeddings))
            held = self._llama.length(PREFIX)
            if held != self.prefix_tokens + len(embeddings):
                raise BackendError(f"llama.cpp holds {held} tokens of the K/V it was given")
        except BackendError as error:
            if isinstance(embeddings, Coming) and embeddings.failed:
                raise
            self.notes.append(f"{error}; llama.cpp prefills from here on")
            self.split = None
            self._llama.forget(PREFIX)
            if self.prefix_tokens:
                self._llama.restore(PREFIX, before)
            return False
        return True

    def clear(self) -> None:
        self._llama.forget(TAIL)
        self._llama.forget(PREFIX)
        self.prefix_tokens, self._head, self._tail = 0, [], []

    def prefix_bytes(self) -> int:
        """Size of what `save_prefix` would return."""
        return self._llama.state_bytes(PREFIX)

    def save_prefix(self) -> bytearray:
        return self._llama.save(PREFIX)

    def restore_prefix(self, state: Buffer, tokens: int) -> None:
        """Put back a prefix of `tokens` tokens saved by `save_prefix`, without prefilling it.

        Raises BackendError, and holds no prefix then, for a state llama.cpp refuses or of another length.
        """
        self.clear()
        self._llama.restore(PREFIX, state)
        if self._llama.length(PREFIX) != tokens:
            held = self._llama.length(PREFIX)
            self.clear()
            raise BackendError(f"a saved K/V state holds {held} tokens instead of {tokens}; look again")
        self.prefix_tokens = tokens

    def prefill(self, tail: list[int], *, reuse: bool = False) -> int:
        """Run `tail` behind the prefix; return how many tokens were really prefilled.

        With `reuse`, tokens the previous tail (question and answer) shares with this one are kept:
        right for the next turn of a conversation. Without it every question starts from the bare
        prefix, so its answer cannot depend on what was asked before.
        """
        kept = _shared(self._tail, tail) if reuse else 0
        kept = min(kept, len(tail) - 1)
        if kept:
            self._llama.forget(TAIL, self.prefix_tokens + kept)
        else:
            self._llama.fork(PREFIX, TAIL)
        self._tail = tail[:kept]
        self._llama.decode(tail[kept:], self.prefix_tokens + kept, TAIL)
        self._tail = list(tail)
        return len(tail) - kept

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits `[vocab]` after the last token run."""
        return self._llama.logits()

    def generate(
        self, tail: list[int], *, stop_ids: Sequence[int], max_tokens: int, reuse: bool = False
    ) -> Iterator[int]:
        """Prefill `tail` and yield the greedy answer's token ids; a stop id is yielded last."""
        self.check_room(len(tail), max_tokens)
        self.prefill(tail, reuse=reuse)
        for step in self.steps(stop_ids=stop_ids, max_tokens=max_tokens):
            yield step.token

    def steps(
        self, *, stop_ids: Sequence[int], max_tokens: int, phrases: Phrases | None = None
    ) -> Iterator[Step]:
        """Decode greedily after `prefill`; a stop id is yielded last and not run.

        With `phrases`, the next tokens are guessed and checked in one pass (drafting.py).
        """
        drafter = Drafter(phrases, self._tail, stop_ids) if phrases is not None else None
        self.passes, left, guessed = 0, max_tokens, list[int]()
        began, rows = time.perf_counter(), self._llama.peek()[None]
        while True:
            right = 0
            for logits, expected in zip(rows, [*guessed, None], strict=True):
                token = int(logits.argmax())
                logprob = _logprob(logits, token)
                now = time.perf_counter()
                yield Step(token, logprob, (now - began) * 1e3)
                left -= 1
                if token in stop_ids or not left:
                    return  # guesses behind it are forgotten by the next prefill
                began = time.perf_counter()
                if drafter is not None:
                    drafter.add(token)
                if token != expected:
                    break
                self._tail.append(token)
                right += 1
            if drafter is not None:
                if guessed:
                    self._llama.forget(TAIL, self.prefix_tokens + len(self._tail))
                    drafter.learn(len(guessed), right)
                guessed = drafter.guess(left - 1)
            rows = self._next_rows([token, *guessed])
            self._tail.append(token)

    def _next_rows(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Run tokens behind the tail; logits `[n, vocab]` after each."""
        self.passes += 1
        start = self.prefix_tokens + len(self._tail)
        if len(tokens) == 1:
            self._llama.step(tokens[0], start, TAIL)
            return self._llama.peek()[None]
        return self._llama.run([Row(token, start + at, TAIL, True) for at, token in enumerate(tokens)])

    def write_together(
        self,
        tails: Sequence[list[int]],
        *,
        stop_ids: Sequence[int],
        max_tokens: int,
        watched: Sequence[int] = (),
    ) -> list[Written]:
        """Greedy answers to several tails behind the prefix, decoded as one batch (many.py).

        Each must fit the context alone (`check_room`). The logits of `watched` tokens are kept where each
        answer begins.
        """
        self._tail = []
        together = Together(
            self._llama,
            tails,
            prefix_tokens=self.prefix_tokens,
            stop_ids=stop_ids,
            max_tokens=max_tokens,
            watched=watched,
        )
        return together.run()

    def score(self, tail: list[int], choices: Sequence[list[int]]) -> tuple[list[float], int]:
        """Log probability of each choice (token ids) as what follows prefix and tail; tokens run for it."""
        prefilled = self.prefill(tail)
        scores, run = score(self._llama, choices, position=self.prefix_tokens + len(tail))
        return scores, prefilled + run

    def score_together(
        self, tails: Sequence[list[int]], choices: Sequence[list[int]]
    ) -> tuple[list[list[float]], int]:
        """As `score`, for several tails in one batch; what all begin with is run once."""
        self._tail = []
        stem = common_stem(tails)
        try:
            self._llama.fork(PREFIX, TAIL)
            if stem:
                self._llama.decode(stem, self.prefix_tokens, TAIL)
            rests = [tail[len(stem) :] for tail in tails]
            scores, run = score_many(self._llama, rests, choices, position=self.prefix_tokens + len(stem))
        finally:
            self._llama.forget(TAIL)
        return scores, len(stem) + run

    def check_room(self, tail_tokens: int, max_tokens: int) -> None:
        """Raise QuestionError unless prefix, tail and answer fit the context."""
        room = self.context - self.prefix_tokens - max_tokens
        if tail_tokens > room:
            raise QuestionError(
                f"question of {tail_tokens} tokens does not fit: the context of {self.context} holds "
                f"{self.prefix_tokens} for the film and {max_tokens} for the answer; "
                f"at most {max(room, 0)} are left; shorten it or lower --max-tokens"
            )


def _waited_ms(item: list[int] | npt.NDArray[np.float32] | Coming) -> float:
    return item.waited_ms if isinstance(item, Coming) else 0.0


def _shared(held: list[int], wanted: list[int]) -> int:
    """Length of the common beginning of two token lists."""
    for index, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return index
    return min(len(held), len(wanted))


def _logprob(logits: npt.NDArray[np.float32], best: int) -> float:
    """Natural logarithm of the probability of the likeliest token."""
    return -math.log(float(np.exp(logits - logits[best]).sum(dtype=np.float64)))
