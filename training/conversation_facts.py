"""What a writer of conversations is told about a film, and the turns it must give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.source import Boxed, LabelState

MIN_ROUNDS, MAX_ROUNDS = 2, 10
"""Questions of a conversation."""


@dataclass(frozen=True)
class Facts:
    """Everything that may be said about a film."""

    report: str
    """Filtered; `""` where there is none."""
    labels: LabelState | None
    """Uncertain ones resolved. None: nobody labelled the film."""
    phrases: tuple[Boxed, ...]
    """Sentences with their places; only for grounded conversations."""
    view: str
    sex: str


class Writer(Protocol):
    """Writes one conversation about one film."""

    name: str
    """Goes into the data set's description: who wrote, and with which weights."""

    def write(self, facts: Facts, rng: np.random.Generator) -> list[Turn]:
        """Turns, oldest first. Raises ConversationError where nothing usable came."""
        ...


class ConversationError(Exception):
    """A conversation that may not be used, and why; counted, never shown as a failure of the command."""
