"""Films → the pairs an entry of a recipe may become, from index files alone: counted and built alike."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.dataset_recipe import DataRecipe, Entry
from radvlm_edge.training.report_filter import filter_report
from radvlm_edge.training.source import FilmRecord, Folders
from radvlm_edge.training.source_tables import share
from radvlm_edge.training.sources import SOURCES

IN_CLASH = 5
"""Patients named in an error about leaks."""


@dataclass(frozen=True)
class Candidate:
    """A pair to be: a film, and which of its findings or sentences."""

    record: FilmRecord
    item: int = 0
    """Index into the record's findings or phrases; 0 for the tasks about the whole film."""

    @property
    def key(self) -> str:
        return f"{self.record.film}#{self.item}"


@lru_cache(maxsize=4096)
def filtered_text(report: str, how: str) -> str:
    """A report after the recipe's filter; films of one study share it."""
    return report if how == "none" else filter_report(report).text


def items(record: FilmRecord, task: str, recipe: DataRecipe) -> int:
    """How many pairs of a task a film gives. Lateral films give none."""
    if not record.frontal:
        return 0
    if task == "report":
        return int(bool(record.report and filtered_text(record.report, recipe.filter)))
    if task == "classify":
        return int(record.labels is not None and record.labels.resolved(recipe.uncertain) is not None)
    if task == "region":
        return int(record.regions is not None)
    if task == "abnormality":
        return len(record.findings or ())
    if task == "detect":
        return int(record.findings is not None)
    if task == "phrase":
        return len(record.phrases)
    if task == "conversation-grounded":
        return int(bool(record.phrases))
    has_report = bool(record.report and filtered_text(record.report, recipe.filter))
    resolved = record.labels and record.labels.resolved(recipe.uncertain)
    return int(has_report and resolved is not None)


def read(recipe: DataRecipe, folders: Folders, source: str) -> Iterator[FilmRecord]:
    """Films of a source, split as the recipe says. Raises RecipeError if a film comes twice."""
    how = recipe.plan(source).splits
    if SOURCES[source].official_splits is False:
        how = "patients"
    seen: set[str] = set()
    for record in SOURCES[source].read(folders, how):
        if record.film in seen:
            raise RecipeError(f"{source}: film {record.film} is in the index twice; copy the index again")
        seen.add(record.film)
        yield record


def held_out(recipe: DataRecipe, folders: Folders) -> set[tuple[str, str]]:
    """(population, patient) of every film in a held-out split, over all sources of the recipe."""
    return {
        (SOURCES[name].population, record.patient)
        for name in recipe.needed()
        for record in read(recipe, folders, name)
        if record.split in recipe.held_out
    }


def candidates(
    recipe: DataRecipe, folders: Folders, entry: Entry, apart: set[tuple[str, str]]
) -> Iterator[Candidate]:
    """Pairs of an entry in the index's order, `take` applied.

    `apart` are the held-out patients. Raises RecipeError for one in a training split, unless the
    recipe says to drop them.
    """
    if entry.take is None:
        yield from _all(recipe, folders, entry, apart)
        return
    ranked = ((_rank(recipe, entry, one.key), one.key) for one in _all(recipe, folders, entry, apart))
    chosen = {key for _, key in heapq.nsmallest(entry.take, ranked)}
    yield from (one for one in _all(recipe, folders, entry, apart) if one.key in chosen)


def _rank(recipe: DataRecipe, entry: Entry, key: str) -> float:
    return share("take", str(recipe.seed), entry.task, entry.source, key)


def _all(
    recipe: DataRecipe, folders: Folders, entry: Entry, apart: set[tuple[str, str]]
) -> Iterator[Candidate]:
    leaked: list[str] = []
    for record in read(recipe, folders, entry.source):
        for item in range(_pairs(recipe, entry, record, apart, leaked)):
            yield Candidate(record, item)
    _no_leaks(recipe, entry, leaked)


def tally(
    recipe: DataRecipe, folders: Folders, source: str, entries: list[Entry], apart: set[tuple[str, str]]
) -> list[int]:
    """Pairs of several entries of one source, in one reading of its index: as many as `candidates` gives."""
    totals = [0] * len(entries)
    leaked: list[list[str]] = [[] for _ in entries]
    for record in read(recipe, folders, source):
        for at, entry in enumerate(entries):
            totals[at] += _pairs(recipe, entry, record, apart, leaked[at])
    for entry, patients in zip(entries, leaked, strict=True):
        _no_leaks(recipe, entry, patients)
    return [
        total if entry.take is None else min(total, entry.take)
        for entry, total in zip(entries, totals, strict=True)
    ]


def _pairs(
    recipe: DataRecipe, entry: Entry, record: FilmRecord, apart: set[tuple[str, str]], leaked: list[str]
) -> int:
    """Pairs an entry makes of a film; a held-out patient's are none, and are noted in `leaked`."""
    if record.split not in entry.splits:
        return 0
    if (SOURCES[entry.source].population, record.patient) in apart:
        leaked.append(record.patient)
        return 0
    return items(record, entry.task, recipe)


def _no_leaks(recipe: DataRecipe, entry: Entry, leaked: list[str]) -> None:
    """Raises RecipeError if there are any, unless the recipe drops them."""
    if leaked and recipe.leaks == "error":
        patients = sorted(set(leaked))
        named = ", ".join(patients[:IN_CLASH]) + (", …" if len(patients) > IN_CLASH else "")
        raise RecipeError(
            f"{entry.task} from {entry.source}: {len(leaked)} training films are of {len(patients)} patients "
            f"who are held out in the same or another source ({named}); set `leaks: drop` to leave them out"
        )
