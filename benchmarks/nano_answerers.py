"""A checkpoint or a bundle behind one interface, so that the suite measures both alike."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.geometry import Geometry
from radvlm_edge.runtime.crops import cut
from radvlm_edge.runtime.film import Film
from radvlm_edge.runtime.reader import Options, Reader, Study

Pixels = npt.NDArray[np.uint8]


class Looking(Protocol):
    """A film that has been looked at."""

    def probability(self, question: str) -> float:
        """Of Yes against No as the answer's first token."""
        ...

    def ask(self, question: str, most: int) -> str:
        """Greedy answer of at most so many tokens."""
        ...


class Answerer(Protocol):
    """Something that answers questions about films."""

    geometry: Geometry

    def describe(self) -> dict[str, Any]:
        """What was asked: for the head of a table."""
        ...

    def look(self, pixels: Pixels) -> Looking:
        """Look at a film `[H, W]`."""
        ...


def without_detail(pixels: Pixels, geometry: Geometry) -> Pixels:
    """A film that holds no more than its base view: squashed to one crop and enlarged again.

    Its tiles and its tokens are as many as before; what only the tiles showed is gone.
    """
    height, width = pixels.shape
    side = (geometry.crop_px, geometry.crop_px)
    small = Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


class BundleAnswerer:
    """A sealed bundle in the runtime's Reader."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.geometry = reader.bundle.manifest.geometry

    def describe(self) -> dict[str, Any]:
        reader = self.reader
        return {
            "bundle": reader.bundle.manifest.name,
            "sha256": reader.bundle.sha256,
            "vision": f"{reader.vision_artefact.precision}, {reader.tower.backend}",
            "language": reader.language_artefact.precision,
        }

    def look(self, pixels: Pixels) -> Looking:
        return _BundleLooking(self.reader, self.reader.look(Film(pixels, "suite", "voi", provenance={})))


class _BundleLooking:
    def __init__(self, reader: Reader, study: Study) -> None:
        self.reader, self.study = reader, study

    def probability(self, question: str) -> float:
        self.study.ask(question, max_tokens=1).finish()
        language = self.reader._language  # one token was chosen and not run: these are its logits
        logits = language.logits()
        yes, no = (language.tokenize(word)[0] for word in ("Yes", "No"))
        return _share(float(logits[yes]), float(logits[no]))

    def ask(self, question: str, most: int) -> str:
        return self.study.ask(question, max_tokens=most).text


class CheckpointAnswerer:
    """A checkpoint folder in transformers, float32. Needs the torch world."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # type: ignore[import-untyped]

        from radvlm_edge.export.checkpoint import open_checkpoint
        from radvlm_edge.export.reference import build_reference

        checkpoint = open_checkpoint(folder)
        self.folder, self.geometry = folder, checkpoint.config.geometry
        self.model = build_reference(checkpoint)
        self.tokenizer = Tokenizer.from_str(json.dumps(checkpoint.tokenizer))

    def describe(self) -> dict[str, Any]:
        return {"checkpoint": self.folder.name, "precision": "float32, transformers"}

    def look(self, pixels: Pixels) -> Looking:
        import torch

        from radvlm_edge.training.evaluate import Examinee

        crops, layout = cut(pixels, self.geometry)
        with torch.no_grad():
            examinee = Examinee(self.model, self.tokenizer, crops[:, 0], (layout.height, layout.width))
        return _CheckpointLooking(examinee)


class _CheckpointLooking:
    def __init__(self, examinee: Any) -> None:
        self.examinee = examinee

    def probability(self, question: str) -> float:
        import torch

        with torch.no_grad():
            return _share(self.examinee.leaning(question), 0.0)

    def ask(self, question: str, most: int) -> str:
        import torch

        with torch.no_grad():
            return str(self.examinee.ask(question, most)).strip()


def _share(yes: float, no: float) -> float:
    """Softmax of two logits, the first one's part."""
    return 1 / (1 + math.exp(min(700.0, max(-700.0, no - yes))))


@contextmanager
def open_answerer(
    folder: Path, *, vision: str | None = None, language: str | None = None, threads: int | None = None
) -> Iterator[Answerer]:
    """A bundle (it has a bundle.json) or a checkpoint, by what the folder is."""
    if (folder / "bundle.json").exists():
        with Reader.open(folder, Options(vision=vision, language=language, threads=threads)) as reader:
            yield BundleAnswerer(reader)
        return
    if threads:
        import torch

        torch.set_num_threads(threads)
    yield CheckpointAnswerer(folder)
