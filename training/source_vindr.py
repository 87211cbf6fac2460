"""VinDr-CXR: DICOM films on which three radiologists each drew what they saw; test films are consensus."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.box_fusion import fuse
from radvlm_edge.training.scores import Box
from radvlm_edge.training.source import Boxed, Expected, FilmRecord, Folders, Source
from radvlm_edge.training.source_tables import find, must_find, number, rows, split_of, stamp

NAME = "vindr-cxr"
CORNERS = ("x_min", "y_min", "x_max", "y_max")
_COLUMNS = ("image_id", "class_name", *CORNERS)
TABLES = {
    "train": Expected(
        ("annotations/annotations_train.csv", "annotations_train.csv"),
        "training boxes, a row a reader and box",
        _COLUMNS,
    ),
    "test": Expected(
        ("annotations/annotations_test.csv", "annotations_test.csv"), "test boxes", _COLUMNS, required=False
    ),
}
SIZES = "image_resolutions_{}.json"
NONE = "No finding"
FUSION_IOU = 0.1
"""Overlap above which two readers' boxes of one class are taken for the same finding; RadVLM's value."""


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Films in the order they first appear; every reader's boxes, in pixels, classes alphabetically."""
    folder = folders[NAME]
    for split, table in TABLES.items():
        path = must_find(folder, table.paths) if table.required else find(folder, table.paths)
        if path is None:
            continue
        films: dict[str, dict[str, list[Box]]] = {}
        for row in rows(path, table.columns):
            drawn = films.setdefault(row["image_id"], {})
            if row["class_name"] == NONE or not row["x_min"]:
                continue
            left, top, right, bottom = (number(row, name, path) for name in CORNERS)
            if left < right and top < bottom:
                drawn.setdefault(row["class_name"], []).append((left, top, right, bottom))
        for film, drawn in films.items():
            findings = tuple(Boxed(name, tuple(drawn[name]), in_pixels=True) for name in sorted(drawn))
            yield FilmRecord(
                NAME,
                film,
                f"{split}/{film}.dicom",
                film,
                film,
                split if splits == "official" else split_of("vindr", film),
                "PA",
                findings=findings,
            )


def complete(folders: Folders, record: FilmRecord) -> FilmRecord:
    """Fuse the readers' boxes of each class into fractions of the film's size, three digits as RadVLM's."""
    height, width = _size(folders[NAME], record)
    findings = tuple(
        Boxed(one.text, tuple(_fused(one.boxes, width, height))) for one in record.findings or ()
    )
    return dataclasses.replace(record, findings=findings, size=(height, width))


def _fused(boxes: tuple[Box, ...], width: int, height: int) -> list[Box]:
    scaled = [
        (min(x1 / width, 1.0), min(y1 / height, 1.0), min(x2 / width, 1.0), min(y2 / height, 1.0))
        for x1, y1, x2, y2 in boxes
    ]
    inside = [box for box in scaled if box[0] < box[2] and box[1] < box[3]]
    fused = fuse([(box, 1.0) for box in inside], FUSION_IOU)
    return [tuple(round(value, 3) for value in one.box) for one in fused]  # type: ignore[misc]


@lru_cache(maxsize=2)
def _sizes(path: Path, _: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {film: (int(height), int(width)) for film, (height, width) in json.loads(path.read_text()).items()}


def _size(folder: Path, record: FilmRecord) -> tuple[int, int]:
    """Height and width: from RadVLM's resolutions file where it exists, else from the DICOM header."""
    split = record.image.partition("/")[0]
    name = SIZES.format(split)
    path = find(folder, (f"annotations/{name}", name))
    known = _sizes(path, stamp(path)).get(record.film) if path else None
    if known:
        return known
    film = folder / record.image
    try:
        header = pydicom.dcmread(film, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return int(header.Rows), int(header.Columns)
    except (OSError, InvalidDicomError, AttributeError, ValueError, EOFError) as error:
        raise RecipeError(f"{film}: its size cannot be read ({error}); copy it again") from error


SOURCE = Source(
    NAME,
    "VinDr-CXR",
    "vindr",
    (*TABLES.values(), Expected(("train",), "the films, train/IMAGE_ID.dicom")),
    "PhysioNet vindr-cxr 1.0.0: credentialed account, CITI training, DUA",
    "PhysioNet Credentialed Health Data License 1.5.0: no redistribution",
    records,
    complete,
)
