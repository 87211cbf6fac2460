"""Open-i (Indiana University): open films with reports and indexing terms."""

from __future__ import annotations

import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.training.report_sections import of_sections
from radvlm_edge.training.source import Expected, FilmRecord, Folders, LabelState, Source
from radvlm_edge.training.source_tables import must_find, rows, split_of

NAME = "open-i"
REPORTS = Expected(
    ("ecgen-radiology", "NLMCXR_reports.tgz"), "reports with indexing terms, an XML file a study"
)
VIEWS = Expected(
    ("nlmcxr_tsne_pa.csv", "indiana_projections.csv"),
    "which films are frontal: torchxrayvision's table (imageid,tsne-view) or Kaggle's (filename,projection)",
)
IMAGES = Expected(("NLMCXR_png", "images"), "the films, CXR1_1_IM-0001-3001.png")
TERMS: dict[str, str] = {
    "pulmonary atelectasis": "atelectasis",
    "atelectasis": "atelectasis",
    "atelectases": "atelectasis",
    "cardiomegaly": "cardiomegaly",
    "consolidation": "consolidation",
    "pulmonary edema": "edema",
    "fractures, bone": "fracture",
    "rib fracture": "fracture",
    "nodule": "lung lesion",
    "mass": "lung lesion",
    "opacity": "lung opacity",
    "infiltrate": "lung opacity",
    "infiltrates": "lung opacity",
    "airspace disease": "lung opacity",
    "pleural effusion": "pleural effusion",
    "pleural effusions": "pleural effusion",
    "pneumonia": "pneumonia",
    "pneumothorax": "pneumothorax",
    "catheters, indwelling": "support devices",
    "medical device": "support devices",
    "implanted medical device": "support devices",
    "tube, inserted": "support devices",
}
"""Indexing term (what stands before the first `/`) → RadVLM's label. Terms not listed have none."""


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Films in the order of study numbers. There is no official split; patients are studies here."""
    folder = folders[NAME]
    views, inside = _views(folder), _images(folder)
    for study, document in _documents(must_find(folder, REPORTS.paths)):
        texts = {(one.get("Label") or "").lower(): one.text or "" for one in document.iter("AbstractText")}
        report, labels = of_sections(texts), _labels(document)
        for image in document.iter("parentImage"):
            film = image.get("id", "")
            yield FilmRecord(
                NAME,
                film,
                f"{inside}/{film}.png",
                study,
                study,
                split_of("open-i", study),
                views.get(film, ""),
                labels=labels,
                report=report or None,
            )


def _images(folder: Path) -> str:
    return next((name for name in IMAGES.paths if (folder / name).is_dir()), IMAGES.paths[0])


def _labels(document: ElementTree.Element) -> LabelState:
    """Present by indexing terms; everything else is absent only where the study is indexed `normal`."""
    major = [(one.text or "").strip().lower() for one in document.iter("major")]
    terms = {term.partition("/")[0] for term in major}
    present = frozenset(TERMS[term] for term in terms if term in TERMS)
    return LabelState(present, frozenset(LABELS) if terms == {"normal"} else frozenset())


def _documents(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    """Study and parsed XML, by number. Raises RecipeError for a document that is not XML."""
    if path.is_dir():
        texts = {one.stem: one.read_bytes() for one in path.glob("*.xml")}
    else:
        with tarfile.open(path) as archive:
            texts = {
                Path(one.name).stem: file.read()
                for one in archive
                if one.name.endswith(".xml") and (file := archive.extractfile(one))
            }
    for study in sorted(texts, key=lambda name: (len(name), name)):
        try:
            yield study, ElementTree.fromstring(texts[study])
        except ElementTree.ParseError as error:
            raise RecipeError(f"{path}: {study}.xml is not XML: {error}; copy it again") from error


def _views(folder: Path) -> dict[str, str]:
    """Film → `PA`, `frontal` or `lateral`. DICOM's View Position is wrong too often to be used."""
    path = must_find(folder, VIEWS.paths)
    if "projections" in path.name:
        table = rows(path, ("uid", "filename", "projection"))
        # Kaggle names films 1_IM-0001-4001.dcm.png where the collection says CXR1_1_IM-0001-4001
        # or CXR1_IM-0001-4001.
        seen: dict[str, str] = {}
        for row in table:
            name = row["filename"].partition(".")[0]
            view = "frontal" if row["projection"] == "Frontal" else "lateral"
            seen[f"CXR{name}"] = seen[f"CXR{row['uid']}_{name}"] = view
        return seen
    kinds = {"PA": "PA", "L": "lateral"}
    return {row["imageid"]: kinds.get(row["tsne-view"], "") for row in rows(path, ("imageid", "tsne-view"))}


SOURCE = Source(
    NAME,
    "Open-i",
    "open-i",
    (REPORTS, VIEWS, IMAGES),
    "open download from openi.nlm.nih.gov (NLMCXR_reports.tgz, NLMCXR_png.tgz)",
    "CC BY-NC-ND 4.0, stated in each report's file",
    records,
    official_splits=False,
)
