"""Phantoms and NIH films → instruction shards of several tasks, in the form `dataset build` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from radvlm_edge.errors import OutputError
from radvlm_edge.runtime.prompts import Turn
from radvlm_edge.training.curriculum import film_exchanges, real_exchanges
from radvlm_edge.training.dataset_shards import Pair, digest, write_shard
from radvlm_edge.training.dataset_state import MANIFEST
from radvlm_edge.training.instructions import Exchange, labels_of
from radvlm_edge.training.phantom import make_phantom

if TYPE_CHECKING:
    from radvlm_edge.training.films import RealSet

FIRST = 40_000_000
"""Seed of the first phantom; the demonstration model's and its tests' lie elsewhere."""
SHORT_PX = (380, 520)
TASK = {"finding": "abnormality", "several": "abnormality"}
"""What an exchange is about → the task's name in data sets, where the two differ."""
SHARD_FILMS = 500
FILMS = "films"


def make_data(out: Path, films: int, seed: int, real: RealSet | None, passes: int = 4) -> dict[str, Any]:
    """Draw phantoms, ask about them and about real films (`passes` times), write films and shards to `out`.

    Returns the manifest. A finished folder made of the same is left as it is; for one made of something else
    OutputError is raised.
    """
    names = [film.name for film in real.films] if real else []
    inputs = digest(json.dumps([films, seed, passes, FIRST, SHORT_PX, names]).encode())
    if (out / MANIFEST).is_file():
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
        if manifest["inputs"] != inputs:
            raise OutputError(f"{out}: holds films of other choices; choose another folder")
        return manifest
    (out / FILMS).mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, films, SHARD_FILMS):
        numbers = range(first, min(first + SHARD_FILMS, films))
        pairs = (pair for number in numbers for pair in _about_phantom(out, FIRST + number, seed))
        shards.append(_shard(out / f"phantoms-{first:06d}.parquet", pairs))
    if real:
        shards.append(_shard(out / "nih.parquet", _about_real(out, real, seed, passes)))
    manifest = {
        "name": "ablation",
        "inputs": inputs,
        "pairs": sum(int(shard["pairs"]) for shard in shards),
        "shards": shards,
    }
    partial = out / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    partial.replace(out / MANIFEST)
    return manifest


def _shard(path: Path, pairs: Iterator[Pair]) -> dict[str, Any]:
    written, sha256, size = write_shard(path, pairs, "parquet")
    return {"name": path.name, "pairs": written, "sha256": sha256, "bytes": size}


def _about_phantom(out: Path, number: int, seed: int) -> Iterator[Pair]:
    phantom = make_phantom(number, SHORT_PX)
    exchanges = film_exchanges(np.random.default_rng([seed, number]), labels_of(phantom))
    film = f"phantom-{number}.png"
    Image.fromarray(phantom.pixels).save(out / FILMS / film)
    yield from _pairs("phantom", film, film, exchanges)


def _about_real(out: Path, real: RealSet, seed: int, passes: int) -> Iterator[Pair]:
    for index in range(passes * len(real.films)):
        rng = np.random.default_rng([seed, 1, index])
        film, name = real.pick(rng)
        path = out / FILMS / film.name
        if not path.exists():
            Image.fromarray(film.pixels).save(path)
        yield from _pairs("nih", film.name, f"{film.name}#{index}", real_exchanges(rng, film.labels, name))


def _pairs(source: str, film: str, key: str, exchanges: list[Exchange]) -> Iterator[Pair]:
    for index, one in enumerate(exchanges):
        task = TASK.get(one.task, one.task)
        yield Pair(
            f"{source}/{task}/{key}/{index}", task, source, film, film, "train", 1.0,
            (Turn(one.question, one.answer),), f"{FILMS}/{film}", None,
        )  # fmt: skip
