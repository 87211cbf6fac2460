"""Many exchanges behind one film: token ids, positions, targets and the mask that keeps them apart.

Each conversation sees the film's tokens and itself, at the positions it would have alone, so what
is learned is what inference computes; the film's tokens are paid for once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from radvlm_edge.training.instructions import Exchange
from radvlm_edge.training.phantom_difficulty import FINDINGS
from radvlm_edge.training.tokenizer import TURN_END, TURN_START

HEAD = f"{TURN_START}user\n"
"""What stands before the image."""
DECISION_WEIGHT = 5.0
"""How much more the Yes or No of an answer counts than its other tokens."""
NAMING_WEIGHT = 3.0
"""The same for the words of a list or a report that say which finding is there."""
NAMING = frozenset({"report", "classify", "detect"})

_BOX = re.compile(r"\[[\d., ]+\]")

_NAMED = re.compile(rf"(?:^|(?<=\. ))\w+|{'|'.join(FINDINGS)}|\b(?:right|left)\b")
"""What a report decides at: how a sentence begins, which finding it names, and on which side."""


@dataclass(frozen=True)
class Block:
    """One conversation about the film, the film's own tokens left out."""

    ids: list[int]
    weights: list[float]
    """Of each token as a target; 0 where nothing is learned."""
    points: list[int]
    """What each token, as a target, is about (an index among the names given); -1 for nothing."""
    firsts: list[bool]
    """Whether a token, as a target, is an answer's first."""


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text).ids)


def conversation(
    tokenizer: Any, turns: Sequence[Exchange], names: Mapping[str, int] | None = None, *, brief: bool = False
) -> Block:
    """The chat template's text behind the image, answers weighted as targets.

    With `brief` an answer ends at its first token, the Yes or No: many decisions for few tokens.
    Of `names`, what the question is about is noted at the answer's first token, and what a box is
    the box of at the box's tokens.
    """
    block = Block([], [], [], [])
    for index, turn in enumerate(turns):
        lead = "\n" if index == 0 else f"\n{TURN_START}user\n"
        asked = _ids(tokenizer, f"{lead}{turn.question}{TURN_END}\n{TURN_START}assistant\n")
        encoded = tokenizer.encode(f"{turn.answer}{TURN_END}")
        answered = list(encoded.ids)[: 1 if brief else None]
        points = _points(turn, encoded.offsets, names or {})[: len(answered)]
        decision = DECISION_WEIGHT if turn.task == "yesno" else 1.0
        block.ids.extend(asked + answered)
        weights = [decision, *_weights(turn, encoded.offsets)[1:]][: len(answered)]
        block.weights.extend([0.0] * len(asked) + weights)
        block.points.extend([-1] * len(asked) + points)
        block.firsts.extend([False] * len(asked) + [True] + [False] * (len(answered) - 1))
    return block


def _weights(turn: Exchange, offsets: Sequence[tuple[int, int]]) -> list[float]:
    """How much each token of an answer counts; tokens span characters `offsets` of it."""
    weights = [1.0] * len(offsets)
    for said in _NAMED.finditer(turn.answer) if turn.task in NAMING else ():
        for token, (start, end) in enumerate(offsets):
            if start < said.end() and end > said.start():
                weights[token] = NAMING_WEIGHT
    return weights


def _points(turn: Exchange, offsets: Sequence[tuple[int, int]], names: Mapping[str, int]) -> list[int]:
    """What each token of an answer is about; tokens span characters `offsets` of it."""
    points = [-1] * len(offsets)
    points[0] = names.get(turn.about, -1)
    for place, box in zip(turn.places, _BOX.finditer(turn.answer), strict=True):
        for token, (start, end) in enumerate(offsets):
            if start < box.end() and end > box.start():
                points[token] = names.get(place, -1)
    return points


@dataclass(frozen=True)
class Packed:
    """A batch of B films, padded to L tokens: prefix (head and image), then blocks."""

    ids: torch.Tensor
    """`[B, L]`; 0 at image tokens and padding."""
    positions: torch.Tensor
    """`[B, L]`, restarted behind the image for every block."""
    mask: torch.Tensor
    """`[B, 1, L, L]` added to attention scores: 0 or -inf's stand-in."""
    targets: torch.Tensor
    """`[B, L]`: the token that follows."""
    weights: torch.Tensor
    """`[B, L]` float32."""
    points: torch.Tensor
    """`[B, L]`: what the token that follows is about; -1 for nothing."""
    firsts: torch.Tensor
    """`[B, L]` bool: the token that follows is an answer's first."""
    head: int
    """Tokens before the image."""

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in dataclasses.fields(self)
            if field.name != "head"
        }
        return dataclasses.replace(self, **moved)


def pack(tokenizer: Any, image_tokens: Sequence[int], blocks: Sequence[Sequence[Block]]) -> Packed:
    """Lay out films of so many image tokens with their blocks."""
    head = _ids(tokenizer, HEAD)
    prefixes = [len(head) + count for count in image_tokens]
    length = max(
        prefix + sum(len(block.ids) for block in own) for prefix, own in zip(prefixes, blocks, strict=True)
    )
    films = len(prefixes)
    ids, positions, targets = (torch.zeros(films, length, dtype=torch.long) for _ in range(3))
    weights = torch.zeros(films, length)
    points = torch.full((films, length), -1)
    firsts = torch.zeros(films, length, dtype=torch.bool)
    group = torch.full((films, length), -1)
    for row, (prefix, own) in enumerate(zip(prefixes, blocks, strict=True)):
        ids[row, : len(head)] = torch.tensor(head)
        positions[row, :prefix] = torch.arange(prefix)
        group[row, :prefix] = 0
        at = prefix
        for index, block in enumerate(own):
            end = at + len(block.ids)
            ids[row, at:end] = torch.tensor(block.ids)
            positions[row, at:end] = prefix + torch.arange(end - at)
            group[row, at:end] = index + 1
            targets[row, at : end - 1] = ids[row, at + 1 : end]
            weights[row, at : end - 1] = torch.tensor(block.weights[1:])
            points[row, at : end - 1] = torch.tensor(block.points[1:])
            firsts[row, at : end - 1] = torch.tensor(block.firsts[1:])
            at = end
    order = torch.arange(length)
    same = group[:, :, None] == group[:, None, :]
    film = (group[:, None, :] == 0) & (group[:, :, None] >= 0)
    seen = (same | film) & (order[None, :, None] >= order[None, None, :])
    mask = torch.zeros(films, 1, length, length).masked_fill_(~seen[:, None], torch.finfo(torch.float32).min)
    return Packed(ids, positions, mask, targets, weights, points, firsts, len(head))
