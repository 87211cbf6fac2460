"""Several questions about one film answered together: a step reads the weights once for all of them.

Every question is a sequence forked from the film's prefix; one that has ended leaves the batch. Answers are
greedy, as one by one; the engine sums a batch in another order, so logits differ in their last bits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from radvlm_edge.runtime.llama import BRANCHES, FIRST_BRANCH, PREFIX, TAIL, Llama, Row

EXPECTED_TOKENS = 64
"""Context set aside for each answer when a batch is made up, if it may be longer. Should the context run
out all the same, the batch's last question is put off and starts anew in the next batch."""


@dataclass
class Written:
    """One answer's tokens and what they took; times of a batch are shared equally by those in it."""

    ids: list[int] = field(default_factory=list)
    """Without the stop token."""
    logprobs: list[float] = field(default_factory=list)
    """Natural logarithm of each token's probability, the stop token's included."""
    watched: list[float] = field(default_factory=list)
    """Logits of the watched tokens where its first was chosen."""
    stop: str = "length"
    prefilled: int = 0
    """Tokens run for it before its answer; the first question counts what all begin with."""
    prefill_ms: float = 0.0
    first_ms: float = 0.0
    """Choosing the first token."""
    decode_ms: float = 0.0

    def spend(self, part_ms: float) -> None:
        """Count the time of the token just chosen."""
        if len(self.logprobs) == 1:
            self.first_ms += part_ms
        else:
            self.decode_ms += part_ms


@dataclass
class _Branch:
    """A question in the running batch."""

    index: int
    sequence: int
    position: int
    """Where its next token goes."""


class Together:
    """Greedy answers to several tails (token ids behind the prefix), each of which fits the context alone."""

    def __init__(
        self,
        llama: Llama,
        tails: Sequence[list[int]],
        *,
        prefix_tokens: int,
        stop_ids: Sequence[int],
        max_tokens: int,
        watched: Sequence[int] = (),
    ) -> None:
        self._watched = list(watched)
        self._llama, self._stop_ids, self._max_tokens = llama, stop_ids, max_tokens
        self._stem = common_stem(tails)
        self._rests = [tail[len(self._stem) :] for tail in tails]
        self._prefix = prefix_tokens
        self._base = prefix_tokens + len(self._stem)
        self._written = [Written() for _ in tails]
        self._mark = 0.0

    def run(self) -> list[Written]:
        """Answer all of them, `BRANCHES` or what the context holds at a time."""
        self._mark = time.perf_counter()
        waiting = deque(range(len(self._rests)))
        try:
            self._llama.fork(PREFIX, TAIL)
            if self._stem:
                self._llama.decode(self._stem, self._prefix, TAIL)
            self._written[0].prefilled += len(self._stem)
            while waiting:
                put_off = self._batch(self._admit(waiting))
                waiting.extendleft(reversed(put_off))
        finally:
            for sequence in (TAIL, *range(FIRST_BRANCH, FIRST_BRANCH + BRANCHES)):
                self._llama.forget(sequence)
        return self._written

    def _admit(self, waiting: deque[int]) -> list[_Branch]:
        """Take the next questions that fit the context together; always at least one."""
        branches: list[_Branch] = []
        room = self._llama.context - self._base
        while waiting and len(branches) < BRANCHES:
            room -= len(self._rests[waiting[0]]) + min(self._max_tokens, EXPECTED_TOKENS)
            if room < 0 and branches:
                break
            sequence = FIRST_BRANCH + len(branches)
            self._llama.fork(TAIL, sequence)
            branches.append(_Branch(waiting.popleft(), sequence, self._base))
        return branches

    def _batch(self, going: list[_Branch]) -> list[int]:
        """Answer some questions together; returns those put off for want of room."""
        rows = []
        for branch in going:
            rest = self._rests[branch.index]
            rows += [
                Row(token, self._base + at, branch.sequence, at + 1 == len(rest))
                for at, token in enumerate(rest)
            ]
            branch.position += len(rest)
            self._written[branch.index].prefilled += len(rest)
        logits = self._llama.run(rows)
        part_ms = self._lap_ms() / len(going)
        for branch in going:
            self._written[branch.index].prefill_ms += part_ms
        put_off: list[int] = []
        while going:
            asked, tokens, logprobs = going, logits.argmax(axis=1), _best_logprobs(logits)
            for branch, row in zip(asked, logits, strict=True):
                if not self._written[branch.index].logprobs:
                    self._written[branch.index].watched = row[self._watched].tolist()
            going = [
                branch
                for branch, token, logprob in zip(asked, tokens.tolist(), logprobs.tolist(), strict=True)
                if self._goes_on(branch, token, logprob)
            ]
            part_ms = self._lap_ms() / len(asked)
            for branch in asked:
                self._written[branch.index].spend(part_ms)
            put_off = self._make_room(going) + put_off
            if going:
                last = [(self._written[branch.index].ids[-1], branch) for branch in going]
                logits = self._llama.run([Row(token, b.position, b.sequence, True) for token, b in last])
                for branch in going:
                    branch.position += 1
        return put_off

    def _goes_on(self, branch: _Branch, token: int, logprob: float) -> bool:
        """Note a chosen token; an answer it ends leaves the context."""
        written = self._written[branch.index]
        written.logprobs.append(logprob)
        if token in self._stop_ids:
            written.stop = "eos"
        else:
            written.ids.append(token)
            if len(written.logprobs) < self._max_tokens:
                return True
        self._llama.forget(branch.sequence)
        return False

    def _make_room(self, going: list[_Branch]) -> list[int]:
        """Put off the last questions until the context has room for a token of each that stays."""
        put_off: list[int] = []
        while len(going) > 1 and self._base + sum(b.position + 1 - self._base for b in going) > (
            self._llama.context
        ):
            branch = going.pop()
            self._llama.forget(branch.sequence)
            written = self._written[branch.index]
            written.ids, written.logprobs = [], []
            put_off.insert(0, branch.index)
        return put_off

    def _lap_ms(self) -> float:
        """Time since the last call."""
        before, self._mark = self._mark, time.perf_counter()
        return (self._mark - before) * 1e3


def common_stem(tails: Sequence[list[int]]) -> list[int]:
    """What all token lists begin with, at least one token of each left over."""
    shortest = min(tails, key=len)
    for index, token in enumerate(shortest[:-1]):
        if any(tail[index] != token for tail in tails):
            return shortest[:index]
    return shortest[:-1]


def _best_logprobs(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural logarithm `[n]` of the largest probability in each row of `[n, vocab]`."""
    top = logits.max(axis=1)
    shares: npt.NDArray[np.float64] = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    return -np.log(shares)
