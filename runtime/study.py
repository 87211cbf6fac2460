"""A film the model has looked at, and everything it can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from radvlm_edge.runtime import crops, prompts
from radvlm_edge.runtime.answer import Answer
from radvlm_edge.runtime.choices import Choice
from radvlm_edge.runtime.confidence import Temperature
from radvlm_edge.runtime.detail import capped, named
from radvlm_edge.runtime.film import Film
from radvlm_edge.runtime.limits import detail_fidelity

if TYPE_CHECKING:
    from radvlm_edge.runtime.reader import Reader


@dataclass
class Looked:
    """What looking at a film took, in milliseconds."""

    decode_film_ms: float
    """Of a film read ahead: none, as cutting it, since both are within the time of opening."""
    crops_ms: float
    vision_ms: float = 0.0
    prefill_ms: float = 0.0
    overlapped_ms: float = 0.0
    """The tower's time behind the prefill; `vision_ms` is then what the prefill had to wait for it."""
    cache_ms: float = 0.0
    """Looking the film up in the study cache, and writing it there."""
    prefill_by_ms: dict[str, float] = field(default_factory=dict)
    """What each engine took of the prefill."""


@dataclass(eq=False)
class Study:
    """A film the model has looked at. Made by `Reader.look`."""

    reader: Reader
    film: Film
    layout: crops.Layout
    looked: Looked
    prefix_tokens: int
    """Tokens up to the end of the image, which all questions share."""
    detail_px: int | None = None
    """Cap the film was looked at with; `None`: exact."""
    encoded: npt.NDArray[np.float32] | None = None
    """Image tokens, once the tower has run."""
    uncharged_tokens: int = 0
    """Prefilled tokens no answer has counted yet."""
    uncharged_ms: float = 0.0
    key: str | None = None
    """Identity in the study cache."""
    cache: str = "off"
    """`hit`: the film's K/V came from disk, neither tower nor prefill ran; `miss`; `off`: no study cache."""
    notes: list[str] = field(default_factory=list)
    """Trouble with the study cache, one line each; answers are right all the same."""
    turns: list[prompts.Turn] = field(default_factory=list)
    """Answered turns of the running conversation."""

    @property
    def image(self) -> npt.NDArray[np.float32]:
        """Image tokens `[t, d]`; runs the vision tower if a cached study spared it so far."""
        if self.encoded is None:
            geometry = capped(self.reader.bundle.manifest.geometry, self.detail_px)
            views, layout = crops.cut(self.film.pixels, geometry)
            self.encoded = self.reader._encode(views, layout)
        return self.encoded

    def ask(self, question: str, *, max_tokens: int | None = None) -> Answer:
        """Ask about the film alone: the answer depends on nothing asked before.

        Raises QuestionError for an empty question, or one that does not fit the context.
        """
        return self.reader._answer(self, [], question, max_tokens)

    def ask_many(self, questions: Sequence[str], *, max_tokens: int | None = None) -> list[Answer]:
        """Ask several questions about the film alone, decoded together; answers in the questions' order.

        Much faster than one by one: each step reads the weights once for up to `BRANCHES` questions, and
        what all of them begin with is prefilled once. The same greedy answers, but for ties within the
        engine's rounding. Times of a batch are shared equally. Raises QuestionError, before anything is
        run, for a question that cannot be asked.
        """
        return self.reader._answer_many(self, questions, max_tokens)

    def choose(self, question: str, choices: Sequence[str] = ("Yes", "No")) -> Choice:
        """Ask, and take the likeliest of given answers: one step of decoding, with probabilities.

        A choice is scored as the beginning of the model's answer; the probabilities are exact, made to sum
        to 1 over the choices. Raises QuestionError as `ask`, or for choices that overlap.
        """
        return self.reader._choose(self, question, choices)

    def choose_many(self, questions: Sequence[str], choices: Sequence[str] = ("Yes", "No")) -> list[Choice]:
        """`choose` for several questions in one batch: the weights are read once for up to `BRANCHES`.

        The same probabilities as one by one, within the engine's rounding; the first counts what all begin
        with. Raises QuestionError, before anything is run, for a question that cannot be asked.
        """
        return self.reader._choose_many(self, questions, choices)

    def task(self, task: str, *, max_tokens: int | None = None) -> Answer:
        """Ask one of RadVLM's tasks: `report`, `classify`, `detect`, `locate=PHRASE`, `phrase=SENTENCE`."""
        return self.ask(prompts.task_question(task), max_tokens=max_tokens)

    def say(self, question: str, *, max_tokens: int | None = None) -> Answer:
        """Ask as the next turn of a conversation; earlier turns are remembered."""
        return self.reader._answer(self, self.turns, question, max_tokens)

    @property
    def detail(self) -> str:
        """`exact`, or the cap in pixels it was looked at with."""
        return named(self.detail_px)

    @property
    def temperature(self) -> Temperature | None:
        """What the bundle's confidence was calibrated to, if that holds for this study's detail."""
        held = self.reader.temperature
        return held if held is not None and held.detail == self.detail else None

    @property
    def provenance(self) -> dict[str, object]:
        reader = self.reader
        return {
            "bundle": {"name": reader.bundle.manifest.name, "sha256": reader.bundle.sha256},
            "vision": reader.vision_artefact.precision,
            "language": reader.language_artefact.precision,
            "detail": self.detail,
            "fidelity": detail_fidelity(reader.bundle, reader.options, reader.fidelity, self.detail_px),
            "vision_backend": reader.tower.backend,
            "vision_plan": reader.vision_plan(),
            "prefill": reader.prefilling.told(),
            "render": self.film.render,
            "film": dict(self.film.provenance or {}),
        }
