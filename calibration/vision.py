"""Films and a float vision graph → the calibration both INT8 graphs are made from.

One pass over the crops fills the histograms; a few crops are run again to choose smoothing and thresholds,
and the held-out ones to see what INT8 costs. A killed run goes on with its histograms.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from radvlm_edge.calibration.crop_choice import Choice, Pick, batches, choose_crops
from radvlm_edge.calibration.film_sets import Seen
from radvlm_edge.calibration.histograms import BINS, ChannelHistograms
from radvlm_edge.calibration.pieces import BATCH, Pieces
from radvlm_edge.calibration.sensitivity import Search, until_gate
from radvlm_edge.calibration.smooth import choose
from radvlm_edge.errors import OutputError
from radvlm_edge.export.int8_table import GATE, GROUPS, NORM_BEFORE, Group, Table
from radvlm_edge.export.progress import Progress
from radvlm_edge.geometry import Geometry

CROPS, HELD_OUT = 500, 16
SAMPLED_CROPS, ROWS_PER_CROP = 16, 16
"""What smoothing and thresholds are chosen on, besides the histograms of all crops."""
SAVE_EVERY = 32
"""Crops between two saves of the histograms."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Films:
    """What to calibrate on, and how to tell of it."""

    seen: Sequence[Seen]
    kind: str
    """`films of a folder`, or the name of a set."""
    salt: str
    """Of the hashes in the calibration file; never written into it."""


def calibrate(
    graph: Path,
    source_sha256: str,
    geometry: Geometry,
    films: Films,
    *,
    unfinished: Path,
    crops: int = CROPS,
    held_out: int = HELD_OUT,
    gate: float = GATE,
    threads: int | None = None,
    progress: Progress,
    save_every: int = SAVE_EVERY,
) -> Table:
    """Calibrate the `fp32` or `fp16` vision graph of the checkpoint with this digest.

    `unfinished` is where the histograms wait while this runs; it is removed at the end.
    Raises FilmError, BundleError or ParityError.
    """
    choice = choose_crops(films.seen, geometry, crops, held_out)
    if len(choice.picks) < crops:
        progress.stage(f"only {len(choice.picks)} crops are there; {crops} were asked for")
    pieces = Pieces(graph, threads)
    histograms = _collect(pieces, choice, source_sha256, geometry, unfinished, progress, save_every)
    groups = _choose(pieces, choice, histograms, geometry, progress)
    described = choice.described(films.kind, films.salt)
    table = Table(source_sha256, groups, gate=gate, films=described)
    views = np.concatenate([*batches(choice.held_out, geometry, BATCH)])
    batches_of_views = -(-len(views) // BATCH)
    progress.stage(
        f"sensitivity of {pieces.blocks} blocks on {len(views)} held-out crops", batches_of_views, "batches"
    )
    search = Search(pieces, views, progress.advance)
    table = until_gate(search, table, progress.stage)
    unfinished.unlink(missing_ok=True)
    return table


def _collect(
    pieces: Pieces,
    choice: Choice,
    source_sha256: str,
    geometry: Geometry,
    unfinished: Path,
    progress: Progress,
    save_every: int,
) -> dict[str, ChannelHistograms]:
    """Run every chosen crop once; the inputs of all groups are counted as they come by."""
    histograms = {
        f"blocks.{block}.{kind}": ChannelHistograms(
            pieces.shape(f"blocks.{block}.{linears[0]}.weight")[0] if kind in NORM_BEFORE else 1
        )
        for block in range(pieces.blocks)
        for kind, linears in GROUPS.items()
    }
    request = {"source": source_sha256, "choice": choice.digest(), "bins": BINS}
    done = _restore(unfinished, request, histograms)
    progress.stage(
        f"histograms of {len(histograms)} tensors" + (f", going on behind {done} crops" if done else ""),
        len(choice.picks) - done,
        "crops",
    )
    saved = done
    for views in batches(choice.picks[done:], geometry, BATCH):
        hidden = pieces.start(views)
        for block in range(pieces.blocks):
            hidden, inputs = pieces.step(block, hidden)
            for kind, values in inputs.items():
                histograms[f"blocks.{block}.{kind}"].add(values)
        done += len(views)
        progress.advance(len(views))
        if done - saved >= save_every and done < len(choice.picks):
            saved = done
            _save(unfinished, request, done, histograms)
    return histograms


def _choose(
    pieces: Pieces,
    choice: Choice,
    histograms: dict[str, ChannelHistograms],
    geometry: Geometry,
    progress: Progress,
) -> dict[str, Group]:
    """Smoothing and threshold of every group, on rows of some of the crops."""
    step = max(1, len(choice.picks) // SAMPLED_CROPS)
    sampled: list[Pick] = list(choice.picks[::step][:SAMPLED_CROPS])
    rows: dict[str, list[Floats]] = {name: [] for name in histograms}
    rng = np.random.default_rng(0)
    for views in batches(sampled, geometry, BATCH):
        hidden = pieces.start(views)
        for block in range(pieces.blocks):
            hidden, inputs = pieces.step(block, hidden)
            for kind, values in inputs.items():
                flat = values.reshape(-1, values.shape[-1])
                wanted = min(len(flat), ROWS_PER_CROP * len(views))
                rows[f"blocks.{block}.{kind}"].append(flat[rng.choice(len(flat), wanted, replace=False)])
    progress.stage("smoothing and thresholds, by each layer's own error", len(histograms), "groups")
    groups = {}
    for name, histogram in histograms.items():
        root, _, kind = name.rpartition(".")
        weight = np.concatenate([pieces.weight(f"{root}.{one}.weight") for one in GROUPS[kind]], 1)
        groups[name] = choose(histogram, np.concatenate(rows[name]), weight, smooth=kind in NORM_BEFORE)
        progress.advance(1)
    return groups


def _save(path: Path, request: dict[str, Any], done: int, histograms: dict[str, ChannelHistograms]) -> None:
    """Keep what was counted, whole or not at all. Raises OutputError."""
    arrays = {f"{name}/{part}": a for name, one in histograms.items() for part, a in one.state().items()}
    note = json.dumps({**request, "done": done})
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("wb") as file:
            np.savez(file, note=np.array(note), **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _restore(path: Path, request: dict[str, Any], histograms: dict[str, ChannelHistograms]) -> int:
    """Take up what an earlier run of the same request counted; returns the number of its crops."""
    try:
        with np.load(path) as file:
            note = json.loads(str(file["note"]))
            done = int(note.pop("done"))
            if note != request:
                return 0
            states = {
                name: {part: file[f"{name}/{part}"] for part in one.state()}
                for name, one in histograms.items()
            }
            for name, one in histograms.items():
                one.restore(states[name])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return 0  # none, or not one of this tower: count anew
    return done
