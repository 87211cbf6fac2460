"""PadChest-GR: sentences of PadChest reports, in English, with their places on the film."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.scores import Box
from radvlm_edge.training.source import Boxed, Expected, FilmRecord, Folders, Source
from radvlm_edge.training.source_tables import find, must_find, rows, split_of

NAME = "padchest-gr"
GROUNDED = Expected(("grounded_reports_20240819.json",), "sentences with boxes, an entry a study")
MASTER = Expected(
    ("master_table.csv",), "official splits by patient", ("ImageID", "PatientSex_DICOM", "split")
)
PADCHEST = Expected(
    ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",),
    "PadChest's own table: projections and patients",
    ("ImageID", "StudyID", "PatientID", "Projection"),
)
IMAGES = Expected(
    ("images_grounding", "PadChest_GR", "Padchest_GR_files/PadChest_GR"), "the films, IMAGE_ID.png"
)
_SPLITS = {"train": "train", "validation": "validate", "test": "test"}


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Films of PadChest's table that the master table splits, in the order of the grounded reports."""
    folder = folders[NAME]
    master = {
        row["ImageID"]: (row["PatientSex_DICOM"], _SPLITS.get(row["split"], ""))
        for row in rows(must_find(folder, MASTER.paths), MASTER.columns)
    }
    known = {
        row["ImageID"]: row
        for row in rows(must_find(folder, PADCHEST.paths), PADCHEST.columns)
        if row["ImageID"] in master
    }
    images = find(folder, IMAGES.paths)
    inside = images.relative_to(folder).as_posix() if images else IMAGES.paths[0]
    path = must_find(folder, GROUNDED.paths)
    for entry in _entries(folder):
        film = str(entry["ImageID"])
        if film not in known:
            continue
        row, (sex, split) = known[film], master[film]
        view = row["Projection"]
        try:
            phrases = tuple(
                Boxed(" ".join(str(one["sentence_en"]).split()), tuple(_box(box) for box in one["boxes"]))
                for one in entry.get("findings", [])
                if one.get("boxes")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{path}: {film}: not a finding of PadChest-GR: {error!r}") from error
        yield FilmRecord(
            NAME,
            film,
            f"{inside}/{film}",
            row["PatientID"],
            row["StudyID"],
            split if splits == "official" else split_of("padchest", row["PatientID"]),
            view if view in ("PA", "AP") else "lateral",
            sex if sex in ("F", "M") else "",
            phrases=phrases,
        )


def _entries(folder: Any) -> list[dict[str, Any]]:
    path = must_find(folder, GROUNDED.paths)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON: {error}; copy it again") from error
    if not isinstance(entries, list):
        raise RecipeError(f"{path}: a list of studies is needed, found {type(entries).__name__}")
    return entries


def _box(given: Any) -> Box:
    """left, top, right, bottom as fractions; the file holds fractions already."""
    left, top, right, bottom = (float(value) for value in given)
    return left, top, right, bottom


SOURCE = Source(
    NAME,
    "PadChest",
    "padchest",
    (GROUNDED, MASTER, PADCHEST, IMAGES),
    "BIMCV PadChest-GR (and PadChest for its table): request form",
    "PadChest Dataset Research Use Agreement: no redistribution",
    records,
)
