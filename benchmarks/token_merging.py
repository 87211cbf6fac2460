"""Fewer image tokens without fewer pixels: neighbouring tile tokens averaged before the language model.

    python -m radvlm_edge.benchmarks.token_merging BUNDLE [--films 100]

Text-agnostic, so that one prefix still serves every question. A bundle answers questions about drawn films
from all its tokens, from tokens averaged 2 by 2 (the base view whole), and, for comparison, at a detail that
costs about as many; flips and box overlap are against its own answers from all tokens, accuracy against the
truth. The result for the demonstration model: docs/decisions/0013-token-merging.md. JSON goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.benchmarks.nano_run import MOST
from radvlm_edge.benchmarks.nano_suite import Item, draw
from radvlm_edge.export.fidelity_metrics import decision, iou
from radvlm_edge.export.fidelity_score import Score
from radvlm_edge.runtime import anyres, crops, prompts
from radvlm_edge.runtime.answers import parse_boxes
from radvlm_edge.runtime.crops import Layout
from radvlm_edge.runtime.detail import capped
from radvlm_edge.runtime.reader import Options, Reader

Floats = npt.NDArray[np.float32]

FIRST_SEED = 62_000_000
FACTOR = 2
YES_NO_TOKENS = 24


def merge(tokens: Floats, layout: Layout, factor: int) -> Floats:
    """Image tokens `[t, d]` with the film's feature map averaged `factor` by `factor`.

    The base view stays, every row still ends with its newline; what does not fill a square at the right or
    bottom edge is averaged over what is there.
    """
    rows, columns = layout.features
    base, lines = tokens[: layout.tokens_per_crop], tokens[layout.tokens_per_crop :]
    film = lines.reshape(rows, columns + 1, -1)
    newline, film = film[0, -1], film[:, :-1]
    starts = [np.arange(0, size, factor) for size in (rows, columns)]
    counts = [np.diff(np.append(start, size)) for start, size in zip(starts, (rows, columns), strict=True)]
    summed = np.add.reduceat(np.add.reduceat(film, starts[0], axis=0), starts[1], axis=1)
    pooled = summed / (counts[0][:, None, None] * counts[1][None, :, None])
    ends = np.broadcast_to(newline, (len(pooled), 1, film.shape[2]))
    return np.concatenate([base, np.concatenate([pooled, ends], axis=1).reshape(-1, film.shape[2])]).astype(
        np.float32
    )


@dataclass
class Level:
    """What one way of showing films gave."""

    score: Score = field(default_factory=Score)
    """Against the same bundle's answers from all tokens."""
    tokens: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    """Yes/no answers against the truth; one that is neither is wrong."""
    truth_iou: list[float] = field(default_factory=list)
    """Of the first box stated with the best of the true ones."""

    def figures(self) -> dict[str, Any]:
        one = self.score.figures()
        return {
            "image_tokens_mean": float(np.mean(self.tokens)),
            "yes_no": one["yes_no"],
            "boxes": one["boxes"],
            "answers": one["answers"],
            "yes_no_right": float(np.mean(self.right)),
            "true_box_iou": float(np.mean(self.truth_iou)),
            "questions": {"yes_no": len(self.right), "boxes": len(self.truth_iou)},
        }


def shown(reader: Reader, pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[str, Floats]]:
    """A film's image tokens by level, all of them first."""
    geometry = reader.bundle.manifest.geometry
    views, layout = crops.cut(pixels, geometry)
    whole = anyres.pack(reader.tower.encode(views), layout, reader._newline)
    yield "exact", whole
    yield f"merged {FACTOR}x{FACTOR}", merge(whole, layout, FACTOR)
    half = max(map(max, geometry.pinpoints)) // FACTOR
    views, layout = crops.cut(pixels, capped(geometry, half))
    yield f"detail {half}", anyres.pack(reader.tower.encode(views), layout, reader._newline)


def answers(reader: Reader, image: Floats, items: list[Item]) -> list[str]:
    """Greedy answers from these image tokens."""
    language, prompting = reader._language, reader.bundle.manifest.prompting
    language.start([reader._recall.head, image])
    said = []
    for item in items:
        tail = language.tokenize(prompts.render([prompts.Turn(item.question)], prompting)[1])
        most = MOST.get(item.task, YES_NO_TOKENS)
        ids = list(language.generate(tail, stop_ids=prompting.stop_ids, max_tokens=most))
        pieces = b"".join(language.piece(i) for i in ids if i not in prompting.stop_ids)
        said.append(pieces.decode("utf-8", "replace").strip())
    return said


def note(level: Level, item: Item, expected: str, given: str) -> None:
    """Count one answer."""
    level.score.add_answer(expected, given, yes_no=item.task == "yesno")
    if item.task == "yesno":
        level.right.append(decision(given) == item.answer.startswith("Yes"))
    elif item.boxes:
        stated = parse_boxes(given, 1, 1)
        best = (iou(stated[0].xyxy_fraction, true) for true in item.boxes) if stated else (0.0,)
        level.truth_iou.append(max(best))


def measure(reader: Reader, films: int) -> dict[str, Any]:
    """Figures of each level."""
    levels: dict[str, Level] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + films):
        pixels, items = draw(seed)
        items = [item for item in items if item.task != "report"]
        expected: list[str] = []
        for name, image in shown(reader, pixels):
            given = answers(reader, image, items)
            expected = expected or given
            level = levels.setdefault(name, Level())
            level.tokens.append(len(image))
            for item, theirs, ours in zip(items, expected, given, strict=True):
                note(level, item, theirs, ours)
    reader._recall._current = None
    return {
        "bundle": reader.bundle.sha256,
        "films": films,
        "first_seed": FIRST_SEED,
        "levels": {name: level.figures() for name, level in levels.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--films", type=int, default=100)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    with Reader.open(given.bundle, Options(threads=given.threads)) as reader:
        json.dump(measure(reader, given.films), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
