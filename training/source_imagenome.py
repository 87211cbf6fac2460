"""Chest ImaGenome: 36 anatomical regions on MIMIC-CXR's frontal films, one scene graph a film."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from radvlm_edge.errors import RecipeError
from radvlm_edge.training import source_mimic
from radvlm_edge.training.scores import Box
from radvlm_edge.training.source import Boxed, Expected, FilmRecord, Folders, Source
from radvlm_edge.training.source_tables import find, must_find, rows

NAME = "chest-imagenome"
COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
SPLITS = {
    "train": Expected(("silver_dataset/splits/train.csv",), "training films", COLUMNS),
    "validate": Expected(("silver_dataset/splits/valid.csv",), "validation films", COLUMNS),
    "test": Expected(("silver_dataset/splits/test.csv",), "test films", COLUMNS),
}
GRAPHS = Expected(
    ("silver_dataset/scene_graph",), "scene_graph.zip unpacked: DICOM_ID_SceneGraph.json, a file a film"
)
MISSING = Expected(
    ("silver_dataset/missing_ids.json",),
    "films without a scene graph, a JSON list as RadVLM's code writes; else the folder is listed",
    required=False,
)


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Films with a scene graph. One whose split differs in MIMIC-CXR and here is left out of all splits."""
    folder = folders[NAME]
    films = {film.dicom: film for film in source_mimic.mimic_films(folders, splits)}
    reports = source_mimic.mimic_reports(folders)
    has_graph = _graphs(folder)
    for split, table in SPLITS.items():
        for row in rows(must_find(folder, table.paths), table.columns):
            film = films.get(row["dicom_id"])
            if (
                film is None
                or not has_graph(film.dicom)
                or (reports is not None and film.study not in reports)
            ):
                continue
            agreed = film.split if splits == "patients" or film.split == split else ""
            yield FilmRecord(
                NAME, film.dicom, film.image, film.patient, film.study, agreed,
                film.view if film.view in ("PA", "AP") else "lateral", size=film.size, regions=(),
            )  # fmt: skip


class _graphs:  # noqa: N801 - called like the function it stands for
    """Whether a film has a scene graph, without opening any."""

    def __init__(self, folder: Path) -> None:
        listed = find(folder, MISSING.paths)
        if listed:
            self._without, self._with = set(json.loads(listed.read_text())), None
        else:
            graphs = must_find(folder, GRAPHS.paths)
            self._with = {path.name.partition("_")[0] for path in graphs.glob("*_SceneGraph.json")}

    def __call__(self, dicom: str) -> bool:
        return dicom not in self._without if self._with is None else dicom in self._with


def complete(folders: Folders, record: FilmRecord) -> FilmRecord:
    """Add the regions of the film's scene graph, as fractions. Raises RecipeError for a damaged graph."""
    path = must_find(folders[NAME], GRAPHS.paths) / f"{record.film}_SceneGraph.json"
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
        height, width = record.size or (0, 0)
        regions = [
            Boxed(str(one["bbox_name"]), (_fractions(one, width, height),)) for one in graph["objects"]
        ]
    except OSError as error:
        raise RecipeError(f"{path}: scene graph cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise RecipeError(f"{path}: no scene graph of Chest ImaGenome 1.0.0: {error!r}") from error
    whole = tuple(
        one for one in regions if one.boxes[0][0] < one.boxes[0][2] and one.boxes[0][1] < one.boxes[0][3]
    )
    sex = {"F": "F", "M": "M"}.get(str(graph.get("gender", ""))[:1].upper(), "")
    return dataclasses.replace(record, regions=whole, sex=sex)


def _fractions(one: dict[str, float], width: int, height: int) -> Box:
    """A region's box on the original film, clamped to it: the silver boxes may stick out."""
    left, right = (min(max(float(one[key]) / width, 0.0), 1.0) for key in ("original_x1", "original_x2"))
    top, bottom = (min(max(float(one[key]) / height, 0.0), 1.0) for key in ("original_y1", "original_y2"))
    return left, top, right, bottom


SOURCE = Source(
    NAME,
    "CHEST_IMA",
    "mimic",
    (*SPLITS.values(), GRAPHS, MISSING),
    "PhysioNet chest-imagenome 1.0.0: credentialed account, CITI training, DUA; films from MIMIC-CXR-JPG",
    "PhysioNet Credentialed Health Data License 1.5.0: no redistribution",
    records,
    complete,
    needs=(source_mimic.NAME,),
    images_in=source_mimic.NAME,
)
