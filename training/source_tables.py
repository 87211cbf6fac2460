"""Index files: finding them, reading their rows, and what their columns mean."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.training.source import LabelState

CHEXPERT_COLUMNS = tuple(" ".join(word.capitalize() for word in name.split()) for name in LABELS)
"""`Atelectasis` … `Support Devices`: the columns of CheXpert-labeller tables."""
NO_FINDING = "No Finding"
VALIDATE_PERCENT, TEST_PERCENT = 10, 10

csv.field_size_limit(2**24)


def find(folder: Path, paths: Sequence[str]) -> Path | None:
    """The first of `paths` that exists in the folder, plain or gzipped."""
    for path in paths:
        for spelt in (path, f"{path}.gz"):
            if (folder / spelt).exists():
                return folder / spelt
    return None


def must_find(folder: Path, paths: Sequence[str]) -> Path:
    """The same. Raises RecipeError naming the file."""
    found = find(folder, paths)
    if found is None:
        wanted = " or ".join(paths)
        raise RecipeError(
            f"{folder}: {wanted} is missing; `radvlm-edge dataset check` lists what is expected"
        )
    return found


def open_text(path: Path) -> IO[str]:
    """A plain or gzipped text file; a byte order mark is skipped."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV table as column → text. Raises RecipeError if a column is missing or a row is cut off."""
    with open_text(path) as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise RecipeError(f"{path}: no column {missing[0]!r}; its columns are {', '.join(header)}")
        width = max(header.index(name) for name in columns) + 1 if columns else 0
        for row in lines:
            if not row:
                continue
            if len(row) < width:
                raise RecipeError(
                    f"{path}: line {lines.line_num} has {len(row)} columns, {width} are needed; copy it again"
                )
            yield dict(zip(header, row, strict=False))


def number(row: Mapping[str, str], column: str, path: Path) -> float:
    """A cell's number. Raises RecipeError naming table, column and value."""
    try:
        return float(row[column])
    except ValueError as error:
        raise RecipeError(f"{path}: {column} is {row[column]!r}; a number is needed") from error


def label_state(row: Mapping[str, str], path: Path, no_finding_clears: bool) -> LabelState:
    """A row of a CheXpert-labeller table: 1 present, 0 absent, -1 uncertain, empty not mentioned.

    `no_finding_clears`: where `No Finding` is 1 every other finding but support devices is absent
    (what RadVLM does with CheXpert, not with MIMIC-CXR). Columns a table lacks count as not mentioned.
    """
    sets: dict[float, set[str]] = {1.0: set(), 0.0: set(), -1.0: set()}
    normal = no_finding_clears and row.get(NO_FINDING, "") in ("1", "1.0")
    for name, column in zip(LABELS, CHEXPERT_COLUMNS, strict=True):
        cell = row.get(column, "")
        if normal and name != "support devices":
            sets[0.0].add(name)
        elif cell:
            value = number(row, column, path)
            if value not in sets:
                raise RecipeError(f"{path}: {column} is {cell!r}; 1, 0, -1 and empty are known")
            sets[value].add(name)
    return LabelState(frozenset(sets[1.0]), frozenset(sets[0.0]), frozenset(sets[-1.0]))


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file's last change: what tells two versions of a table apart."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def share(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone: the same on every machine and in every order."""
    digest = hashlib.sha256("\x00".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(population: str, patient: str) -> str:
    """A patient's split where there is no official one: 80 % train, 10 % validate, 10 % test."""
    at = share("split", population, patient) * 100
    if at < TEST_PERCENT:
        return "test"
    return "validate" if at < TEST_PERCENT + VALIDATE_PERCENT else "train"
