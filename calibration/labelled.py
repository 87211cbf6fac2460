"""Films and yes/no questions with known answers: a folder and its CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.film import Film

COLUMNS = ("film", "question", "answer")
GROUP = "patient"
"""Optional column: films of one patient are never on both sides of a split."""
WORDS = {"yes": True, "no": False}


@dataclass(frozen=True)
class Labelled:
    """One film and what is asked about it."""

    group: str
    """Patient, or the film itself: what is kept together."""
    film: Path | Film
    questions: tuple[tuple[str, bool], ...]
    """Question, and whether Yes is right."""


def read_labelled(folder: Path) -> list[Labelled]:
    """Read the one CSV in a folder of films: columns film, question, answer (Yes or No), perhaps patient.

    `film` is a path below the folder. Raises RecipeError naming file and line for whatever cannot be used.
    """
    table = _table(folder)
    films: dict[str, list[tuple[str, bool]]] = {}
    groups: dict[str, str] = {}
    for line, row in _rows(table):
        name, question, answer = ((row[column] or "").strip() for column in COLUMNS)
        word = answer.lower().rstrip(".")
        if word not in WORDS:
            raise RecipeError(f"{table}, line {line}: the answer {answer!r} is neither Yes nor No; write one")
        if not question:
            raise RecipeError(f"{table}, line {line}: no question there; write one")
        if not (folder / name).is_file():
            raise RecipeError(f"{table}, line {line}: {name!r} is no file below {folder}; name its film")
        group = (row.get(GROUP) or "").strip() or name
        if groups.setdefault(name, group) != group:
            raise RecipeError(
                f"{table}, line {line}: {name} belongs to {groups[name]!r} further up; write one {GROUP}"
            )
        films.setdefault(name, []).append((question, WORDS[word]))
    return [Labelled(groups[name], folder / name, tuple(asked)) for name, asked in films.items()]


def _table(folder: Path) -> Path:
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        held = ", ".join(path.name for path in tables) or "none"
        raise RecipeError(
            f"{folder}: one CSV with the columns {', '.join(COLUMNS)} is needed there, found {held}"
        )
    return tables[0]


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Line number and cells of each row."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise RecipeError(f"{table}: no column {', '.join(missing)}; its first line must name them")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{table}: cannot be read as CSV in UTF-8: {error}") from error
