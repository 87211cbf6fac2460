"""One decision among given answers, read off the model's probabilities instead of its words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radvlm_edge.errors import QuestionError
from radvlm_edge.runtime.confidence import Confidence
from radvlm_edge.runtime.llama import BRANCHES, FIRST_BRANCH, TAIL, Llama, Row


@dataclass(frozen=True)
class Choice:
    """The likeliest of the given answers."""

    question: str
    text: str
    probabilities: dict[str, float]
    """Of each choice, in the order given; they sum to 1. The model's own: how often it is right when it says
    0.9 is another matter (`confidence`)."""
    mass: float
    """Probability the model gave all choices together before they were made to sum to 1. Where it is small
    the model would have said something else, and the choice means little."""
    prefill_tokens: int
    """As `Answer.prefill_tokens`; the choices' own tokens are counted too. Of several questions together, the
    first counts all."""
    prefill_ms: float
    """Of several together: an equal share."""
    confidence: Confidence
    """Of `text`; calibrated if the bundle holds a temperature and the choices are Yes and No."""
    calibrated: dict[str, float] | None = None
    """Calibrated probability of each choice, where `confidence` is calibrated."""
    prompt_tokens: int = 0
    """As `Answer.prompt_tokens`."""


def choice_tokens(choices: Sequence[str], tokenize: Callable[[str], list[int]]) -> dict[str, list[int]]:
    """Token ids of each choice as the beginning of an answer.

    Raises QuestionError unless there are 2 to `BRANCHES`, all different, none empty or the beginning of
    another: their probabilities would overlap.
    """
    tokens = {choice.strip(): tokenize(choice.strip()) for choice in choices}
    if not 2 <= len(choices) <= BRANCHES or len(tokens) < len(choices) or not all(tokens.values()):
        raise QuestionError(
            f"the choices {'|'.join(choices)!r} cannot be chosen from; name 2 to {BRANCHES} different ones, "
            "e.g. --choose 'Yes|No'"
        )
    for one, ids in tokens.items():
        for other, longer in tokens.items():
            if one != other and longer[: len(ids)] == ids:
                raise QuestionError(f"the choice {other!r} begins with the choice {one!r}; make them differ")
    return tokens


def choose(tokens: dict[str, list[int]], logprobs: Sequence[float]) -> tuple[str, dict[str, float], float]:
    """Likeliest choice, probabilities that sum to 1, and the mass before, from log probabilities."""
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    shares = dict(zip(tokens, (weight / sum(weights) for weight in weights), strict=True))
    return max(shares, key=lambda text: shares[text]), shares, math.exp(top) * sum(weights)


def score(llama: Llama, choices: Sequence[list[int]], *, position: int) -> tuple[list[float], int]:
    """Natural logarithm of the probability of each token list right behind what `TAIL` holds.

    `TAIL` ends before `position`, and its logits are the last computed. Every choice is a branch of it, all
    run in one batch; single tokens need none. Returns how many tokens were run, too. No length is
    corrected for: these are the probabilities that an answer begins so.
    """
    return _behind(llama, choices, llama.logits(), position, source=TAIL, spare=FIRST_BRANCH)


def score_many(
    llama: Llama, tails: Sequence[list[int]], choices: Sequence[list[int]], *, position: int
) -> tuple[list[list[float]], int]:
    """As `score`, behind each of several `tails` (token ids from `position` on, behind what `TAIL` holds).

    As many tails are run in one batch as there are sequences and room in the context.
    """
    longest = max(map(len, choices))
    most = BRANCHES if longest == 1 else BRANCHES - len(choices)
    found: list[list[float]] = []
    run, at = 0, 0
    while at < len(tails):
        part, room = [tails[at]], llama.context - position - len(tails[at]) - longest * len(choices)
        while len(part) < most and at + len(part) < len(tails) and room >= len(tails[at + len(part)]):
            room -= len(tails[at + len(part)])
            part.append(tails[at + len(part)])
        scores, count = _score_batch(llama, part, choices, position)
        found, run, at = found + scores, run + count, at + len(part)
    return found, run


def _score_batch(
    llama: Llama, tails: Sequence[list[int]], choices: Sequence[list[int]], position: int
) -> tuple[list[list[float]], int]:
    """`score_many` of tails that fit together."""
    rows = []
    try:
        for index, tail in enumerate(tails):
            llama.fork(TAIL, FIRST_BRANCH + index)
            rows += [
                Row(token, position + at, FIRST_BRANCH + index, at + 1 == len(tail))
                for at, token in enumerate(tail)
            ]
        found, run = [], len(rows)
        for index, (tail, logits) in enumerate(zip(tails, llama.run(rows), strict=True)):
            source, spare = FIRST_BRANCH + index, FIRST_BRANCH + len(tails)
            scores, count = _behind(llama, choices, logits, position + len(tail), source=source, spare=spare)
            found.append(scores)
            run += count
    finally:
        for index in range(len(tails)):
            llama.forget(FIRST_BRANCH + index)
    return found, run


def _behind(
    llama: Llama,
    choices: Sequence[list[int]],
    logits: npt.NDArray[np.float32],
    position: int,
    *,
    source: int,
    spare: int,
) -> tuple[list[float], int]:
    """`score` of choices behind sequence `source`, which `logits` `[vocab]` follow; sequences from `spare` on
    are free."""
    first = _logprobs(logits[None])[0]
    rows = []
    for index, ids in enumerate(choices):
        if len(ids) > 1:
            llama.fork(source, spare + index)
            rows += [Row(token, position + at, spare + index, True) for at, token in enumerate(ids[:-1])]
    try:
        later = iter(_logprobs(llama.run(rows))) if rows else iter(())
    finally:
        for index, ids in enumerate(choices):
            if len(ids) > 1:
                llama.forget(spare + index)
    scores = [float(first[ids[0]]) + sum(float(next(later)[token]) for token in ids[1:]) for ids in choices]
    return scores, len(rows)


def _logprobs(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-softmax over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    out: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return out
