"""CheXpert (labels) and CheXpert-Plus (reports): the same films and patients, two releases."""

from __future__ import annotations

import re
from collections.abc import Iterator

from radvlm_edge.errors import RecipeError
from radvlm_edge.training.report_sections import squeeze
from radvlm_edge.training.source import Expected, FilmRecord, Folders, Source
from radvlm_edge.training.source_tables import (
    CHEXPERT_COLUMNS,
    NO_FINDING,
    find,
    label_state,
    must_find,
    rows,
    split_of,
)

NAME, PLUS = "chexpert", "chexpert-plus"
_LABELS = ("Path", NO_FINDING, *CHEXPERT_COLUMNS)
TABLES = {
    "train": Expected(("train.csv",), "training labels, by a labeller", _LABELS),
    "validate": Expected(("valid.csv",), "validation labels, by radiologists", _LABELS, required=False),
    "test": Expected(
        ("test.csv", "test_labels.csv"),
        "the 518 test labels of RadVLM's classification figures",
        ("Path", *CHEXPERT_COLUMNS),
        required=False,
    ),
}
_SECTIONS = ("section_findings", "section_impression", "section_end_of_impression")
PLUS_TABLE = Expected(
    ("df_chexpert_plus_240401.csv",),
    "reports in sections, a row a film",
    ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", *_SECTIONS, "sex", "split"),
)
_ROOT = re.compile(r"^CheXpert-v1\.0(?:-small)?/")
_PATH = re.compile(r"^(train|valid|test)/(patient\d+)/(study\d+)/view\d+_(frontal|lateral)\.\w+$")
_SPLITS = {"train": "train", "valid": "validate", "test": "test"}


def _parts(path: str) -> tuple[str, str, str, str]:
    """Split, patient, study and view of a film's path. Raises RecipeError for another form of path."""
    found = _PATH.match(path)
    if found is None:
        raise RecipeError(f"{path!r} is no CheXpert path; train/patient00001/study1/view1_frontal.jpg is")
    return found[1], found[2], found[3], found[4]


def _view(seen: str, direction: str) -> str:
    """`PA`, `AP`, `frontal` or `lateral`. CheXpert's 17 frontal films marked LL or RL stay frontal."""
    if seen != "frontal":
        return "lateral"
    return direction if direction in ("PA", "AP") else "frontal"


def _sex(row: dict[str, str]) -> str:
    return {"Female": "F", "Male": "M"}.get(row.get("Sex", row.get("sex", "")), "")


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Films of the three tables, test films last. `No Finding` clears all but support devices."""
    folder = folders[NAME]
    for split, table in TABLES.items():
        path = must_find(folder, table.paths) if table.required else find(folder, table.paths)
        for row in rows(path, table.columns) if path else ():
            image = _ROOT.sub("", row["Path"])
            _, patient, study, seen = _parts(image)
            yield FilmRecord(
                NAME,
                image.rpartition(".")[0],
                image,
                patient,
                f"{patient}/{study}",
                split if splits == "official" else split_of("chexpert", patient),
                _view(seen, row.get("AP/PA", "")),
                _sex(row),
                labels=label_state(row, path or folder, no_finding_clears=True),
            )


def plus_records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Films of the CheXpert-Plus table; the films themselves are PNG there."""
    for row in rows(must_find(folders[PLUS], PLUS_TABLE.paths), PLUS_TABLE.columns):
        path = row["path_to_image"]
        _, patient, study, _ = _parts(path)
        text = squeeze(" ".join(row[name] for name in _SECTIONS if row[name].lower() != "nan"))
        official = _SPLITS.get(row["split"], "")
        yield FilmRecord(
            PLUS,
            path.rpartition(".")[0],
            f"PNG/{path.rpartition('.')[0]}.png",
            patient,
            f"{patient}/{study}",
            official if splits == "official" else split_of("chexpert", patient),
            _view(row["frontal_lateral"].lower(), row["ap_pa"]),
            _sex(row),
            report=text or None,
        )


SOURCE = Source(
    NAME,
    "CheXpert",
    "chexpert",
    (*TABLES.values(), Expected(("train",), "the films, train/patient00001/study1/view1_frontal.jpg")),
    "Stanford AIMI, CheXpert-v1.0 or -small: registration and research use agreement",
    "Stanford University Dataset Research Use Agreement: no redistribution, no commercial use",
    records,
)
PLUS_SOURCE = Source(
    PLUS,
    "CheXpertPlus",
    "chexpert",
    (PLUS_TABLE, Expected(("PNG",), "the films, PNG/train/patient00001/study1/view1_frontal.png")),
    "Stanford AIMI, CheXpert Plus: registration and research use agreement",
    "Stanford University Dataset Research Use Agreement: no redistribution, no commercial use",
    plus_records,
)
