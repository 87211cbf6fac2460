"""Is a folder what a source expects? Files, columns, and a sample of the films."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.source import Expected, Folders, Source
from radvlm_edge.training.source_tables import find, rows
from radvlm_edge.training.sources import SOURCES

SAMPLE = 200
"""Films whose files are looked for, spread over the index."""


@dataclass(frozen=True)
class Found:
    """One thing that was looked for."""

    what: str
    about: str
    state: str
    """`ok`, `missing`, `optional` (missing and not needed) or `wrong`."""
    detail: str = ""


def check(source: Source, folders: Folders) -> list[Found]:
    """Everything a source expects, found or not; films are looked for if the index can be read."""
    found = []
    for name in (source.name, *source.needs):
        found += [_check(name, folders[name], expected) for expected in SOURCES[name].files]
    if all(one.state in ("ok", "optional") for one in found):
        found += _films(source, folders)
    return found


def _check(source: str, folder: Path, expected: Expected) -> Found:
    what = f"{source}: {' or '.join(expected.paths)}"
    path = find(folder, expected.paths)
    if path is None:
        return Found(what, expected.about, "missing" if expected.required else "optional")
    if not expected.columns:
        return Found(what, expected.about, "ok", str(path))
    try:
        first = next(rows(path, expected.columns), None)
    except (RecipeError, OSError, UnicodeDecodeError) as error:
        return Found(what, expected.about, "wrong", str(error))
    if first is None:
        return Found(what, expected.about, "wrong", f"{path}: no row")
    return Found(what, expected.about, "ok", str(path))


def _films(source: Source, folders: Folders) -> list[Found]:
    """Films of the index by split, and how many of a sample are there."""
    what = f"{source.name}: films"
    how = "official" if source.official_splits else "patients"
    try:
        try:
            records = list(source.read(folders, how))
        except RecipeError:
            if how == "patients":
                raise
            records = list(source.read(folders, how := "patients"))
    except (RecipeError, OSError, ValueError) as error:
        return [Found(what, "the index can be read", "wrong", str(error))]
    splits = {
        split: sum(record.split == split for record in records) for split in ("train", "validate", "test")
    }
    by_split = ", ".join(f"{split} {number}" for split, number in splits.items())
    told = f"{len(records)} in the index ({by_split}; splits: {how})"
    index = Found(what, told, "ok" if records else "wrong")
    sample = records[:: max(1, len(records) // SAMPLE)]
    folder = source.folder_of(folders)
    missing = [record.image for record in sample if not (folder / record.image).is_file()]
    if missing:
        detail = f"{len(missing)} of {len(sample)} looked for, e.g. {folder / missing[0]}"
        return [index, Found(f"{source.name}: film files", "a sample of the index", "missing", detail)]
    return [index, Found(f"{source.name}: film files", f"all of {len(sample)} looked for", "ok")]
