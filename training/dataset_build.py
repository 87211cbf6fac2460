"""A recipe and folders → counts, or a data set in shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from radvlm_edge.errors import FilmError
from radvlm_edge.training.conversation_facts import Writer
from radvlm_edge.training.dataset_pairs import Candidate, candidates, held_out, tally
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry
from radvlm_edge.training.dataset_render import Renderer, pair_name
from radvlm_edge.training.dataset_shards import SUFFIX, Pair, film_bytes, write_shard
from radvlm_edge.training.dataset_state import State, fingerprint, inputs_of
from radvlm_edge.training.dataset_tasks import Rejected
from radvlm_edge.training.sources import SOURCES

Progress = Callable[[int, int, int], None]
"""(pairs dealt with, pairs in all, of them rejected), called after every pair."""


@dataclass(frozen=True)
class Count:
    """Pairs of one entry."""

    entry: Entry
    pairs: int
    """Before repeats."""


def count(recipe: DataRecipe, root: Path) -> list[Count]:
    """Pairs of every entry, from index files alone. Raises RecipeError for missing files and leaks."""
    folders = recipe.folders(root)
    apart = held_out(recipe, folders)
    pairs = [0] * len(recipe.pairs)
    for source in dict.fromkeys(entry.source for entry in recipe.pairs):
        at = [index for index, entry in enumerate(recipe.pairs) if entry.source == source]
        counted = tally(recipe, folders, source, [recipe.pairs[index] for index in at], apart)
        for index, number in zip(at, counted, strict=True):
            pairs[index] = number
    return [Count(entry, number) for entry, number in zip(recipe.pairs, pairs, strict=True)]


class _Build:
    def __init__(self, recipe: DataRecipe, root: Path, out: Path, writer: Writer, progress: Progress) -> None:
        self._recipe, self._root, self._out, self._progress = recipe, root, out, progress
        self._folders = recipe.folders(root)
        self._render = Renderer(recipe, self._folders, writer)
        self._rejected: Counter[str] = Counter()
        self._dealt = self._refused = self._total = 0

    def run(self, state: State, counts: list[Count]) -> list[dict[str, Any]]:
        """Write every shard that is not there yet; their descriptions in order."""
        self._total = sum(one.pairs * one.entry.repeats for one in counts)
        apart = held_out(self._recipe, self._folders)
        shards = []
        for index, entry in enumerate(self._recipe.pairs):
            for repeat in range(entry.repeats):
                stream = candidates(self._recipe, self._folders, entry, apart)
                for number, chunk in enumerate(_chunks(stream, self._recipe.shard_pairs)):
                    name = f"{index:02d}-{entry.task}-{entry.source}-{repeat}-{number:05d}"
                    shards.append(self._shard(state, name, entry, repeat, chunk, index))
        return shards

    def _shard(
        self, state: State, name: str, entry: Entry, repeat: int, chunk: list[Candidate], index: int
    ) -> dict[str, Any]:
        name += SUFFIX[self._recipe.format]
        done = state.done.get(name)
        if done is None:
            self._rejected, self._render.notes = Counter(), Counter()
            pairs = self._pairs(entry, repeat, chunk)
            written, sha256, size = write_shard(self._out / name, pairs, self._recipe.format)
            done = {
                "name": name,
                "entry": index,
                "pairs": written,
                "sha256": sha256,
                "bytes": size,
                "rejected": dict(sorted(self._rejected.items())),
                "notes": dict(sorted(self._render.notes.items())),
            }
            state.add(done)
        else:
            self._dealt += len(chunk)
            self._refused += len(chunk) - done["pairs"]
            self._progress(self._dealt, self._total, self._refused)
        return done

    def _pairs(self, entry: Entry, repeat: int, chunk: list[Candidate]) -> Iterator[Pair]:
        embed = self._recipe.embed or self._recipe.format == "webdataset"
        folder = SOURCES[entry.source].folder_of(self._folders)
        for candidate in chunk:
            record = candidate.record
            self._dealt += 1
            try:
                turns = self._render.turns(entry, candidate, repeat)
                content = film_bytes(folder / record.image, self._recipe.longest_px) if embed else None
            except Rejected as reason:
                self._reject(str(reason))
            except FilmError:
                self._reject("the film cannot be read")
            else:
                yield Pair(
                    pair_name(entry, candidate, repeat), entry.task, entry.source, record.film,
                    record.patient, record.split, entry.weight, tuple(turns),
                    Path(os.path.relpath(folder / record.image, self._root)).as_posix(), content,
                )  # fmt: skip
            self._progress(self._dealt, self._total, self._refused)

    def _reject(self, reason: str) -> None:
        self._rejected[reason] += 1
        self._refused += 1


def _chunks(stream: Iterator[Candidate], size: int) -> Iterator[list[Candidate]]:
    while chunk := list(islice(stream, size)):
        yield chunk


def build(
    recipe: DataRecipe,
    root: Path,
    out: Path,
    writer: Writer,
    *,
    progress: Progress = lambda *_: None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the data set to `out`, going on where a killed build of the same inputs stopped.

    Returns what dataset.json holds: per entry the pairs found, written and rejected with reasons, and
    every shard with its SHA-256. Raises RecipeError for missing files or leaks, OutputError for a
    folder that holds something else.
    """
    inputs = inputs_of(recipe, recipe.folders(root), writer.name)
    counts = count(recipe, root)
    state = State(out, inputs, force)
    shards = _Build(recipe, root, out, writer, progress).run(state, counts)
    entries = []
    for index, one in enumerate(counts):
        own = [shard for shard in shards if shard["entry"] == index]
        rejected: Counter[str] = Counter()
        for shard in own:
            rejected.update(shard["rejected"])
        entries.append(
            {
                "task": one.entry.task,
                "source": one.entry.source,
                "pairs": one.pairs,
                "repeats": one.entry.repeats,
                "written": sum(shard["pairs"] for shard in own),
                "rejected": dict(sorted(rejected.items())),
            }
        )
    manifest = {
        "name": recipe.name,
        "inputs": fingerprint(inputs),
        "pairs": sum(shard["pairs"] for shard in shards),
        "entries": entries,
        "shards": shards,
    }
    state.finish(manifest)
    return manifest
