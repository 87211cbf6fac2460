"""NIH ChestX-ray14: open frontal films with labels mined from reports; boxes on about 880 of them."""

from __future__ import annotations

from collections.abc import Iterator

from radvlm_edge.errors import RecipeError
from radvlm_edge.runtime.answers import LABELS
from radvlm_edge.training.nih_labels import ABSENCE, NIH_TO_RADVLM, radvlm_labels
from radvlm_edge.training.source import Boxed, Expected, FilmRecord, Folders, LabelState, Source
from radvlm_edge.training.source_tables import find, must_find, number, open_text, rows, share, split_of

NAME = "nih-cxr14"
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x")
ENTRIES = Expected(
    ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"),
    "labels, views, patients; a row a film",
    ("Image Index", "Finding Labels", "Patient ID", "View Position"),
)
BOXES = Expected(("BBox_List_2017.csv",), "boxes in pixels of the 1024 px films", BOX_COLUMNS, required=False)
LISTS = {
    "train": Expected(("train_val_list.txt",), "official training and validation films", required=False),
    "test": Expected(("test_list.txt",), "official test films", required=False),
}
SIDE_PX = 1024
"""Every film of the release is 1024 by 1024."""
_RENAMED = {"Infiltrate": "Infiltration"}
"""Labels the box table spells unlike the label table."""


def records(folders: Folders, splits: str) -> Iterator[FilmRecord]:
    """Every film of the label table. `official` needs the two lists; a tenth of their patients validate."""
    folder = folders[NAME]
    official = _official(folders) if splits == "official" else {}
    drawn = _drawn(folders)
    table = must_find(folder, ENTRIES.paths)
    for row in rows(table, ENTRIES.columns):
        film, patient = row["Image Index"], row["Patient ID"]
        if splits == "official":
            split = official.get(film, "")
            if split == "train" and share("validate", "nih", patient) < 0.1:
                split = "validate"
        else:
            split = split_of("nih", patient)
        boxes = drawn.get(film)
        yield FilmRecord(
            NAME,
            film,
            f"images/{film}",
            patient,
            film.partition(".")[0],
            split,
            row["View Position"] if row["View Position"] in ("PA", "AP") else "frontal",
            row.get("Patient Gender", row.get("Patient Sex", "")),
            size=(SIDE_PX, SIDE_PX),
            labels=_labels(row["Finding Labels"], str(table)),
            findings=tuple(Boxed(name, tuple(boxes[name])) for name in sorted(boxes)) if boxes else None,
        )


def _labels(said: str, where: str) -> LabelState:
    """Present as the label table says; absent where silence may count as absence (see nih_labels)."""
    given = set(said.split("|"))
    try:
        present = radvlm_labels(given)
    except KeyError as error:
        raise RecipeError(
            f"{where}: label {error} is unknown; NIH ChestX-ray14 has {len(NIH_TO_RADVLM)}"
        ) from error
    silent = set(LABELS) if given == {"No Finding"} else set(ABSENCE)
    return LabelState(present, frozenset(silent - present))


def _drawn(folders: Folders) -> dict[str, dict[str, list[tuple[float, float, float, float]]]]:
    """Film → finding → boxes as fractions. The header of the table, `Bbox [x,y,w,h]`, is four columns."""
    path = find(folders[NAME], BOXES.paths)
    found: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for row in rows(path, (*BOX_COLUMNS, "y", "w", "h]")) if path else ():
        name = NIH_TO_RADVLM[_RENAMED.get(row["Finding Label"], row["Finding Label"])][0]
        assert name is not None and path is not None
        x, y, w, h = (number(row, column, path) / SIDE_PX for column in ("Bbox [x", "y", "w", "h]"))
        box = (x, y, min(x + w, 1.0), min(y + h, 1.0))
        found.setdefault(row["Image Index"], {}).setdefault(name, []).append(box)
    return found


def _official(folders: Folders) -> dict[str, str]:
    """Film → `train` or `test` of the official lists."""
    found = {}
    for split, listed in LISTS.items():
        path = find(folders[NAME], listed.paths)
        if path is None:
            raise RecipeError(
                f"{folders[NAME]}: {listed.paths[0]} is missing; "
                "add it, or set `splits: patients` for this source in the recipe"
            )
        with open_text(path) as file:
            found.update({line.strip(): split for line in file if line.strip()})
    return found


SOURCE = Source(
    NAME,
    "NIH-CXR14",
    "nih",
    (ENTRIES, BOXES, *LISTS.values(), Expected(("images",), "the films, images/00000001_000.png")),
    "open download from the NIH Clinical Center",
    "no restriction; acknowledge the NIH Clinical Center, link it, cite Wang et al., CVPR 2017",
    records,
)
