"""The checkpoint's own greedy answers, exactly, from whole passes over its layers.

A pass gives the checkpoint's choice behind every token of a drafted answer. The draft is right up to the
first token the checkpoint would not have chosen; from there the bundle drafts again behind the
checkpoint's choice. Every pass settles at least one more token of each answer, and a good bundle's drafts
are right at once: two or three passes instead of one for each token (speculative decoding, Leviathan 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from radvlm_edge.export.checkpoint import Checkpoint
from radvlm_edge.export.shared_prefix import OutputHead, Sequences, stream_hidden

Floats = npt.NDArray[np.float32]
Draft = Callable[[int, list[tuple[int, list[int]]]], list[list[int]]]
"""Film index, some of its questions' numbers with the answers so far → those answers to their ends."""


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the checkpoint answers to every question about every film."""

    tokens: list[list[list[int]]]
    """Film, question → token ids, the stop token included."""
    hidden: list[list[torch.Tensor]]
    """What the output matrix is fed before each of them, `[tokens, d]`."""
    settled: list[list[bool]]
    """False where the passes ran out before an answer was the checkpoint's to its end."""
    passes: int


def answer_by_drafts(
    checkpoint: Checkpoint,
    questions: Sequence[Sequences],
    draft: Draft,
    *,
    max_tokens: int,
    most_passes: int,
    used: npt.NDArray[np.bool_],
    progress: Callable[[str], None],
) -> ReferenceAnswers:
    """Greedy answers of the checkpoint; `used` marks the rows of the output matrix that are tokens."""
    head = OutputHead(checkpoint)
    stop_ids = checkpoint.prompting.stop_ids
    answers: list[list[list[int]]] = [[[] for _ in one.tails] for one in questions]
    hidden: list[list[torch.Tensor]] = [[] for _ in questions]
    settled = [[False] * len(one.tails) for one in questions]
    passes = 0
    while passes < most_passes and not all(all(film) for film in settled):
        passes += 1
        films = [film for film, done in enumerate(settled) if not all(done)]
        for film in films:
            numbers = [number for number, done in enumerate(settled[film]) if not done]
            drafted = draft(film, [(number, answers[film][number]) for number in numbers])
            for number, answer in zip(numbers, drafted, strict=True):
                answers[film][number] = answer
        progress(f"reference: pass {passes}, {sum(not s for done in settled for s in done)} answers open")
        whole = [
            Sequences(
                questions[film].head,
                questions[film].image,
                [t + a[:-1] for t, a in zip(questions[film].tails, answers[film], strict=True)],
            )
            for film in films
        ]
        for film, states in zip(films, stream_hidden(checkpoint, whole, progress=progress), strict=True):
            kept = [state[-len(a) :] for state, a in zip(states, answers[film], strict=True)]
            judged = [
                _agreed(head, state, a, used, stop_ids, max_tokens)
                for state, a in zip(kept, answers[film], strict=True)
            ]
            answers[film] = [a for a, _ in judged]
            hidden[film] = [state[: len(a)] for state, (a, _) in zip(kept, judged, strict=True)]
            settled[film] = [done for _, done in judged]
    return ReferenceAnswers(answers, hidden, settled, passes)


def _agreed(
    head: OutputHead,
    hidden: torch.Tensor,
    answer: list[int],
    used: npt.NDArray[np.bool_],
    stop_ids: Sequence[int],
    max_tokens: int,
) -> tuple[list[int], bool]:
    """The draft as far as the checkpoint agrees, its own choice behind that, and whether that is the end."""
    logits = head.logits(hidden)
    logits[:, ~used] = -np.inf
    choices = [int(token) for token in logits.argmax(axis=1)]
    for index, (ours, theirs) in enumerate(zip(answer, choices, strict=True)):
        if ours != theirs:
            begun = [*answer[:index], theirs]
            return begun, False
    ended = answer[-1] in stop_ids or len(answer) >= max_tokens
    return answer, ended
