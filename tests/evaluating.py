"""Phantoms on disk with questions in the JSON-lines form, and a model that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from radvlm_edge.benchmarks.evaluate_models import Said, said_of
from radvlm_edge.benchmarks.nano_suite import draw
from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.prompts import Turn

FIRST_SEED = 910_000_000
"""Of phantoms no training, calibration or suite draws."""


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def phantom_lines(folder: Path, count: int) -> Path:
    """So many drawn films and, in data.jsonl, questions of several tasks about each."""
    lines: list[dict[str, Any]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        pixels, items = draw(seed)
        name = f"{seed}.png"
        Image.fromarray(pixels).save(folder / name)
        yes_no = [item for item in items if item.task == "yesno"][:2]
        lines.append(
            {
                "image": name,
                "task": "conversation",
                "turns": [{"question": one.question, "answer": one.answer} for one in yes_no],
            }
        )
        for item in items:
            if item.task == "region":
                boxes = [list(box) for box in item.boxes]
                lines.append({"image": name, "task": "region", "about": item.about, "boxes": boxes})
            if item.task == "report":
                lines.append({"image": name, "task": "report", "text": item.answer})
                lines.append({"image": name, "task": "classify", "labels": list(item.labels)})
    return write_lines(folder / "data.jsonl", lines)


class Told:
    """A model whose answers a function gives; counts what it is asked."""

    chat = "onevision"

    def __init__(self, says: Callable[[str, str], str], name: str = "told") -> None:
        self.says, self.name = says, name
        self.asked: list[str] = []
        self.looks = 0

    def unsupported(self, task: str) -> str | None:
        return "it never learned to" if task == "detect" and self.name == "cannot" else None

    def describe(self) -> dict[str, Any]:
        return {"kind": "told", "name": self.name, "sha256": "0" * 64}

    def look(self, image: Path | bytes) -> Told:
        self.looks += 1
        self.size = load_film(image).pixels.shape
        return self

    def answer(self, task: str, history: Sequence[Turn], question: str, about: str, most: int) -> Said:
        self.asked.append(question)
        return said_of(self.says(question, about), 0.75)

    def close(self) -> None:
        pass
