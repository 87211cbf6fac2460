"""Films and what is said about them → tensors: image tokens once, conversations behind them kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from radvlm_edge.runtime.crops import Layout
from radvlm_edge.training.finetune_text import Speech

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Look:
    """A film and the conversations about it."""

    crops: npt.NDArray[np.uint8]
    """`[n, S, S]` grey: base view, then tiles."""
    layout: Layout
    speeches: tuple[Speech, ...]


class Collator:
    """Looks → a batch for transformers' `LlavaOnevisionForConditionalGeneration`.

    Every conversation sees the head, the film's tokens and itself, at the positions it would have alone,
    so a packed loss is the sum of the unpacked ones. `loss` weighs a pair's tokens: `pairs` divides its
    weight among them, `tokens` gives it to each. What does not fit into `context` tokens is cut off.

    Keys: `input_ids`, `position_ids` `[B, L]`; `attention_mask` `[B, L]` where each film has one
    conversation, else `[B, 1, L, L]` bool; `crops` `[B, n, S, S]` uint8; `image_sizes` `[B, 2]`; `kept` `[K]`
    are the places whose logits are needed; `targets` and `weights` `[B, K]`, weight 0 where nothing is
    learned; `cut` `[B]`, tokens cut off.
    """

    def __init__(self, head: Sequence[int], image_id: int, pad_id: int, context: int, loss: str) -> None:
        self._head, self._image_id, self._pad_id = list(head), image_id, pad_id
        self._context, self._loss = context, loss

    def __call__(self, looks: Sequence[Look]) -> Batch:
        prefixes = [len(self._head) + look.layout.image_tokens for look in looks]
        own = [
            [speech.cut(max(0, self._context - prefix)) for speech in look.speeches]
            for look, prefix in zip(looks, prefixes, strict=True)
        ]
        lost = [
            sum(len(speech.ids) for speech in look.speeches) - sum(len(speech.ids) for speech in kept)
            for look, kept in zip(looks, own, strict=True)
        ]
        lengths = [
            prefix + sum(len(speech.ids) for speech in speeches)
            for prefix, speeches in zip(prefixes, own, strict=True)
        ]
        rows, length = len(looks), max(lengths)
        ids = torch.full((rows, length), self._pad_id)
        positions = torch.zeros(rows, length, dtype=torch.long)
        targets, weights = torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length)
        group = torch.full((rows, length), -1)
        for row, (prefix, speeches) in enumerate(zip(prefixes, own, strict=True)):
            ids[row, :prefix] = self._image_id
            ids[row, : len(self._head)] = torch.tensor(self._head)
            positions[row, :prefix] = torch.arange(prefix)
            group[row, :prefix] = 0
            at = prefix
            for index, speech in enumerate(speeches):
                self._lay(speech, ids[row], targets[row], weights[row], at, at == prefix)
                end = at + len(speech.ids)
                positions[row, at:end] = prefix + torch.arange(end - at)
                group[row, at:end] = index + 1
                at = end
        kept = torch.nonzero((weights > 0).any(0))[:, 0]
        packed = any(len(speeches) > 1 for speeches in own)
        mask = block_mask(group) if packed else (group >= 0).long()
        return {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": mask,
            "crops": _padded([look.crops for look in looks]),
            "image_sizes": torch.tensor([(look.layout.height, look.layout.width) for look in looks]),
            "kept": kept,
            "targets": targets[:, kept],
            "weights": weights[:, kept],
            "cut": torch.tensor(lost),
        }

    def _lay(
        self,
        speech: Speech,
        ids: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        at: int,
        follows_film: bool,
    ) -> None:
        """Write a conversation to a row from `at`; targets stand one place before the token they are."""
        said = torch.tensor(speech.ids, dtype=torch.long)
        end = at + len(said)
        ids[at:end] = said
        each = speech.weight / max(1, speech.targets) if self._loss == "pairs" else speech.weight
        taught = torch.tensor(speech.taught, dtype=torch.bool)
        assert follows_film or not bool(taught[:1].any())  # a question comes first
        targets[at : end - 1] = said[1:]
        weights[at : end - 1] = taught[1:].float() * each


def block_mask(group: torch.Tensor) -> torch.Tensor:
    """Who belongs where `[B, L]` → who may look at whom `[B, 1, L, L]`.

    0: head and film, 1 and up: conversations, -1: padding, which looks at itself, as a row that looks at
    nothing is no number.
    """
    order = torch.arange(group.shape[1])
    same = (group[:, :, None] == group[:, None, :]) & (group[:, :, None] >= 0)
    film = (group[:, None, :] == 0) & (group[:, :, None] >= 0)
    seen = (same | film) & (order[None, :, None] >= order[None, None, :])
    return (seen | (order[None, :, None] == order[None, None, :]))[:, None]


def _padded(crops: Sequence[npt.NDArray[np.uint8]]) -> torch.Tensor:
    """Films of different numbers of crops → `[B, n, S, S]`; what is padded is never encoded."""
    most = max(len(one) for one in crops)
    out = np.zeros((len(crops), most, *crops[0].shape[1:]), np.uint8)
    for row, one in enumerate(crops):
        out[row, : len(one)] = one
    return torch.from_numpy(out)
