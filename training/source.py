"""What every data source gives: films, and what is known of each. The one interface of `source_*.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from radvlm_edge.training.scores import Box

SPLITS = ("train", "validate", "test")
"""A film is in one of these, or in `""`: left out, because two official splits disagree about it."""

Folders = Mapping[str, Path]
"""Source name → its folder, for every source a build or a check may read."""


@dataclass(frozen=True)
class LabelState:
    """What a labeller says about RadVLM's 13 findings; what is in none of the sets was not mentioned."""

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    uncertain: frozenset[str] = frozenset()

    def resolved(self, policy: str) -> LabelState | None:
        """Uncertain findings made `present` (the paper's policy) or `absent`; `drop`: None with any."""
        if policy == "drop":
            return None if self.uncertain else self
        if policy == "present":
            return LabelState(self.present | self.uncertain, self.absent)
        return LabelState(self.present, self.absent | self.uncertain)


@dataclass(frozen=True)
class Boxed:
    """Something with its places on the film."""

    text: str
    """A region's or finding's name, or a sentence of a report, as the source spells it."""
    boxes: tuple[Box, ...]
    """left, top, right, bottom: fractions of the film's width and height, unless `in_pixels`."""
    in_pixels: bool = False
    """The source gives pixels and its index does not say how large the film is."""


@dataclass(frozen=True)
class FilmRecord:
    """One film, as far as the source's index files tell; `Source.complete` adds what lies beside it."""

    source: str
    film: str
    """The source's own id of the film."""
    image: str
    """The film's file, relative to `folder_of`'s folder."""
    patient: str
    """Within the source's population; the film's own id where the source tells no patients apart."""
    study: str
    split: str
    """One of SPLITS, or `""`."""
    view: str
    """`PA`, `AP`, `frontal` (either) or `lateral`; `""` where unknown."""
    sex: str = ""
    """`F`, `M` or `""`."""
    size: tuple[int, int] | None = None
    """Height and width in pixels where the index tells."""
    labels: LabelState | None = None
    """None: nobody labelled it."""
    report: str | None = None
    """Findings, or impression where there are none; unfiltered. None: no report."""
    regions: tuple[Boxed, ...] | None = None
    """Anatomy. None: not annotated, or not read yet."""
    findings: tuple[Boxed, ...] | None = None
    """Every finding drawn on the film; `()`: looked at, none there. None: not annotated."""
    phrases: tuple[Boxed, ...] = ()
    """Sentences of the report with their places."""

    @property
    def frontal(self) -> bool:
        return self.view in ("PA", "AP", "frontal")


@dataclass(frozen=True)
class Expected:
    """A file or folder a source is made of."""

    paths: tuple[str, ...]
    """Relative to the source's folder; the first that exists is used, `.gz` beside it counting as well."""
    about: str
    columns: tuple[str, ...] = ()
    """Of a table: those that are read."""
    required: bool = True


@dataclass(frozen=True)
class Source:
    """One collection of films."""

    name: str
    folder: str
    """Its folder's name under a build's root, unless the recipe names another."""
    population: str
    """Sources of one population share patients and their ids."""
    files: tuple[Expected, ...]
    access: str
    """How to get it."""
    licence: str
    read: Callable[[Folders, str], Iterator[FilmRecord]]
    """Films in the index's order, and how to split them: `official` or `patients` (see `split_of`)."""
    complete: Callable[[Folders, FilmRecord], FilmRecord] = lambda _, record: record
    """Add what is read from the film's own files, when a pair is written."""
    needs: tuple[str, ...] = ()
    """Other sources whose folders are read as well."""
    images_in: str = ""
    """Source whose folder holds the films, if another."""
    official_splits: bool = True

    def folder_of(self, folders: Folders) -> Path:
        """The folder `FilmRecord.image` is relative to."""
        return folders[self.images_in or self.name]
