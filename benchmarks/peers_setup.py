"""What every peer is given and hands back: the same checkpoint, film, questions and numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from radvlm_edge.bundle import Bundle, Prompting
from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.detail import capped, resolve

MMPROJ = "mmproj-f16.gguf"
"""In the work folder; written when the peers are prepared."""


@dataclass(frozen=True)
class Written:
    """How long an answer is to be."""

    tokens: int
    stop: bool = False
    """End where the model would; else exactly so many tokens, whatever they are."""


class Asked(NamedTuple):
    """One question answered."""

    first_ms: float
    """From the question (a first answer: from the film's file) to its first token."""
    total_ms: float
    tokens: int
    text: str


@dataclass(frozen=True)
class Setup:
    """One run's choices, the same for all."""

    checkpoint: str
    bundle: str
    work: str
    film: str
    """File of the film that is timed."""
    detail: str = "exact"
    threads: int = 1
    answer_tokens: int = 32
    decode_tokens: int = 128
    repeats: int = 3
    """Second questions asked of a loaded peer."""
    checklist_tokens: int = 16
    """Of each free-text answer of the checklist."""
    accuracy_films: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of our reader."""

    @property
    def geometry(self) -> Geometry:
        """As many canvases as the detail leaves."""
        return capped(Bundle.open(self.bundle).manifest.geometry, resolve(self.detail))

    @property
    def context(self) -> int:
        """Positions for the largest film, a question and the longest answer."""
        return min(self.geometry.context, self.geometry.max_image_tokens + 512 + max(self.decode_tokens, 512))

    @property
    def render(self) -> str:
        """How films become grey: the bundle's way, for all."""
        return Bundle.open(self.bundle).manifest.render

    def prompting(self) -> Prompting:
        return Bundle.open(self.bundle).manifest.prompting

    def language_file(self) -> Path:
        """The language artefact our reader uses, so that llama.cpp's own path decodes the same file."""
        bundle = Bundle.open(self.bundle)
        return bundle.path(bundle.artefact("language", self.options.get("language")))

    def mmproj_file(self) -> Path:
        return Path(self.work) / MMPROJ


class Peer(Protocol):
    """Something that answers questions about films, loaded."""

    load_ms: float

    def describe(self) -> dict[str, Any]:
        """Engine, versions, precision: for the head of a table."""
        ...

    def cold(self, film: bytes, question: str, written: Written) -> Asked:
        """A film never seen before, from its file's content to an answer."""
        ...

    def again(self, question: str, written: Written) -> Asked:
        """Another question about the film of the last `cold`."""
        ...

    def extras(self, setup: Setup, film: Path) -> dict[str, Any]:
        """What only this peer can be measured in."""
        ...

    def close(self) -> None: ...
