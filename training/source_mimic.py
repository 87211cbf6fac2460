"""MIMIC-CXR-JPG: films, CheXpert labels, splits, and the reports cut into sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from radvlm_edge.training.report_sections import of_sections, section_report
from radvlm_edge.training.source import Expected, FilmRecord, Folders, LabelState, Source
from radvlm_edge.training.source_tables import (
    CHEXPERT_COLUMNS,
    NO_FINDING,
    find,
    label_state,
    must_find,
    rows,
    split_of,
    stamp,
)

NAME = "mimic-cxr"
METADATA = Expected(
    ("mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.1.0-metadata.csv"),
    "views and sizes, a row a film",
    ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns"),
)
SPLIT = Expected(
    ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.1.0-split.csv"),
    "official splits by patient",
    ("dicom_id", "split"),
)
LABELLED = Expected(
    ("mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.1.0-chexpert.csv"),
    "CheXpert labels, a row a study",
    ("subject_id", "study_id", NO_FINDING, *CHEXPERT_COLUMNS),
)
SECTIONED = Expected(
    ("mimic_cxr_sectioned.csv", "reports.csv"),
    "reports in sections, as MIT-LCP/mimic-cxr's create_section_files.py writes them",
    ("study", "findings", "impression", "last_paragraph"),
    required=False,
)
REPORTS = Expected(
    ("mimic-cxr-reports/files", "reports"),
    "the reports themselves (p10/p10000032/s50414267.txt), read where there is no sectioned table",
    required=False,
)
_SPLITS = {"train": "train", "validate": "validate", "test": "test"}


@dataclass(frozen=True)
class MimicFilm:
    """A row of the metadata table with its split."""

    dicom: str
    patient: str
    study: str
    view: str
    size: tuple[int, int]
    split: str

    @property
    def image(self) -> str:
        return f"files/p{self.patient[:2]}/p{self.patient}/s{self.study}/{self.dicom}.jpg"


def mimic_films(folders: Folders, splits: str = "official") -> Iterator[MimicFilm]:
    """Every film of the metadata table that has a split, in its order."""
    folder = folders[NAME]
    table = must_find(folder, SPLIT.paths)
    official = {row["dicom_id"]: _SPLITS.get(row["split"], "") for row in rows(table, SPLIT.columns)}
    for row in rows(must_find(folder, METADATA.paths), METADATA.columns):
        split = official.get(row["dicom_id"])
        if split is None:
            continue
        if splits == "patients":
            split = split_of("mimic", row["subject_id"])
        size = int(float(row["Rows"])), int(float(row["Columns"]))
        yield MimicFilm(row["dicom_id"], row["subject_id"], row["study_id"], row["ViewPosition"], size, split)


def mimic_reports(folders: Folders) -> dict[str, str] | None:
    """Study → its report; `""` where no section is usable. None where there is no sectioned table."""
    table = find(folders[NAME], SECTIONED.paths)
    return None if table is None else _reports(table, stamp(table))


# Several entries of a recipe read the same two tables, the slowest of all; one version of each is kept.
@lru_cache(maxsize=1)
def _reports(table: Path, _: tuple[int, int]) -> dict[str, str]:
    return {row["study"].removeprefix("s"): of_sections(row) for row in rows(table, SECTIONED.columns)}


@lru_cache(maxsize=1)
def _labels(table: Path, _: tuple[int, int]) -> dict[str, LabelState]:
    return {
        row["study_id"]: label_state(row, table, no_finding_clears=False)
        for row in rows(table, LABELLED.columns)
    }


def study_report(folders: Folders, patient: str, study: str) -> str | None:
    """A study's report from its own text file; None where there is none."""
    folder = find(folders[NAME], REPORTS.paths)
    path = folder and folder / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"
    return section_report(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Every film whose study has a row in the report table, as RadVLM joins them; all where it is missing."""
    table = must_find(folders[NAME], LABELLED.paths)
    labels = _labels(table, stamp(table))
    reports = mimic_reports(folders)
    for film in mimic_films(folders, splits):
        if reports is None:
            report = study_report(folders, film.patient, film.study)
        elif film.study in reports:
            report = reports[film.study]
        else:
            continue
        yield FilmRecord(
            NAME,
            film.dicom,
            film.image,
            film.patient,
            film.study,
            film.split,
            film.view if film.view in ("PA", "AP") else "lateral" if film.view else "",
            size=film.size,
            labels=labels.get(film.study),
            report=report or None,
        )


SOURCE = Source(
    NAME,
    "MIMIC-CXR-JPG",
    "mimic",
    (
        METADATA,
        SPLIT,
        LABELLED,
        SECTIONED,
        REPORTS,
        Expected(("files",), "the films, files/p10/p10000032/s50414267/DICOM_ID.jpg"),
    ),
    "PhysioNet mimic-cxr-jpg and mimic-cxr (reports): credentialed account, CITI training, DUA",
    "PhysioNet Credentialed Health Data License 1.5.0: no redistribution",
    records,
)
