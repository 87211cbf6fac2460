"""Anything that answers questions about films, behind one small interface: bundle, checkpoint, baseline."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.answers import parse_boxes
from radvlm_edge.runtime.confidence import UNCALIBRATED
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.runtime.reader import Options, Reader, Study
from radvlm_edge.training.scores import Box

ONEVISION = "onevision"
"""Of models whose prompt and answer the authors decode together (metrics_paper.paper_answer)."""
_UNIT = 10_000


@dataclass(frozen=True)
class Said:
    """One answer."""

    text: str
    """In RadVLM's form: boxes as `[left, top, right, bottom]`, fractions of the film."""
    boxes: tuple[Box, ...] = ()
    """As fractions, to the digits the model gave."""
    names: tuple[str, ...] = ()
    """What each box is the box of; `""` where the answer does not say."""
    confidence: float | None = None
    calibrated_on: str = UNCALIBRATED
    raw: str = ""
    """The model's own words, where they were converted."""


class Looking(Protocol):
    """A film that has been looked at."""

    size: tuple[int, int]
    """Height and width in pixels."""

    def answer(self, task: str, history: Sequence[Turn], question: str, about: str, most: int) -> Said:
        """Greedy answer of at most so many tokens behind answered turns.

        `about`: the region, finding or sentence asked for; models with prompts of their own use it.
        """
        ...


class Model(Protocol):
    """Something that answers questions about films."""

    chat: str
    """`onevision`, or another family's name."""

    def unsupported(self, task: str) -> str | None:
        """Why a task cannot be asked of this model; None where it can."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was asked, weights by digest: answers of another are refused when a run goes on."""
        ...

    def look(self, image: Path | bytes) -> Looking:
        """Read and encode a film. Raises FilmError."""
        ...

    def close(self) -> None:
        """Free its engines."""
        ...


def said_of(text: str, confidence: float | None = None, calibrated_on: str = UNCALIBRATED) -> Said:
    """An answer in RadVLM's own form."""
    found = parse_boxes(text, _UNIT, _UNIT)
    boxes, names = tuple(box.xyxy_fraction for box in found), tuple(box.label or "" for box in found)
    return Said(text, boxes, names, confidence, calibrated_on)


class BundleModel:
    """A sealed bundle in the runtime's Reader."""

    chat = ONEVISION

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def unsupported(self, task: str) -> str | None:
        return None

    def describe(self) -> dict[str, Any]:
        reader = self.reader
        return {
            "kind": "bundle",
            "name": reader.bundle.manifest.name,
            "sha256": reader.bundle.sha256,
            "vision": reader.vision_artefact.precision,
            "language": reader.language_artefact.precision,
            "render": reader.options.render or reader.bundle.manifest.render,
            "detail": str(reader.options.detail or "exact"),
        }

    def look(self, image: Path | bytes) -> Looking:
        return _BundleLooking(self.reader.look(image))

    def close(self) -> None:
        self.reader.close()


class _BundleLooking:
    def __init__(self, study: Study) -> None:
        self.study = study
        self.size = (study.layout.height, study.layout.width)

    def answer(self, task: str, history: Sequence[Turn], question: str, about: str, most: int) -> Said:
        self.study.turns[:] = history
        answer = self.study.say(question, max_tokens=most)
        confidence = answer.confidence
        return said_of(answer.text, confidence.value, confidence.calibrated_on)


class CheckpointModel:
    """A checkpoint folder in transformers, float32, one film's K/V kept between its questions.

    The torch world. The whole model is in memory: 32 GB for 7B.
    """

    chat = ONEVISION

    def __init__(self, folder: Path, *, render: str | None = None, device: str = "auto") -> None:
        import torch

        from radvlm_edge.export.checkpoint import open_checkpoint
        from radvlm_edge.export.reference import build_reference

        self.checkpoint = open_checkpoint(folder)
        self.render = render or str(self.checkpoint.facts["render"])
        wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.model = build_reference(self.checkpoint).to(wanted)
        self._unused = torch.from_numpy(self.checkpoint.unused).to(wanted)

    def unsupported(self, task: str) -> str | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "checkpoint",
            "name": self.checkpoint.facts["name"],
            "sha256": self.checkpoint.sha256(),
            "precision": "float32, transformers",
            "render": self.render,
        }

    def look(self, image: Path | bytes) -> Looking:
        from radvlm_edge.benchmarks.evaluate_checkpoint import CheckpointLooking
        from radvlm_edge.runtime.film import load_film

        film = load_film(image, render=self.render)
        return CheckpointLooking(self.model, self.checkpoint, self._unused, film.pixels)

    def close(self) -> None:
        del self.model


def mean_probability(logprobs: Sequence[float]) -> float:
    """Geometric mean of the tokens' probabilities, as the runtime's uncalibrated confidence."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def open_model(
    model: str,
    *,
    kind: str | None = None,
    options: Options | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> Model:
    """A bundle (it has a bundle.json), a checkpoint (config.json), or a baseline `NAME=DIR`.

    `kind` names a baseline for a plain folder. Raises BackendError for a folder that is none of them.
    """
    from radvlm_edge.benchmarks.baselines import BASELINES

    options = options or Options()
    kind, model = named_baseline(model, kind)
    if kind is not None:
        from radvlm_edge.benchmarks.baseline_models import open_baseline

        _need_torch(kind)
        return open_baseline(
            kind, Path(model), render=options.render or "voi", device=device, trust_code=trust_code
        )
    folder = Path(model)
    if (folder / "bundle.json").exists():
        return BundleModel(Reader.open(folder, options))
    if (folder / "config.json").exists():
        _need_torch(str(folder))
        return CheckpointModel(folder, render=options.render, device=device)
    raise BackendError(
        f"{folder}: neither a bundle (bundle.json) nor a checkpoint (config.json); for a baseline give "
        f"NAME=DIR, NAME one of {', '.join(BASELINES)}"
    )


def named_baseline(model: str, kind: str | None) -> tuple[str | None, str]:
    """Which baseline a model is (None: none), and its folder: `NAME=DIR`, `baseline:NAME=DIR` or a kind."""
    from radvlm_edge.benchmarks.baselines import BASELINES

    name, given, rest = model.removeprefix("baseline:").partition("=")
    if kind is None and given and (name in BASELINES or model.startswith("baseline:")):
        return name, rest
    return kind, model


def _need_torch(what: str) -> None:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"{what}: running it needs {', '.join(missing)}, not installed here; "
            "run `pip install 'radvlm-edge[export]'`"
        )
