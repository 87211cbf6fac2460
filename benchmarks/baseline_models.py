"""Baselines behind the interface of all models: local folders only, nothing is fetched.

transformers and the hub are told to stay offline before they are imported. Folders whose model needs its own
code (MAIRA-2, CheXagent, RaDialog) are run only where the caller trusts that code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from radvlm_edge.benchmarks.baseline_runners import RUNNERS, Runner
from radvlm_edge.benchmarks.baselines import BASELINES, Baseline
from radvlm_edge.benchmarks.evaluate_models import CheckpointModel, Looking, Model, Said
from radvlm_edge.errors import BackendError
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.prompts import Turn

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
DIGESTED_BYTES = 1 << 20
"""Of each file so many first bytes are digested: gigabytes are not read to tell two models apart."""


class BaselineModel:
    """A family's forms around its loaded model."""

    def __init__(self, form: Baseline, runner: Runner, folder: Path, render: str) -> None:
        self.form, self.runner, self.folder, self.render = form, runner, folder, render
        self.chat = form.name

    def unsupported(self, task: str) -> str | None:
        return self.form.unsupported(task)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.form.name,
            "name": self.folder.resolve().name,
            "sha256": folder_digest(self.folder),
            "render": self.render,
        }

    def look(self, image: Path | bytes) -> Looking:
        return _BaselineLooking(self, load_film(image, render=self.render).pixels)

    def close(self) -> None:
        del self.runner


class _BaselineLooking:
    def __init__(self, model: BaselineModel, pixels: npt.NDArray[np.uint8]) -> None:
        self.model, self.film = model, Image.fromarray(pixels)
        self.size = (int(pixels.shape[0]), int(pixels.shape[1]))

    def answer(self, task: str, history: Sequence[Turn], question: str, about: str, most: int) -> Said:
        form = self.model.form
        turns = [*history, Turn(form.question(task, question, about))]
        raw = self.model.runner.generate(self.film, task, turns, about, most)
        return form.read(raw, task, self.size)


class OneVisionModel(CheckpointModel):
    """LLaVA-OneVision itself: RadVLM's class, asked only what it is compared in."""

    def unsupported(self, task: str) -> str | None:
        return BASELINES["llava-onevision"].unsupported(task)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kind": "llava-onevision"}


def open_baseline(name: str, folder: Path, *, render: str, device: str, trust_code: bool) -> Model:
    """Load a family's model from a local folder. Raises BackendError, one line, for what cannot be run."""
    if name not in BASELINES:
        raise BackendError(f"baseline {name!r} is unknown; choose one of {', '.join(BASELINES)}")
    form = BASELINES[name]
    if not (folder / "config.json").exists():
        raise BackendError(f"{folder}: no config.json there; baselines are read from local folders only")
    if form.needs_code and not trust_code:
        raise BackendError(
            f"{folder}: {name} runs Python code that lies in this folder; read it, then pass --trust-code"
        )
    for variable in OFFLINE:
        os.environ[variable] = "1"
    if form.loader == "onevision":
        return OneVisionModel(folder, render=render, device=device)
    try:
        runner = RUNNERS[form.loader](folder, device)
    except (ImportError, OSError, ValueError, KeyError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise BackendError(f"{folder}: {name} cannot be loaded: {type(error).__name__}: {line}") from error
    return BaselineModel(form, runner, folder, render)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names, sizes and first bytes of a folder's files: one changed is another model."""
    sha = hashlib.sha256()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            start = file.read(DIGESTED_BYTES)
        name = path.relative_to(folder).as_posix()
        sha.update(f"{name} {path.stat().st_size} {hashlib.sha256(start).hexdigest()}\n".encode())
    return sha.hexdigest()
